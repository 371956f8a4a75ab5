package progress

import (
	"fmt"
	"strings"
	"time"

	"github.com/gantryd/gantry/cli/terminal"
)

// area shows all steps in place, finished ones too, as BuildKit's own display does.
type area struct {
	title string
	live  *terminal.Live
	style terminal.Style
	begun time.Time
	drawn time.Time
}

// pause keeps a fast build from spending its time on drawing.
const pause = 50 * time.Millisecond

func (a *area) changed(b *Build, s *step, what change) {
	// Only the end of a failed step's output is shown, so no more is kept.
	const most = 256 << 10
	if n := len(s.pending); n > 2*most {
		s.pending = append([]byte(nil), s.pending[n-most:]...)
	}
	if what == finished || time.Since(a.drawn) > pause {
		a.tick(b)
	}
}

func (a *area) tick(b *Build) {
	a.drawn = time.Now()
	a.live.Draw(a.lines(b, a.drawn))
}

func (a *area) lines(b *Build, now time.Time) []string {
	done := 0
	for _, s := range b.steps {
		if s.cached || !s.finished.IsZero() {
			done++
		}
	}
	lines := []string{fmt.Sprintf("[+] Building %s %s (%d/%d)", a.title, seconds(now.Sub(a.begun)), done, len(b.steps))}
	for _, s := range b.shown() {
		lines = append(lines, a.step(s, now)...)
	}
	return lines
}

// shown keeps a long build readable: the steps that run, and the last that ended.
func (b *Build) shown() []*step {
	const most = 16
	var out []*step
	skip := len(b.steps) - most
	for i, s := range b.steps {
		if i >= skip || s.running() || s.failure != "" {
			out = append(out, s)
		}
	}
	return out
}

func (a *area) step(s *step, now time.Time) []string {
	switch {
	case s.failure != "":
		return []string{a.style.Paint(terminal.Red, " => ERROR "+s.name) + " " + seconds(s.finished.Sub(s.started))}
	case s.cached:
		return []string{a.style.Paint(terminal.Blue, " => CACHED "+s.name)}
	case !s.finished.IsZero():
		return []string{a.style.Paint(terminal.Blue, " => "+s.name) + " " + seconds(s.finished.Sub(s.started))}
	case s.started.IsZero():
		return []string{a.style.Paint(terminal.Faint, " => "+s.name)}
	}
	lines := []string{" => " + s.name + " " + seconds(now.Sub(s.started))}
	for _, st := range s.statuses {
		if !st.GetCompleted() {
			lines = append(lines, " => => "+statusLine(st))
		}
	}
	for _, line := range s.tail {
		lines = append(lines, a.style.Paint(terminal.Faint, " => => # "+line))
	}
	return lines
}

func (a *area) close(b *Build, failed error) {
	a.tick(b)
	if failed == nil {
		return
	}
	for _, s := range b.steps {
		if s.failure != "" && len(s.pending) > 0 {
			lines := s.takeLines(true)
			if n := len(lines); n > 40 {
				lines = lines[n-40:]
			}
			a.live.Above("------\n > " + s.name + ":\n" + strings.Join(lines, "\n") + "\n------")
			a.live.Draw(nil)
		}
	}
}
