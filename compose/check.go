package compose

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// checkModel holds the merged model against the matrix. Services that no profile enables are left out: nothing of
// them is used.
func checkModel(model map[string]any, enabled func(service string) bool, r *report) {
	w := &modelWalk{report: r, enabled: enabled}
	w.mapping(model, nil, newMatrixTree(Matrix()))
}

type modelWalk struct {
	report  *report
	enabled func(service string) bool
}

func (w *modelWalk) mapping(m map[string]any, path []string, n *matrixNode) {
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if len(path) == 1 && path[0] == "services" && !w.enabled(key) {
			continue
		}
		if strings.HasPrefix(key, "x-") && !namedByUser(path) {
			continue // the specification leaves these to users; x-gantry is read where it belongs
		}
		next := n.step(key)
		at := append(slices.Clone(path), key)
		if next == nil {
			w.report.refuse(at, "this key is not known to Gantry; remove it")
			continue
		}
		if e := next.entry; e != nil && e.Support != Supported {
			w.report.matrix(at, e)
			continue
		}
		w.value(m[key], at, next)
	}
}

// namedByUser says whether the keys below path are names that a user chose, so that "x-" is nothing special.
func namedByUser(path []string) bool {
	if len(path) == 1 {
		return slices.Contains([]string{"services", "networks", "volumes", "secrets", "configs"}, path[0])
	}
	return len(path) == 3 && path[0] == "services" && path[2] == "depends_on"
}

func (w *modelWalk) value(v any, path []string, n *matrixNode) {
	switch v := v.(type) {
	case map[string]any:
		if len(n.children) > 0 {
			w.mapping(v, path, n)
		}
	case []any:
		item := n.children[anyItem]
		if item == nil {
			return // a list of plain values
		}
		for i, e := range v {
			w.value(e, append(slices.Clone(path), strconv.Itoa(i)), item)
		}
	}
}
