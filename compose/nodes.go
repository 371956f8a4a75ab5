package compose

import (
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/gantryd/gantry/fault"
)

const (
	// maxDepth is far above any real file and far below what hurts a recursive reader.
	maxDepth = 64
	// maxNodes counts values with every alias written out.
	maxNodes = 200_000
)

// shape measures a document without writing aliases out.
type shape struct {
	file  string
	nodes map[*yaml.Node]extent // measured; zero while being measured
}

type extent struct{ size, height int }

func checkShape(file string, doc *yaml.Node) error {
	s := &shape{file: file, nodes: map[*yaml.Node]extent{}}
	e, err := s.measure(doc, 0)
	if err == nil && e.size > maxNodes {
		err = fault.New(fault.Invalid, "%s holds more than %d values when its aliases are written out", file, maxNodes).
			WithHint("split the app, or use fewer YAML aliases")
	}
	return err
}

func (s *shape) measure(n *yaml.Node, depth int) (extent, error) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	e, ok := s.nodes[n]
	switch {
	case n.Kind == yaml.ScalarNode:
		return extent{1, 0}, s.variables(n)
	case ok && e.size == 0:
		return e, fault.New(fault.Invalid, "%s:%d: a YAML anchor contains itself", s.file, n.Line).WithHint("remove the alias inside of it")
	case depth+e.height > maxDepth:
		return e, fault.New(fault.Invalid, "%s:%d: the file is nested deeper than %d levels", s.file, n.Line, maxDepth).
			WithHint("no Compose key needs that; check the brackets")
	case ok:
		return e, nil
	}
	s.nodes[n] = e
	e.size = 1
	for _, c := range n.Content {
		below, err := s.measure(c, depth+1)
		if err != nil {
			return e, err
		}
		e.size = min(e.size+below.size, maxNodes+1)
		e.height = max(e.height, below.height+1)
	}
	s.nodes[n] = e
	return e, nil
}

const (
	maxVariables       = 1000
	maxVariableNesting = 20
)

// variables bounds what filling one value in can cost: the loader's time grows with the square of it.
func (s *shape) variables(n *yaml.Node) error {
	if strings.Count(n.Value, "${") <= maxVariableNesting {
		return nil
	}
	total, open := 0, 0
	for i := 0; i < len(n.Value); i++ {
		switch {
		case strings.HasPrefix(n.Value[i:], "${"):
			total, open = total+1, open+1
		case n.Value[i] == '}' && open > 0:
			open--
		}
		if open > maxVariableNesting {
			return fault.New(fault.Invalid, "%s:%d: variables are nested deeper than %d levels", s.file, n.Line, maxVariableNesting).
				WithHint("write a literal \"$\" as \"$$\"")
		}
	}
	if total > maxVariables {
		return fault.New(fault.Invalid, "%s:%d: one value has more than %d variables", s.file, n.Line, maxVariables).
			WithHint("split it, or mount a file")
	}
	return nil
}

// checkNames refuses names that are not even text for a terminal, before anybody prints them.
func (f *sourceFile) checkNames() error {
	for _, d := range f.docs {
		for _, kind := range []string{"services", "networks", "volumes", "secrets", "configs"} {
			_, section := mapEntry(root(d), kind)
			if section == nil || section.Kind != yaml.MappingNode {
				continue
			}
			for i := 0; i < len(section.Content); i += 2 {
				k := section.Content[i]
				if strings.ContainsFunc(k.Value, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
					return fault.New(fault.Invalid, "%s:%d: %s: a name has only letters, digits, \"-\", \"_\" and \".\"",
						f.path, k.Line, keyName([]string{kind, strings.ReplaceAll(k.Value, "\n", "\\x0a")})).WithHint("rename it, such as to web or my-app")
				}
			}
		}
	}
	return nil
}

// position is a place in a file.
type position struct {
	file string
	line int
}

func (p position) String() string {
	if p.line == 0 {
		return p.file
	}
	return fmt.Sprintf("%s:%d", p.file, p.line)
}

const maxExtends = 20

// locate finds the line of a path of the merged model: in the last file that has all of it, else the longest part.
func (s *sources) locate(path []string) position {
	var best position
	depth := -1
	for i := range s.files {
		if i < s.mains {
			i = s.mains - 1 - i // a later file overrides; included and extended ones come after all
		}
		at, d := s.files[i].locate(path)
		if d > depth {
			best, depth = at, d
		}
		if d == len(path) {
			return best
		}
	}
	if at, ok := s.locateExtended(path, maxExtends); ok {
		return at
	}
	return best
}

