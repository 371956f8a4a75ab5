package cli

import (
	"os"
	"path/filepath"
	"testing"
)

// The keys may come in one read or in several, and what only begins like them is input.
func TestDetachKeys(t *testing.T) {
	keys, err := detachKeys("ctrl-p,ctrl-q")
	if err != nil || string(keys) != "\x10\x11" {
		t.Fatalf("keys %q, %v", keys, err)
	}
	for input, want := range map[string]struct {
		data     string
		detached bool
	}{
		"abc": {"abc", false}, "ab\x10\x11c": {"ab", true}, "a\x10b": {"a\x10b", false},
		"\x10\x10\x11": {"\x10", true}, "a\x11": {"a\x11", false}, "\x10": {"", false},
	} {
		for size := 1; size <= len(input); size++ {
			d, data, detached := detacher{keys: keys}, "", false
			for i := 0; i < len(input) && !detached; i += size {
				var out []byte
				out, detached = d.pass([]byte(input[i:min(i+size, len(input))]))
				data += string(out)
			}
			if data != want.data || detached != want.detached {
				t.Errorf("%q by %d: %q %v", input, size, data, detached)
			}
		}
	}
	for _, bad := range []string{"ctrl-", "ctrl-?", "word"} {
		if _, err := detachKeys(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestNameInComposeFile(t *testing.T) {
	for content, want := range map[string]struct {
		name  string
		plain bool
	}{
		"services: {}\n":                   {"", true},
		"name: shop\n":                     {"shop", true},
		"services:\n  a:\n    name: x\n":   {"", true},
		"a: b\nname: \"quoted\" # why\n":   {"quoted", true},
		"name: ${X:-y}\n":                  {"", false},
		"{\"name\": \"json\"}\n":           {"", false},
		"\"name\": quoted-key\n":           {"", false},
		"# name: not\nname:   spaced   \n": {"spaced", true},
	} {
		path := filepath.Join(t.TempDir(), "compose.yaml")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if name, plain, err := nameIn(path); name != want.name || plain != want.plain || err != nil {
			t.Errorf("%q: %q %v %v", content, name, plain, err)
		}
	}
}

func TestSplitRemote(t *testing.T) {
	for arg, want := range map[string]string{
		"web:/a": "web /a", "shop/web.1:/a:b": "shop/web.1 /a:b", "web:": "web ",
		"./web:/a": "", "/abs:x": "", "plain": "", "-": "", ":/a": "", "../x:y": "",
	} {
		target, path, remote := splitRemote(arg)
		got := ""
		if remote {
			got = target + " " + path
		}
		if got != want {
			t.Errorf("%q: %q, want %q", arg, got, want)
		}
	}
}

func TestProjectName(t *testing.T) {
	for dir, want := range map[string]string{"My.Dir": "mydir", "_-x_y": "x_y", "Zürich 1": "zrich1"} {
		if got := projectName(dir); got != want {
			t.Errorf("%q: %q", dir, got)
		}
	}
}
