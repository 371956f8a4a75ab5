// Package outline prints decoded JSON for people: sorted names, nesting by indentation.
package outline

import (
	"fmt"
	"io"
	"sort"
	"strings"

	"github.com/gantryd/gantry/cli/printable"
)

// Write prints v with each line behind an indentation.
func Write(w io.Writer, v map[string]any, indent string) {
	for _, name := range SortedKeys(v) {
		value(w, indent+printable.Line(name)+":", v[name], indent+"  ")
	}
}

func value(w io.Writer, label string, v any, indent string) {
	switch v := v.(type) {
	case map[string]any:
		fmt.Fprintln(w, label)
		Write(w, v, indent)
	case []any:
		fmt.Fprintln(w, label)
		for _, item := range v {
			value(w, indent+"-", item, indent+"  ")
		}
	default:
		fmt.Fprintln(w, label, printable.Line(fmt.Sprint(v)))
	}
}

// Attributes gives name=value pairs in order, in parentheses as docker events does.
func Attributes(m map[string]string) string {
	if len(m) == 0 {
		return ""
	}
	pairs := make([]string, 0, len(m))
	for _, name := range SortedKeys(m) {
		pairs = append(pairs, name+"="+m[name])
	}
	return " (" + strings.Join(pairs, ", ") + ")"
}

// SortedKeys gives the keys of a map in order.
func SortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
