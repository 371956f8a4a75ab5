package compose

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/gantryd/gantry/fault"
)

// report gathers what is wrong, so that one run names everything.
type report struct {
	src      *sources
	problems []problem
	warnings []Warning
}

type problem struct {
	kind    fault.Kind
	at      position
	key     string
	message string
	hint    string
}

// maxProblems keeps the error of a hostile file readable.
const maxProblems = 20

func (r *report) matrix(path []string, e *Entry) {
	if e.Support == Refused {
		r.refuse(path, e.Note)
		return
	}
	r.warn(path, "%s", e.Note)
}

// refuse says that Gantry cannot do a key or value. The note is a reason, then "; " and what to do instead.
func (r *report) refuse(path []string, note string) {
	reason, hint, _ := strings.Cut(note, "; ")
	r.add(fault.Unsupported, path, "not supported: "+reason, hint)
}

// invalid says that a value is wrong.
func (r *report) invalid(path []string, hint, format string, args ...any) {
	r.add(fault.Invalid, path, fmt.Sprintf(format, args...), hint)
}

func (r *report) add(kind fault.Kind, path []string, message, hint string) {
	if hint == "" {
		hint = "remove the key; doc/compose.md lists what is supported"
	}
	r.problems = append(r.problems, problem{kind, r.src.locate(path), keyName(path), clean(message), hint})
}

func (r *report) warn(path []string, format string, args ...any) {
	at := r.src.locate(path)
	r.warnings = append(r.warnings, Warning{File: at.file, Line: at.line, Key: keyName(path), Message: clean(fmt.Sprintf(format, args...))})
}

func (r *report) sortedWarnings() []Warning {
	slices.SortStableFunc(r.warnings, func(a, b Warning) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), strings.Compare(a.Key, b.Key))
	})
	return slices.Compact(r.warnings)
}

// err returns all problems as one error, by place in the files.
func (r *report) err() error {
	if len(r.problems) == 0 {
		return nil
	}
	slices.SortStableFunc(r.problems, func(a, b problem) int {
		return cmp.Or(strings.Compare(a.at.file, b.at.file), cmp.Compare(a.at.line, b.at.line), strings.Compare(a.key, b.key))
	})
	var lines []string
	for i, p := range r.problems {
		if i == maxProblems {
			lines = append(lines, fmt.Sprintf("and %d more", len(r.problems)-i))
			break
		}
		lines = append(lines, p.String())
	}
	first := r.problems[0]
	return fault.New(first.kind, "%s", strings.Join(lines, "\n")).WithHint("%s", first.hint)
}

func (p problem) String() string {
	s := p.message
	if p.key != "" {
		s = p.key + ": " + s
	}
	if at := p.at.String(); at != "" {
		s = at + ": " + s
	}
	return s
}

// keyName is a path as people write it: services.web.ports[0].mode.
func keyName(path []string) string {
	var b strings.Builder
	for i, p := range path {
		switch {
		case i > 0 && isIndex(p):
			b.WriteString("[" + p + "]")
			continue
		case i > 0:
			b.WriteByte('.')
		}
		b.WriteString(shorten(p))
	}
	return clean(b.String())
}

func isIndex(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

const maxShown = 200

func shorten(s string) string {
	if len(s) > maxShown {
		return strings.ToValidUTF8(s[:maxShown], "") + "…"
	}
	return s
}

// clean makes text from a file safe for a terminal: control characters are shown, not obeyed.
func clean(s string) string {
	var b strings.Builder
	for _, c := range s {
		if c < ' ' && c != '\n' || c == 0x7f || c >= 0x80 && c < 0xa0 || c == '\u2028' || c == '\u2029' || c == '\u202e' {
			fmt.Fprintf(&b, `\x%02x`, c)
			continue
		}
		b.WriteRune(c)
	}
	return b.String()
}
