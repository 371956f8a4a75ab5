package progress

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// plain prints one line per event, with a blank line where another step takes over.
type plain struct {
	w    io.Writer
	last *step
	// A step that has ended, its last line not printed yet: numbers that belong to it may come after the end.
	ended *step
}

func (p *plain) changed(_ *Build, s *step, what change) {
	if p.ended != s {
		p.flush()
	}
	switch what {
	case started:
		// A step may be announced as started and turn out cached; its heading is the same.
		p.heading(s)
	case logged:
		p.lines(s, false)
	case moved:
		if s.fresh.GetCompleted() {
			p.heading(s)
			fmt.Fprintf(p.w, "#%d %s\n", s.number, statusLine(s.fresh))
		}
	case finished:
		p.lines(s, true)
		p.heading(s)
		p.ended = s
	}
}

// flush prints the last line of the step that has ended.
func (p *plain) flush() {
	if p.ended != nil {
		p.outcome(p.ended)
		p.ended = nil
	}
}

func (p *plain) heading(s *step) {
	if p.last == s {
		return
	}
	if p.last != nil {
		if p.last.running() {
			fmt.Fprintf(p.w, "#%d ...\n", p.last.number)
		}
		fmt.Fprintln(p.w)
	}
	fmt.Fprintf(p.w, "#%d %s\n", s.number, s.name)
	p.last = s
}

func (p *plain) lines(s *step, rest bool) {
	lines := s.takeLines(rest)
	if len(lines) == 0 {
		return
	}
	p.heading(s)
	for _, line := range lines {
		fmt.Fprintf(p.w, "#%d %s\n", s.number, line)
	}
}

func (p *plain) outcome(s *step) {
	switch {
	case s.failure != "":
		fmt.Fprintf(p.w, "#%d ERROR: %s\n", s.number, strings.ReplaceAll(s.failure, "\n", fmt.Sprintf("\n#%d ", s.number)))
	case s.cached:
		fmt.Fprintf(p.w, "#%d CACHED\n", s.number)
	default:
		fmt.Fprintf(p.w, "#%d DONE %s\n", s.number, seconds(s.finished.Sub(s.started)))
	}
}

func (p *plain) tick(*Build) { p.flush() }

func (p *plain) close(b *Build, _ error) {
	p.flush()
	for _, s := range b.steps {
		p.lines(s, true)
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", max(d, 0).Seconds()) }
