package cluster

import (
	"crypto/tls"
	"io"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/etcdhttp"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"

	"github.com/gantryd/gantry/fault"
)

// door is where other members reach this one. etcd's own listener looks at who has signed a certificate and at what it says, and
// raft believes what comes in; so a machine that was removed could speak for all of them until its certificate ends. Here etcd
// listens on a socket that nobody uses, and the door passes on what comes from a machine that is a server now.
type door struct {
	peers    *Peers
	listener net.Listener
	log      *slog.Logger
	said     memory

	etcd http.Handler // set by open, as is the rest
	own  *embed.Etcd
	http *http.Server
	stop chan struct{}
	once sync.Once

	mu    sync.Mutex
	conns map[*tls.Conn]string // which machine is at the other end
}

const (
	peerRequest = 5 * time.Minute // for one, a whole snapshot among them; etcd's own limit
	peerHello   = 10 * time.Second
	doorLook    = 500 * time.Millisecond // between two looks at who is still a server
)

// newDoor listens; what comes in waits until open. Without peers it is nil.
func newDoor(o Options) (*door, error) {
	if o.Peers == nil {
		return nil, nil
	}
	u, err := url.Parse(o.Peers.Listen)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the address %q of this member cannot be read", o.Peers.Listen)
	}
	secret, err := peerTLS(o.Peers).ServerConfig()
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "this machine's certificate cannot be used between servers")
	}
	secret.NextProtos = nil              // members speak HTTP/1.1
	secret.SessionTicketsDisabled = true // a session that was resumed would bring back a certificate that has been replaced
	l, err := transport.NewListenerWithOpts(u.Host, "http", transport.WithSkipTLSInfoCheck(true),
		transport.WithTimeout(rafthttp.ConnReadTimeout, rafthttp.ConnWriteTimeout))
	if err != nil {
		return nil, fault.Wrap(fault.Conflict, err, "cannot listen for other servers on %s", u.Host).
			WithHint("is it an address of this machine? is the port free?")
	}
	d := &door{peers: o.Peers, log: o.Logger, stop: make(chan struct{}), conns: map[*tls.Conn]string{}}
	d.said.last = map[string]time.Time{}
	d.listener = tls.NewListener(l, secret)
	return d, nil
}

// open lets members in.
func (d *door) open(e *embed.Etcd) {
	if d == nil {
		return
	}
	d.own, d.etcd = e, etcdhttp.NewPeerHandler(e.GetLogger(), e.Server)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	d.http = &http.Server{
		Handler: d, Protocols: protocols, ReadTimeout: peerRequest, ReadHeaderTimeout: peerHello, ErrorLog: log.New(io.Discard, "", 0),
		ConnState: d.follow,
	}
	go func() { _ = d.http.Serve(d.listener) }()
	go d.watch()
}

// close ends all connections.
func (d *door) close() {
	if d == nil {
		return
	}
	d.once.Do(func() {
		close(d.stop)
		_ = d.listener.Close()
		if d.http != nil {
			_ = d.http.Close()
		}
	})
}

// ServeHTTP is part of http.Handler.
func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	node := r.TLS.PeerCertificates[0].Subject.CommonName
	if d.admits(node) || d.removed(r) {
		d.etcd.ServeHTTP(w, r)
		return
	}
	if d.said.fresh(node, time.Now()) {
		d.log.Warn("a machine that is no server was refused at the port between servers", "node", node, "from", r.RemoteAddr)
	}
	w.Header().Set("Connection", "close")
	http.Error(w, "node "+node+" is no server of this cluster", http.StatusForbidden)
}

// admits reports whether a machine is a server: as a member of the state, or since the cluster says so. A member that is to
// come has no name yet, and one that has come while this one was away is not known here.
func (d *door) admits(node string) bool {
	for _, x := range d.own.Server.Cluster().Members() {
		if x.Name == node {
			return true
		}
	}
	return d.peers.Known != nil && d.peers.Known(node)
}

// removed reports that a request is a member's for the messages to it, and that etcd knows it to be removed: nothing will be
// sent to it but that, upon which it ends.
func (d *door) removed(r *http.Request) bool {
	if r.Method != http.MethodGet || !strings.HasPrefix(r.URL.Path, rafthttp.RaftStreamPrefix+"/") {
		return false
	}
	id, err := types.IDFromString(path.Base(r.URL.Path))
	return err == nil && d.own.Server.IsIDRemoved(uint64(id))
}

// follow notes who is at the other end of a connection.
func (d *door) follow(c net.Conn, state http.ConnState) {
	t, ok := c.(*tls.Conn)
	if !ok {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch state {
	case http.StateActive:
		d.conns[t] = t.ConnectionState().PeerCertificates[0].Subject.CommonName
	case http.StateClosed, http.StateHijacked:
		delete(d.conns, t)
	}
}

// watch ends the connections of machines that are servers no longer.
func (d *door) watch() {
	look := time.NewTicker(doorLook)
	defer look.Stop()
	for {
		select {
		case <-look.C:
		case <-d.stop:
			return
		}
		d.mu.Lock()
		conns := maps.Clone(d.conns)
		d.mu.Unlock()
		for c, node := range conns {
			if !d.admits(node) {
				_ = c.NetConn().Close() // without the farewell of TLS, for which the other end could make it wait
			}
		}
	}
}

// peerTLS is the certificates of both ends of the connections between members.
func peerTLS(p *Peers) transport.TLSInfo {
	return transport.TLSInfo{
		CertFile: p.Pair, KeyFile: p.Pair, TrustedCAFile: p.Roots, ClientCertAuth: true, MinVersion: tls.VersionTLS13,
		AllowedHostnames: []string{p.Hostname},
		// Members are known by the name above; the address they come from may be any of theirs.
		SkipClientSANVerify: true,
	}
}
