// Package printable makes text from elsewhere safe to show on a terminal.
//
// Names, errors and log lines come from images, containers and other people; a control sequence in one could rewrite
// the screen or type for the user. Line and Text are for words inside of Gantry's own output, Filter for logs. Data
// that goes to a file or a pipe needs none of this.
package printable

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Line returns s on one line with every character that is not a printing one written as an escape.
func Line(s string) string { return escape(s, "") }

// Text is Line, but newlines and tabs stay.
func Text(s string) string { return escape(s, "\n\t") }

func escape(s, keep string) string {
	if clean(s, keep) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		writeRune(&b, r, s[:n], keep)
		s = s[n:]
	}
	return b.String()
}

func clean(s, keep string) bool {
	for _, r := range s {
		if (r == utf8.RuneError || !unicode.IsPrint(r)) && !strings.ContainsRune(keep, r) {
			return false
		}
	}
	return true
}

func writeRune(b *strings.Builder, r rune, raw, keep string) {
	switch {
	case r == utf8.RuneError && len(raw) == 1:
		fmt.Fprintf(b, `\x%02x`, raw[0])
	case unicode.IsPrint(r) || strings.ContainsRune(keep, r):
		b.WriteRune(r)
	case r == '\n':
		b.WriteString(`\n`)
	case r == '\t':
		b.WriteString(`\t`)
	case r == '\r':
		b.WriteString(`\r`)
	case r < 0x80:
		fmt.Fprintf(b, `\x%02x`, r)
	default:
		// Among them the marks that reverse the direction of writing.
		fmt.Fprintf(b, `\u%04x`, r)
	}
}

// Filter passes log bytes to a terminal: text, newlines, tabs and colours go through, all else of control is escaped.
type Filter struct {
	w io.Writer
	// An unfinished character or colour sequence, waiting for the next write.
	rest []byte
}

// NewFilter makes a filter in front of w. It is not safe in parallel.
func NewFilter(w io.Writer) *Filter { return &Filter{w: w} }

// Write filters p. It always takes all of p unless w fails.
func (f *Filter) Write(p []byte) (int, error) {
	in := append(f.rest, p...)
	var b strings.Builder
	for len(in) > 0 {
		n, ok := f.step(&b, in)
		if !ok {
			break
		}
		in = in[n:]
	}
	f.rest = bytes.Clone(in)
	_, err := io.WriteString(f.w, b.String())
	return len(p), err
}

// step handles what stands at the start of in; false if it needs more bytes to know.
func (f *Filter) step(b *strings.Builder, in []byte) (int, bool) {
	switch in[0] {
	case 0x1b:
		n, state := colour(in)
		if state == more {
			return 0, false
		}
		if state == yes {
			b.Write(in[:n])
			return n, true
		}
	case '\r':
		if len(in) == 1 {
			return 0, false
		}
		if in[1] == '\n' {
			b.WriteString("\r\n")
			return 2, true
		}
	}
	if !utf8.FullRune(in) {
		return 0, false
	}
	r, n := utf8.DecodeRune(in)
	writeRune(b, r, string(in[:n]), "\n\t")
	return n, true
}

type answer int

const (
	no answer = iota
	yes
	more
)

// colour says whether in starts with ESC [ digits ; m and how long that is.
func colour(in []byte) (int, answer) {
	const longest = 64
	if len(in) == 1 {
		return 0, more
	}
	if in[1] != '[' {
		return 0, no
	}
	for i := 2; i < len(in) && i < longest; i++ {
		switch c := in[i]; {
		case c == 'm':
			return i + 1, yes
		case c >= '0' && c <= '9', c == ';', c == ':':
		default:
			return 0, no
		}
	}
	if len(in) >= longest {
		return 0, no
	}
	return 0, more
}
