package store

import "strings"

// Each calls fn with the objects of type T whose keys begin with keyPrefix, in order of their keys, until it returns false.
// It makes no list of them.
func Each[T Object](r Reader, keyPrefix string, fn func(T) bool) {
	var zero T
	path := pathOf(zero, keyPrefix)
	r.ascend(path, func(e entry) bool { return strings.HasPrefix(e.path, path) && fn(e.obj.(T)) })
}