// has says whether any of the given files writes the path.
func (s *sources) has(path []string) bool {
	for _, f := range s.files {
		if _, depth := f.locate(path); depth == len(path) {
			return true
		}
	}
	return false
}

// locateExtended looks for the path in the services that the path's service extends.
func (s *sources) locateExtended(path []string, hops int) (position, bool) {
	if len(path) < 3 || path[0] != "services" || hops == 0 {
		return position{}, false
	}
	for _, f := range s.files {
		for _, d := range f.docs {
			_, e := walk(root(d), []string{"services", path[1], "extends"})
			base := e
			if e != nil && e.Kind == yaml.MappingNode {
				_, base = mapEntry(e, "service")
			}
			if base == nil {
				continue
			}
			other := append([]string{"services", base.Value}, path[2:]...)
			for _, g := range s.files {
				if at, d := g.locate(other); d == len(other) {
					return at, true
				}
			}
			if at, ok := s.locateExtended(other, hops-1); ok {
				return at, ok
			}
		}
	}
	return position{}, false
}

// locate returns the line of the longest part of path that the file has, and how long that is.
func (f *sourceFile) locate(path []string) (position, int) {
	best, depth := position{file: f.path}, -1
	for _, d := range f.docs {
		n, line := root(d), 0
		for i := 0; ; i++ {
			if i > depth {
				best.line, depth = line, i
			}
			if i == len(path) {
				break
			}
			at, next := child(n, path[i], path[i+1:])
			if at == nil {
				break
			}
			n, line = next, at.Line
		}
	}
	return best, depth
}

// walk follows a path and returns the node that names its end and the value.
func walk(n *yaml.Node, path []string) (at, value *yaml.Node) {
	for i, p := range path {
		if at, n = child(n, p, path[i+1:]); at == nil {
			return nil, nil
		}
	}
	return at, n
}

// child steps into a mapping by key or into a list by index. Short forms name the value in the item itself, and merged
// lists shift indexes, so that a list is searched for an item that has the rest of the path.
func child(n *yaml.Node, key string, rest []string) (at, value *yaml.Node) {
	n = resolve(n)
	if n == nil {
		return nil, nil
	}
	if n.Kind == yaml.MappingNode {
		return mapEntry(n, key)
	}
	if n.Kind != yaml.SequenceNode {
		return nil, nil
	}
	i, err := strconv.Atoi(key)
	if err != nil {
		for _, item := range n.Content {
			if v := resolve(item).Value; v == key || strings.HasPrefix(v, key+"=") || strings.HasPrefix(v, key+":") {
				return item, item
			}
		}
		return nil, nil
	}
	if i < len(n.Content) && (len(rest) == 0 || hasPath(n.Content[i], rest)) {
		return n.Content[i], n.Content[i]
	}
	for _, item := range n.Content {
		if len(rest) > 0 && hasPath(item, rest) {
			return item, item
		}
	}
	if i < len(n.Content) {
		return n.Content[i], n.Content[i]
	}
	return nil, nil
}

func hasPath(n *yaml.Node, path []string) bool {
	at, _ := walk(n, path)
	return at != nil
}

func root(doc *yaml.Node) *yaml.Node {
	if doc.Kind == yaml.DocumentNode && len(doc.Content) == 1 {
		return resolve(doc.Content[0])
	}
	return doc
}

func resolve(n *yaml.Node) *yaml.Node {
	if n != nil && n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// mapEntry returns key and value of a mapping, merge keys included.
func mapEntry(n *yaml.Node, key string) (k, v *yaml.Node) {
	n = resolve(n)
	if n == nil || n.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i], resolve(n.Content[i+1])
		}
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value != "<<" {
			continue
		}
		for _, m := range items(n.Content[i+1]) {
			if k, v := mapEntry(m, key); k != nil {
				return k, v
			}
		}
	}
	return nil, nil
}

// items are the items of a list, or the one value itself.
func items(n *yaml.Node) []*yaml.Node {
	n = resolve(n)
	if n == nil {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		return []*yaml.Node{n}
	}
	out := make([]*yaml.Node, len(n.Content))
	for i, c := range n.Content {
		out[i] = resolve(c)
	}
	return out
}

// values are the values of a mapping.
func values(n *yaml.Node) []*yaml.Node {
	n = resolve(n)
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	var out []*yaml.Node
	for i := 1; i < len(n.Content); i += 2 {
		out = append(out, resolve(n.Content[i]))
	}
	return out
}
