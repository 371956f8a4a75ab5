package converse

import "testing"

// The keys may come in one read or in several, and what only begins like them is input.
func TestDetachKeys(t *testing.T) {
	keys, err := DetachKeys("ctrl-p,ctrl-q")
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
		if _, err := DetachKeys(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
