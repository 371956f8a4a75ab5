package constraint

import (
	"testing"

	"github.com/gantryd/gantry/fault"
)

func TestHolds(t *testing.T) {
	n := Node{ID: "a1b2", Hostname: "berlin-3", Role: "server", OS: "linux", Arch: "x86_64", Labels: map[string]string{"rack": "r1", "a.b/c": "d"}}
	for text, want := range map[string]bool{
		"node.id == a1b2": true, "node.id != a1b2": false, "node.hostname==berlin-3": true, "node.hostname == Berlin-3": true,
		"node.role == manager": true, "node.role == worker": false, "node.role != node": true, "node.role == server": true,
		"node.labels.rack == r1": true, "node.labels.rack != r1": false, "node.labels.rack == r2": false,
		"node.labels.zone == z": false, "node.labels.zone != z": true, "engine.labels.rack == r1": true, "node.labels.a.b/c == d": true,
		"node.platform.os == linux": true, "node.platform.arch == amd64": true, "node.platform.arch == x86_64": true,
		"node.platform.arch != aarch64": true, "  node.labels.rack  ==  r1  ": true,
	} {
		c, err := Parse(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if c.Holds(n) != want {
			t.Errorf("%s: got %v", text, !want)
		}
	}
}

func TestWhatIsNoConstraint(t *testing.T) {
	for _, text := range []string{
		"", "==", "node.id", "node.id =", "node.id ==", "== a", "node.id = a", "node.labels. == a", "node.labels == a",
		"node.name == a", "node.labels.a b == c", "node.id == a == b", "node.id == a != b", "node.id === a", "node.id > 3",
	} {
		if c, err := Parse(text); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q was read as %v: %v", text, c, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("node.labels.rack == r1")
	f.Add("node.role != manager")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(c.String())
		if err != nil || again != c {
			t.Errorf("%q became %q, which became %v: %v", text, c, again, err)
		}
	})
}
