package compose

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/gantryd/gantry/fault"
)

// maxPorts of one service keeps a range such as 1-65535 from making the tables of every node huge.
const maxPorts = 4096

// checkPorts bounds ranges before the loader writes them out one by one.
func (f *sourceFile) checkPorts() error {
	for _, d := range f.docs {
		_, services := mapEntry(root(d), "services")
		if services == nil || services.Kind != yaml.MappingNode {
			continue
		}
		for i := 0; i+1 < len(services.Content); i += 2 {
			k, ports := mapEntry(services.Content[i+1], "ports")
			if k == nil || countPorts(ports) <= maxPorts {
				continue
			}
			return fault.New(fault.Invalid, "%s:%d: %s: more than %d ports are published", f.path, k.Line,
				keyName([]string{"services", services.Content[i].Value, "ports"}), maxPorts).
				WithHint("publish fewer ports, or use network_mode: host")
		}
	}
	return nil
}

func countPorts(list *yaml.Node) int {
	total := 0
	for _, n := range items(list) {
		total += portCount(n.Value)
	}
	return total
}

// portCount is the size of the range in "[ADDRESS:][HOST:]FIRST-LAST[/PROTOCOL]", 1 if it is none.
func portCount(s string) int {
	s, _, _ = strings.Cut(s[strings.LastIndexByte(s, ':')+1:], "/")
	first, last, ok := strings.Cut(s, "-")
	a, errA := strconv.Atoi(first)
	b, errB := strconv.Atoi(last)
	if !ok || errA != nil || errB != nil || b < a {
		return 1
	}
	return b - a + 1
}
