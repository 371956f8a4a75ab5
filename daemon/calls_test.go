package daemon

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/gantryd/gantry/agent/nodelink"
	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// sessions notes the servers that are asked for a session. Nobody answers.
type sessions map[string]bool

func (s sessions) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.Contains(r.URL.Path, "NodeSessionService") {
		s[r.URL.Host] = true
	}
	return nil, errors.New("nobody is there")
}

// TestEveryServerIsAskedForASession: as many tries as there are servers reach all of them, whatever else calls servers meanwhile.
func TestEveryServerIsAskedForASession(t *testing.T) {
	m := newMachine(t, Config{Root: t.TempDir(), Advertise: "10.0.0.1", Port: 7450})
	m.record.Servers = []string{"10.0.0.2:7450", "10.0.0.3:7450", "10.0.0.4:7450"}
	for between := range 4 {
		s, asked := newServers(m, "/nowhere"), sessions{}
		s.remote = &http.Client{Transport: asked}
		for range m.record.Servers {
			stream := s.Session(t.Context())
			_ = stream.Send(&gantryv1.NodeReport{})
			if _, err := stream.Receive(); err == nil {
				t.Fatal("somebody has answered")
			}
			for range between {
				tracker, err := s.tracker(t.Context())
				check(t, err)
				if _, err := tracker.Locate(t.Context(), connect.NewRequest(&gantryv1.LocateRequest{})); err == nil {
					t.Fatal("somebody has answered")
				}
			}
		}
		if len(asked) != len(m.record.Servers) {
			t.Errorf("with %d other calls after each, %v were asked for a session", between, asked)
		}
	}
}

// asking is the servers that are asked for a session, in turn.
type asking []string

func (o *asking) RoundTrip(r *http.Request) (*http.Response, error) {
	*o = append(*o, r.URL.Host)
	return nil, errors.New("nobody is there")
}

func (o *asking) ask(t *testing.T, s *servers) string {
	t.Helper()
	stream := s.Session(t.Context())
	_ = stream.Send(&gantryv1.NodeReport{})
	if _, err := stream.Receive(); err == nil {
		t.Fatal("somebody has answered")
	}
	return (*o)[len(*o)-1]
}

// TestTheServerThatIsSaidToLeadIsAskedNext: once, if this machine knows it as a server, and not in a circle.
func TestTheServerThatIsSaidToLeadIsAskedNext(t *testing.T) {
	m := newMachine(t, Config{Root: t.TempDir(), Advertise: "10.0.0.1", Port: 7450})
	m.record.Servers = []string{"a:1", "b:1", "c:1", "d:1"}
	s, asked := newServers(m, "/nowhere"), &asking{}
	s.remote, s.local = &http.Client{Transport: asked}, &http.Client{Transport: asked}
	var _ nodelink.Guide = s
	for _, c := range []struct{ says, next string }{
		{"", "a:1"},
		{"c:1", "c:1"},
		{"", "b:1"}, // it was only for once
		{"evil:1", "d:1"},
		{"try again", "a:1"},
		{"d:1", "c:1"}, // d was asked just now, and has sent this machine on
		{"b:1", "b:1"},
		{"10.0.0.1:7450", "d:1"}, // this machine's own server does not work
	} {
		s.Refer(c.says)
		if got := asked.ask(t, s); got != c.next {
			t.Fatalf("after %q, %s is asked and not %s: %v", c.says, got, c.next, *asked)
		}
	}
	s.ready.Store(true)
	s.Refer("10.0.0.1:7450")
	if got := asked.ask(t, s); got != "gantryd" {
		t.Fatalf("this machine leads, and %s is asked", got)
	}
}

// TestAServerThatDoesNotAnswerComesLast: also when this machine's own server comes and goes between the tries.
func TestAServerThatDoesNotAnswerComesLast(t *testing.T) {
	m := newMachine(t, Config{Root: t.TempDir(), Advertise: "10.0.0.1", Port: 7450})
	m.record.Servers = []string{"a:1", "b:1", "c:1"}
	for try := range 16 {
		s, asked := newServers(m, "/nowhere"), &asking{}
		s.remote, s.local = &http.Client{Transport: asked}, &http.Client{Transport: asked}
		for n := range 8 {
			s.ready.Store((try>>(n%4))&1 == 1)
			got := asked.ask(t, s)
			for _, before := range (*asked)[max(0, n-2):n] {
				if got == before {
					t.Fatalf("of three and four servers %s is asked again before all others: %v", got, *asked)
				}
			}
		}
	}
}

// TestCallsBeginWithTheServerThatAnswered: one that does not is waited for only once.
func TestCallsBeginWithTheServerThatAnswered(t *testing.T) {
	m := newMachine(t, Config{Root: t.TempDir(), Advertise: "10.0.0.1", Port: 7450})
	m.record.Servers = []string{"a:1", "b:1", "c:1"}
	s := newServers(m, "/nowhere")
	var asked []string
	sound := "https://b:1"
	call := func(_ context.Context, w way) error {
		asked = append(asked, strings.TrimPrefix(w.base, "https://"))
		if w.base != sound {
			return fault.New(fault.Unavailable, "nobody is there")
		}
		return nil
	}
	for range 2 {
		check(t, s.each(t.Context(), call))
	}
	sound = "https://c:1"
	for range 2 {
		check(t, s.each(t.Context(), call))
	}
	if want := []string{"a:1", "b:1", "b:1", "b:1", "a:1", "c:1", "c:1"}; !slices.Equal(asked, want) {
		t.Errorf("asked are %v, not %v", asked, want)
	}
}
