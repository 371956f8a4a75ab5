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

// Pull shows the steps of moving an image: a pull, a push or a bootstrap.
type Pull struct {
	w     io.Writer
	title string
	live  *terminal.Live
	order []string
	last  map[string]*gantryv1.Progress
	drawn time.Time
}

// NewPull shows progress on w: in place if live is given, else one line for each change of a step.
func NewPull(w io.Writer, title string, live *terminal.Live) *Pull {
	return &Pull{w: w, title: printable.Line(title), live: live, last: map[string]*gantryv1.Progress{}}
}

// Event shows one step. Steps without a name and status are not shown.
func (p *Pull) Event(e *gantryv1.Progress) {
	if e.GetId() == "" && e.GetStatus() == "" {
		return
	}
	old, known := p.last[e.GetId()]
	if !known {
		p.order = append(p.order, e.GetId())
	}
	p.last[e.GetId()] = e
	changed := !known || old.GetStatus() != e.GetStatus() || old.GetDetail() != e.GetDetail()
	switch {
	case p.live == nil && changed:
		fmt.Fprintf(p.w, "%s: %s\n", p.title, p.line(e))
	case p.live != nil && (changed || time.Since(p.drawn) > pause):
		p.draw()
	}
}

func (p *Pull) draw() {
	p.drawn = time.Now()
	lines := []string{p.title}
	for _, id := range p.order {
		lines = append(lines, "  "+p.line(p.last[id]))
	}
	p.live.Draw(lines)
}

func (p *Pull) line(e *gantryv1.Progress) string {
	id := e.GetId()
	// Digests are for machines; twelve letters tell layers apart.
	if algorithm, hex, ok := strings.Cut(id, ":"); ok && algorithm == "sha256" && len(hex) >= 12 {
		id = hex[:12]
	}
	line := strings.TrimSpace(printable.Line(id + " " + e.GetStatus()))
	switch {
	case p.live != nil && e.GetTotal() > 0 && e.GetCurrent() < e.GetTotal():
		line += " " + bar(e.GetCurrent(), e.GetTotal()) + " " + human.Size(e.GetCurrent()) + " / " + human.Size(e.GetTotal())
	case e.GetTotal() > 0:
		line += " " + human.Size(e.GetTotal())
	}
	if e.GetDetail() != "" {
		line += " " + printable.Line(e.GetDetail())
	}
	return line
}

func bar(current, total int64) string {
	const width = 24
	n := int(min(max(current, 0), total) * width / total)
	return "[" + strings.Repeat("=", n) + strings.Repeat(" ", width-n) + "]"
}

// Close ends the display.
func (p *Pull) Close() {
	if p.live != nil && len(p.order) > 0 {
		p.draw()
	}
}
