package compose

import (
	"slices"
	"strings"
)

// Support says what becomes of a key.
type Support int

// What becomes of a key.
const (
	// Supported keys do what the specification says, or what their note says.
	Supported Support = iota
	// Warned keys have no effect and are named with file and line.
	Warned
	// Refused keys are an error with file and line.
	Refused
)

// String is the word in the documentation.
func (s Support) String() string { return [...]string{"supported", "warned", "refused"}[s] }

// Entry is one key of the Compose specification. In Path "*" is any name, "[]" any item of a list, and a final "**"
// the key and all below it. The Note of a refused key is its reason, then "; " and what to do instead.
type Entry struct {
	Path    string
	Support Support
	Note    string
}

// Matrix returns every key of the Compose specification, sorted by path.
func Matrix() []Entry {
	all := slices.Concat(matrixTop(), matrixServicesA(), matrixServicesL())
	slices.SortFunc(all, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	return all
}

const (
	anyKey  = "*"
	anyItem = "[]"
	allDeep = "**"
)

// matrixNode is the matrix as a tree.
type matrixNode struct {
	children map[string]*matrixNode
	entry    *Entry
}

func newMatrixTree(entries []Entry) *matrixNode {
	root := &matrixNode{}
	for i, e := range entries {
		n := root
		for part := range strings.SplitSeq(strings.TrimSuffix(e.Path, "."+allDeep), ".") {
			n = n.child(part)
		}
		n.entry = &entries[i]
	}
	return root
}

func (n *matrixNode) child(part string) *matrixNode {
	if n.children == nil {
		n.children = map[string]*matrixNode{}
	}
	if n.children[part] == nil {
		n.children[part] = &matrixNode{}
	}
	return n.children[part]
}

// step follows one key, or returns nil for one that the matrix does not have.
func (n *matrixNode) step(key string) *matrixNode {
	if c := n.children[key]; c != nil {
		return c
	}
	return n.children[anyKey]
}
