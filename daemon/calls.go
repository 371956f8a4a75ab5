package daemon

import (
	"context"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/internal/seal"
)

// servers is the way from a machine to the servers of its cluster. The local one comes first if it answers.
type servers struct {
	machine *machine
	local   *http.Client // to this machine's own server role, by its Unix socket
	remote  *http.Client
	ready   atomic.Bool // the local server answers

	// Each use has turns of its own: others between two tries would have them come to the same server again and again.
	sessions, trackers turns
	answered           atomic.Pointer[string] // base of the server that answered a call last
}

// turns is whose turn it is: always that of the server that was tried the longest time ago. What was just left, or did not
// answer, comes last, also while the list of servers changes.
type turns struct {
	mu    sync.Mutex
	tries int
	tried map[string]int // by base, the number of the last try
	lead  string         // base of the server that is said to lead
}

// refer has a server be the next that is tried, since another one says that it leads. One that the others have sent here from is
// not: they may all be wrong, and send whoever asks to and fro.
func (t *turns) refer(base string, servers int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if last, tried := t.tried[base]; !tried || t.tries-last >= servers-1 {
		t.lead = base
	}
}

func (t *turns) next(ways []way) way {
	t.mu.Lock()
	defer t.mu.Unlock()
	chosen := ways[0]
	for _, w := range ways[1:] {
		if w.base == t.lead || chosen.base != t.lead && t.tried[w.base] < t.tried[chosen.base] {
			chosen = w
		}
	}
	t.lead = ""
	if t.tried == nil {
		t.tried = map[string]int{}
	}
	t.tries++
	t.tried[chosen.base] = t.tries
	return chosen
}

const callTimeout = 10 * time.Second

func newServers(m *machine, inner string) *servers {
	return &servers{machine: m, local: unixClient("unix://" + inner), remote: m.keeper.Client(identity.AnyServer)}
}

// way is one server: how to call it, and its base URL.
type way struct {
	client *http.Client
	base   string
}

// localBase is the base of the way to this machine's own server role.
const localBase = "http://gantryd"

func (s *servers) ways() []way {
	var out []way
	for _, a := range s.machine.Servers() {
		out = append(out, way{s.remote, "https://" + a})
	}
	if s.ready.Load() || len(out) == 0 && s.machine.isServer() {
		out = append([]way{{s.local, localBase}}, out...)
	}
	return out
}

// Session opens a session with the server whose turn it is; every call is the next one's turn, so that an agent which tries
// again comes to the leader.
func (s *servers) Session(ctx context.Context) *connect.BidiStreamForClient[gantryv1.NodeReport, gantryv1.NodeUpdate] {
	w := s.next(&s.sessions)
	return gantryv1connect.NewNodeSessionServiceClient(w.client, w.base).Session(ctx)
}

// Refer is part of nodelink.Guide. Only what is a server for all this machine knows is tried.
func (s *servers) Refer(leader string) {
	base, ways := "https://"+leader, s.ways()
	if leader == s.machine.Node().ApiAddress {
		base = localBase
	}
	for _, w := range ways {
		if w.base == base {
			s.sessions.refer(base, len(ways))
		}
	}
}

// tracker is the way to the leader's tracker of images, through whichever server's turn it is.
func (s *servers) tracker(context.Context) (gantryv1connect.NodeImageServiceClient, error) {
	w := s.next(&s.trackers)
	return gantryv1connect.NewNodeImageServiceClient(w.client, w.base), nil
}

func (s *servers) next(t *turns) way {
	ways := s.ways()
	if len(ways) == 0 {
		return way{s.remote, "https://no-server-is-known"}
	}
	return t.next(ways)
}

// each calls servers in turn until one answers other than that it cannot just now. It begins with the one that did so last.
func (s *servers) each(ctx context.Context, call func(context.Context, way) error) error {
	err := error(fault.New(fault.Unavailable, "this machine knows no server").WithHint("was it joined? its record is %s", recordFile))
	ways := s.ways()
	if last := s.answered.Load(); last != nil {
		if i := slices.IndexFunc(ways, func(w way) bool { return w.base == *last }); i > 0 {
			ways[0], ways[i] = ways[i], ways[0]
		}
	}
	for _, w := range ways {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		err = wire.Decode(call(ctx, w))
		cancel()
		if err == nil || !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Timeout) {
			s.answered.Store(&w.base)
			return err
		}
	}
	return err
}

// ask calls one method of the MachineService on whichever server answers.
func ask[Req, Resp any](ctx context.Context, s *servers, req *Req,
	method func(gantryv1connect.MachineServiceClient, context.Context, *connect.Request[Req]) (*connect.Response[Resp], error),
) (*Resp, error) {
	var out *Resp
	err := s.each(ctx, func(ctx context.Context, w way) error {
		resp, err := method(gantryv1connect.NewMachineServiceClient(w.client, w.base), ctx, connect.NewRequest(req))
		if err == nil {
			out = resp.Msg
		}
		return err
	})
	return out, err
}

// renew gets a new certificate under the roots and the role that the cluster has now.
func (s *servers) renew(ctx context.Context) (*gantryv1.RenewResponse, error) {
	key, request, err := identity.Request()
	if err != nil {
		return nil, err
	}
	resp, err := ask(ctx, s, &gantryv1.RenewRequest{CertificateRequest: request}, gantryv1connect.MachineServiceClient.Renew)
	if err != nil {
		return nil, err
	}
	// A server's key goes first: with the certificate the machine begins to be one.
	if len(resp.SecretsKey) > 0 {
		if err := seal.Import(filepath.Join(s.machine.root, sealFile), resp.SecretsKey); err != nil {
			return nil, err
		}
	}
	return resp, s.machine.keeper.Replace(resp.Certificate, key, resp.Roots)
}
