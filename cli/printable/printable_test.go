package printable_test

import (
	"strings"
	"testing"

	"github.com/gantryd/gantry/cli/printable"
)

func TestLineAndText(t *testing.T) {
	for in, want := range map[string]string{
		"plain é ✔":            "plain é ✔",
		"a\x1b[2Jb":            `a\x1b[2Jb`,
		"bell\a\r":             `bell\x07\r`,
		"rtl\u202eevil":        `rtl\u202eevil`,
		"bad\xffutf8":          `bad\xffutf8`,
		"c1\u009b31m":          `c1\u009b31m`,
		"two\nlines\ttab":      `two\nlines\ttab`,
		"genuine \ufffd stays": "genuine \ufffd stays",
	} {
		if got := printable.Line(in); got != want {
			t.Errorf("Line(%q) = %q, want %q", in, got, want)
		}
	}
	if got := printable.Text("two\nlines\ttab\x1b"); got != "two\nlines\ttab\\x1b" {
		t.Errorf("Text = %q", got)
	}
}

func TestFilterKeepsColoursAndStopsTheRest(t *testing.T) {
	in := "\x1b[1;31mred\x1b[0m é\r\n\x1b]0;title\a\x1b[2J\x1b[?1049h\ttab\rover\n"
	want := "\x1b[1;31mred\x1b[0m é\r\n" + `\x1b]0;title\x07\x1b[2J\x1b[?1049h` + "\ttab" + `\r` + "over\n"
	// The result must not depend on how the bytes were cut.
	for size := 1; size <= len(in); size++ {
		var b strings.Builder
		f := printable.NewFilter(&b)
		for i := 0; i < len(in); i += size {
			if _, err := f.Write([]byte(in[i:min(i+size, len(in))])); err != nil {
				t.Fatal(err)
			}
		}
		if b.String() != want {
			t.Fatalf("cut by %d:\n got %q\nwant %q", size, b.String(), want)
		}
	}
}
