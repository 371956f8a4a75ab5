package daemon

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
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
