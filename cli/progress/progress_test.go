package progress_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/progress"
	"github.com/gantryd/gantry/cli/terminal"
)

func at(ms int) *timestamppb.Timestamp { return timestamppb.New(time.UnixMilli(1_000_000 + int64(ms))) }

func vertex(v *gantryv1.BuildEvent_Vertex) *gantryv1.BuildEvent {
	return &gantryv1.BuildEvent{Event: &gantryv1.BuildEvent_Vertex_{Vertex: v}}
}

func log(digest, text string) *gantryv1.BuildEvent {
	return &gantryv1.BuildEvent{Event: &gantryv1.BuildEvent_Log_{Log: &gantryv1.BuildEvent_Log{Vertex: digest, Data: []byte(text)}}}
}

func events() []*gantryv1.BuildEvent {
	return []*gantryv1.BuildEvent{
		vertex(&gantryv1.BuildEvent_Vertex{Digest: "a", Name: "[internal] load build definition"}),
		vertex(&gantryv1.BuildEvent_Vertex{Digest: "a", Name: "[internal] load build definition", StartedAt: at(0)}),
		{Event: &gantryv1.BuildEvent_Status_{Status: &gantryv1.BuildEvent_Status{Vertex: "a", Id: "transferring", Current: 10, Total: 2000}}},
		{Event: &gantryv1.BuildEvent_Status_{Status: &gantryv1.BuildEvent_Status{Vertex: "a", Id: "transferring", Current: 2000, Total: 2000, Completed: true}}},
		vertex(&gantryv1.BuildEvent_Vertex{Digest: "a", Name: "[internal] load build definition", StartedAt: at(0), CompletedAt: at(140)}),
		vertex(&gantryv1.BuildEvent_Vertex{Digest: "b", Name: "[1/3] FROM debian", Cached: true}),
		vertex(&gantryv1.BuildEvent_Vertex{Digest: "c", Name: "[2/3] RUN make", StartedAt: at(150)}),
		log("c", "cc a.c\ncc b"),
		vertex(&gantryv1.BuildEvent_Vertex{Digest: "d", Name: "[3/3] RUN other", StartedAt: at(160)}),
		log("c", ".c\x1b[2J\n"),
		{Event: &gantryv1.BuildEvent_Warning_{Warning: &gantryv1.BuildEvent_Warning{Rule: "UnpinnedBase", Message: "debian has no tag", Line: 3}}},
		vertex(&gantryv1.BuildEvent_Vertex{Digest: "c", Name: "[2/3] RUN make", StartedAt: at(150), CompletedAt: at(2650), Error: "exit code: 2"}),
	}
}

func TestPlainLines(t *testing.T) {
	var b strings.Builder
	p := progress.NewBuild(&b, "x", nil, terminal.Style{})
	for _, e := range events() {
		p.Event(e)
	}
	p.Close(errors.New("failed"))
	want := `#1 [internal] load build definition
#1 transferring 2kB / 2kB done
#1 DONE 0.1s

#2 [1/3] FROM debian
#2 CACHED

#3 [2/3] RUN make
#3 cc a.c
#3 ...

#4 [3/3] RUN other
#4 ...

#3 [2/3] RUN make
#3 cc b.c\x1b[2J
#3 ERROR: exit code: 2
`
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
	if w := p.Warnings(); len(w) != 1 || w[0] != "Dockerfile:3: UnpinnedBase: debian has no tag" {
		t.Errorf("warnings: %q", w)
	}
}

func TestLiveShowsFailedStepsOutput(t *testing.T) {
	var b strings.Builder
	p := progress.NewBuild(nil, "web", terminal.NewLiveOn(&b, 80, 24), terminal.Style{})
	for _, e := range events() {
		p.Event(e)
	}
	p.Close(errors.New("failed"))
	for _, want := range []string{
		"[+] Building web", "(3/4)\n", " => CACHED [1/3] FROM debian\n", " => ERROR [2/3] RUN make 2.5s\n",
		"------\n > [2/3] RUN make:\ncc a.c\ncc b.c\\x1b[2J\n------\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in:\n%s", want, b.String())
		}
	}
}

func TestPull(t *testing.T) {
	layer := "sha256:0123456789abcdef0123456789abcdef"
	steps := []*gantryv1.Progress{
		{Id: "debian:12", Status: "resolving"},
		{Id: layer, Status: "downloading", Current: 1, Total: 100_000},
		{Id: layer, Status: "downloading", Current: 50_000, Total: 100_000},
		{Id: layer, Status: "done", Current: 100_000, Total: 100_000},
		{Image: &gantryv1.Image{}},
	}
	var b, live strings.Builder
	p, l := progress.NewPull(&b, "debian", nil), progress.NewPull(nil, "debian", terminal.NewLiveOn(&live, 80, 24))
	for _, s := range steps {
		p.Event(s)
		l.Event(s)
	}
	p.Close()
	l.Close()
	want := "debian: debian:12 resolving\ndebian: 0123456789ab downloading 100kB\ndebian: 0123456789ab done 100kB\n"
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
	if !strings.Contains(live.String(), "  0123456789ab downloading [                        ] 1B / 100kB\n") {
		t.Errorf("live:\n%s", live.String())
	}
}
