package cli

import (
	"fmt"
	"io"
	"sort"
	"strings"

	"github.com/gantryd/gantry/cli/printable"
)

// outline prints decoded JSON for people: sorted names, nesting by indentation.
func outline(w io.Writer, v map[string]any, indent string) {
	for _, name := range sortedKeys(v) {
		outlineValue(w, indent+printable.Line(name)+":", v[name], indent+"  ")
	}
}

func outlineValue(w io.Writer, label string, v any, indent string) {
	switch v := v.(type) {
	case map[string]any:
		fmt.Fprintln(w, label)
		outline(w, v, indent)
	case []any:
		fmt.Fprintln(w, label)
		for _, item := range v {
			outlineValue(w, indent+"-", item, indent+"  ")
		}
	default:
		fmt.Fprintln(w, label, printable.Line(fmt.Sprint(v)))
	}
}

// attributes gives name=value pairs in order, in parentheses as docker events does.
func attributes(m map[string]string) string {
	if len(m) == 0 {
		return ""
	}
	pairs := make([]string, 0, len(m))
	for _, name := range sortedKeys(m) {
		pairs = append(pairs, name+"="+m[name])
	}
	return " (" + strings.Join(pairs, ", ") + ")"
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
