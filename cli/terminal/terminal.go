// Package terminal draws lines that change in place, and switches a terminal to raw input and back.
//
// A Live area is safe in parallel. What is not a terminal is never drawn on: ask Is first and print plain lines.
package terminal

import (
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/term"
)

// Is reports whether f is a terminal.
func Is(f *os.File) bool { return f != nil && term.IsTerminal(int(f.Fd())) }

// Size returns columns and rows of f, 80 by 24 if it has none.
func Size(f *os.File) (columns, rows int) {
	if c, r, err := term.GetSize(int(f.Fd())); err == nil && c > 0 && r > 0 {
		return c, r
	}
	return 80, 24
}

// Raw switches f to raw mode and returns what undoes it.
func Raw(f *os.File) (restore func(), err error) {
	old, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, err
	}
	var once sync.Once
	return func() { once.Do(func() { _ = term.Restore(int(f.Fd()), old) }) }, nil
}

// Live is an area at the bottom of a terminal that is drawn again and again.
type Live struct {
	mu    sync.Mutex
	w     io.Writer
	size  func() (columns, rows int)
	drawn int
}

// NewLive makes an area on f.
func NewLive(f *os.File) *Live {
	return &Live{w: f, size: func() (int, int) { return Size(f) }}
}

// NewLiveOn makes an area of a fixed size on any writer.
func NewLiveOn(w io.Writer, columns, rows int) *Live {
	return &Live{w: w, size: func() (int, int) { return columns, rows }}
}

// Draw replaces the area by lines, cut to the terminal's width and height.
func (l *Live) Draw(lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	columns, rows := l.size()
	// A line more than the screen has would scroll and could not be taken back.
	if limit := max(rows-1, 1); len(lines) > limit {
		lines = append(append([]string{}, lines[:limit-1]...), "…")
	}
	var b strings.Builder
	l.erase(&b)
	for _, line := range lines {
		b.WriteString(cut(line, columns))
		b.WriteByte('\n')
	}
	l.drawn = len(lines)
	_, _ = io.WriteString(l.w, b.String())
}

// Above prints text over the area, where it stays; the area is gone until the next Draw.
func (l *Live) Above(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	l.erase(&b)
	b.WriteString(strings.TrimSuffix(text, "\n") + "\n")
	l.drawn = 0
	_, _ = io.WriteString(l.w, b.String())
}

// Clear removes the area.
func (l *Live) Clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	l.erase(&b)
	l.drawn = 0
	_, _ = io.WriteString(l.w, b.String())
}

func (l *Live) erase(b *strings.Builder) {
	if l.drawn > 0 {
		b.WriteString("\x1b[" + strconv.Itoa(l.drawn) + "A\r\x1b[J")
	}
}

// cut shortens a line to columns; colour sequences take no room.
func cut(line string, columns int) string {
	width := 0
	for i := 0; i < len(line); {
		if line[i] == 0x1b {
			if end := strings.IndexByte(line[i:], 'm'); end >= 0 {
				i += end + 1
				continue
			}
		}
		_, n := utf8.DecodeRuneInString(line[i:])
		if width == columns-1 && i+n < len(line) {
			return line[:i] + "…" + reset(line)
		}
		width++
		i += n
	}
	return line
}

func reset(line string) string {
	if strings.Contains(line, "\x1b[") {
		return "\x1b[0m"
	}
	return ""
}

// Style colours text on a terminal. The zero value leaves it plain.
type Style struct{ On bool }

// The colours that are used, by what they mean.
const (
	Red    = "31"
	Green  = "32"
	Yellow = "33"
	Blue   = "34"
	Faint  = "2"
	Bold   = "1"
)

// Paint wraps s in a colour.
func (p Style) Paint(colour, s string) string {
	if !p.On {
		return s
	}
	return "\x1b[" + colour + "m" + s + "\x1b[0m"
}
