// Package progress shows long work the way people know it from BuildKit: numbered steps line by line for files and
// pipes, and a list that changes in place on a terminal.
//
// A display is made with NewBuild or NewPull, fed with events in order and closed once. It is not safe in parallel; the
// terminal display redraws by itself only when fed, so call Tick to keep clocks moving.
package progress

import (
	"fmt"
	"io"
	"strings"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/cli/printable"
	"github.com/gantryd/gantry/cli/terminal"
)

// Build shows the events of a build.
type Build struct {
	view     view
	steps    []*step
	begun    int
	byDigest map[string]*step
	warnings []*gantryv1.BuildEvent_Warning
}

// view is how steps reach a person: lines or a live area.
type view interface {
	changed(b *Build, s *step, what change)
	tick(b *Build)
	close(b *Build, failed error)
}

type change int

const (
	started change = iota
	logged
	moved
	finished
)

type step struct {
	number   int
	digest   string
	name     string
	started  time.Time
	finished time.Time
	cached   bool
	failure  string
	statuses []*gantryv1.BuildEvent_Status
	fresh    *gantryv1.BuildEvent_Status
	// Bytes that came since the view last asked, and the last lines for a live area.
	pending []byte
	tail    []string
}

func (s *step) running() bool { return !s.started.IsZero() && s.finished.IsZero() && !s.cached }

// NewBuild shows a build on w: in place if live is given, else in plain lines.
func NewBuild(w io.Writer, title string, live *terminal.Live, style terminal.Style) *Build {
	b := &Build{byDigest: map[string]*step{}, view: &plain{w: w}}
	if live != nil {
		b.view = &area{title: title, live: live, style: style, begun: time.Now()}
	}
	return b
}

// Event shows one event. Images and SSH data are not shown.
func (b *Build) Event(e *gantryv1.BuildEvent) {
	switch e := e.GetEvent().(type) {
	case *gantryv1.BuildEvent_Vertex_:
		b.vertex(e.Vertex)
	case *gantryv1.BuildEvent_Status_:
		if s := b.byDigest[e.Status.GetVertex()]; s != nil {
			s.status(e.Status)
			b.view.changed(b, s, moved)
		}
	case *gantryv1.BuildEvent_Log_:
		if s := b.byDigest[e.Log.GetVertex()]; s != nil {
			s.log(e.Log.GetData())
			b.view.changed(b, s, logged)
		}
	case *gantryv1.BuildEvent_Warning_:
		b.warnings = append(b.warnings, e.Warning)
	}
}

func (b *Build) vertex(v *gantryv1.BuildEvent_Vertex) {
	s := b.byDigest[v.GetDigest()]
	if s == nil {
		s = &step{digest: v.GetDigest()}
		b.byDigest[s.digest] = s
		b.steps = append(b.steps, s)
	}
	s.name = printable.Line(v.GetName())
	// Steps are announced from the last to the first; people count them as they begin.
	if s.number == 0 && (v.GetStartedAt() != nil || v.GetCached() || v.GetCompletedAt() != nil) {
		b.begun++
		s.number = b.begun
	}
	if v.GetStartedAt() != nil {
		fresh := s.started.IsZero()
		s.started = v.GetStartedAt().AsTime()
		if fresh {
			b.view.changed(b, s, started)
		}
	}
	was := s.cached || !s.finished.IsZero()
	s.cached = s.cached || v.GetCached()
	if v.GetCompletedAt() != nil {
		s.finished = v.GetCompletedAt().AsTime()
	}
	s.failure = printable.Text(v.GetError())
	if !was && (s.cached || !s.finished.IsZero()) {
		b.view.changed(b, s, finished)
	}
}

func (s *step) status(st *gantryv1.BuildEvent_Status) {
	s.fresh = st
	for i, old := range s.statuses {
		if old.GetId() == st.GetId() {
			s.statuses[i] = st
			return
		}
	}
	s.statuses = append(s.statuses, st)
}

const tailLines = 6

func (s *step) log(data []byte) {
	s.pending = append(s.pending, data...)
	for _, line := range strings.Split(strings.TrimRight(string(data), "\n"), "\n") {
		if line = strings.TrimRight(line, "\r"); line != "" {
			s.tail = append(s.tail, printable.Line(line))
		}
	}
	if n := len(s.tail); n > tailLines {
		s.tail = s.tail[n-tailLines:]
	}
}

// takeLines removes whole lines from what is pending; all of it if rest is set.
func (s *step) takeLines(rest bool) []string {
	text := string(s.pending)
	end := strings.LastIndexByte(text, '\n') + 1
	if rest {
		end = len(text)
	}
	s.pending = append(s.pending[:0], text[end:]...)
	if end == 0 {
		return nil
	}
	lines := strings.Split(strings.TrimSuffix(text[:end], "\n"), "\n")
	for i, line := range lines {
		lines[i] = printable.Line(strings.TrimRight(line, "\r"))
	}
	return lines
}

// Tick redraws what depends on the clock.
func (b *Build) Tick() { b.view.tick(b) }

// Close ends the display; failed is why the build ended, nil if it worked.
func (b *Build) Close(failed error) { b.view.close(b, failed) }

// Warnings gives the build's warnings as lines.
func (b *Build) Warnings() []string {
	var out []string
	for _, w := range b.warnings {
		line := w.GetMessage()
		if w.GetRule() != "" {
			line = w.GetRule() + ": " + line
		}
		if w.GetLine() > 0 {
			file := w.GetFile()
			if file == "" {
				file = "Dockerfile"
			}
			line = fmt.Sprintf("%s:%d: %s", file, w.GetLine(), line)
		}
		out = append(out, printable.Line(line))
	}
	return out
}

func statusLine(st *gantryv1.BuildEvent_Status) string {
	line := printable.Line(st.GetId())
	switch {
	case st.GetTotal() > 0:
		line += " " + human.Size(st.GetCurrent()) + " / " + human.Size(st.GetTotal())
	case st.GetCurrent() > 0:
		line += " " + human.Size(st.GetCurrent())
	}
	if st.GetCompleted() {
		line += " done"
	}
	return line
}
