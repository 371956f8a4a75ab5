package build

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/client"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// tailBytes is how much of each step's output is remembered for the message when it fails.
const tailBytes = 4 << 10

// progress passes BuildKit's status on as events and remembers what a failure message needs.
type progress struct {
	emit func(*gantryv1.BuildEvent) error
	stop context.CancelCauseFunc

	mu     sync.Mutex
	closed bool
	names  map[string]string
	tails  map[string][]byte
}

// close makes sure that emit is not called any more.
func (p *progress) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
}

// send emits under p.mu.
func (p *progress) send(e *gantryv1.BuildEvent) {
	if p.closed {
		return
	}
	if err := p.emit(e); err != nil {
		p.closed = true
		p.stop(fault.Wrap(fault.Canceled, err, "the client went away"))
	}
}

func (p *progress) warn(all []*gantryv1.BuildEvent_Warning) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range all {
		p.send(&gantryv1.BuildEvent{Event: &gantryv1.BuildEvent_Warning_{Warning: w}})
	}
}

func (p *progress) take(s *client.SolveStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v := range s.Vertexes {
		p.remember(string(v.Digest), v.Name)
		p.send(vertexEvent(v))
	}
	for _, v := range s.Statuses {
		p.send(&gantryv1.BuildEvent{Event: &gantryv1.BuildEvent_Status_{Status: &gantryv1.BuildEvent_Status{
			Vertex: string(v.Vertex), Id: v.ID, Current: v.Current, Total: v.Total, Completed: v.Completed != nil}}})
	}
	for _, l := range s.Logs {
		p.record(string(l.Vertex), l.Data)
		p.send(&gantryv1.BuildEvent{Event: &gantryv1.BuildEvent_Log_{Log: &gantryv1.BuildEvent_Log{
			Vertex: string(l.Vertex), Stream: int32(l.Stream), Data: l.Data}}})
	}
	for _, w := range s.Warnings {
		p.send(warningEvent(w))
	}
}

func (p *progress) remember(vertex, name string) {
	if p.names == nil {
		p.names = map[string]string{}
	}
	p.names[vertex] = name
}

func (p *progress) record(vertex string, data []byte) {
	if p.tails == nil {
		p.tails = map[string][]byte{}
	}
	tail := append(p.tails[vertex], data...)
	if extra := len(tail) - tailBytes; extra > 0 {
		tail = append([]byte(nil), tail[extra:]...)
	}
	p.tails[vertex] = tail
}

// last returns up to n of the last lines that a step wrote.
func (p *progress) last(vertex string, n int) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := strings.TrimRight(string(p.tails[vertex]), "\n")
	if text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	return lines[max(0, len(lines)-n):]
}

func (p *progress) name(vertex string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.names[vertex]
}

func vertexEvent(v *client.Vertex) *gantryv1.BuildEvent {
	out := &gantryv1.BuildEvent_Vertex{
		Digest: string(v.Digest), Name: v.Name, Cached: v.Cached, Error: v.Error,
		StartedAt: stamp(v.Started), CompletedAt: stamp(v.Completed),
	}
	for _, in := range v.Inputs {
		out.Inputs = append(out.Inputs, string(in))
	}
	return &gantryv1.BuildEvent{Event: &gantryv1.BuildEvent_Vertex_{Vertex: out}}
}

func stamp(t *time.Time) *timestamppb.Timestamp {
	if t == nil {
		return nil
	}
	return timestamppb.New(*t)
}

// warningEvent takes BuildKit's "Rule: message (line N)" apart.
func warningEvent(w *client.VertexWarning) *gantryv1.BuildEvent {
	out := &gantryv1.BuildEvent_Warning{Vertex: string(w.Vertex), Message: string(w.Short), Url: w.URL}
	if rule, message, ok := strings.Cut(out.Message, ": "); ok && !strings.Contains(rule, " ") {
		out.Rule, out.Message = rule, message
	}
	if len(w.Range) > 0 && w.Range[0].Start != nil {
		out.Line = w.Range[0].Start.Line
		if i := strings.LastIndex(out.Message, " (line "); i > 0 {
			out.Message = out.Message[:i]
		}
	}
	if w.SourceInfo != nil {
		out.File = w.SourceInfo.Filename
	}
	var detail []string
	for _, d := range w.Detail {
		detail = append(detail, string(d))
	}
	out.Detail = strings.Join(detail, "\n")
	return &gantryv1.BuildEvent{Event: &gantryv1.BuildEvent_Warning_{Warning: out}}
}
