package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/agent/nodelink"
	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
)

// simNode is a machine with the real protocol and no containers: what is assigned to it runs after a while.
type simNode struct {
	id     string
	subnet netip.Prefix
	delay  time.Duration
	out    *nodelink.Outbox
	count  *counters
	keeps  bool // it keeps all endpoints, as a real node does, so that they can be compared

	mu        sync.Mutex
	instances map[string]*gantryv1.InstanceStatus
	used      map[uint32]bool
	endpoints map[string]int // ready ones, by service
	images    map[string]bool
	fetched   chan string // digests of images that have come
}

// counters are what all nodes of a process have received.
type counters struct {
	updates, assignments atomic.Int64
	bytes                atomic.Int64
	endpoints            atomic.Int64 // as a sum over all nodes, of those that do not keep them
}

func nodeID(n int) string { return fmt.Sprintf("node-%04d", n) }

// subnetOf is 10.64.0.0/24 and those after it.
func subnetOf(n int) netip.Prefix {
	a := 10<<24 | 64<<16 | uint32(n)<<8
	return netip.PrefixFrom(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, a))), 24)
}

func newSimNode(n int, delay time.Duration, count *counters, keeps bool) *simNode {
	return &simNode{
		id: nodeID(n), subnet: subnetOf(n), delay: delay, out: nodelink.NewOutbox(), count: count, keeps: keeps,
		instances: map[string]*gantryv1.InstanceStatus{}, used: map[uint32]bool{}, endpoints: map[string]int{},
		images: map[string]bool{}, fetched: make(chan string, 16),
	}
}

// run keeps the node's session until ctx ends. Every node has a connection of its own.
func (n *simNode) run(ctx context.Context, address string) error {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols, DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext}
	defer transport.CloseIdleConnections()
	client, base := &http.Client{Transport: transport}, "http://"+address
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.announce(ctx, gantryv1connect.NewNodeImageServiceClient(client, base)) })
	group.Go(func() error {
		return nodelink.New(nodelink.Options{
			Server: gantryv1connect.NewNodeSessionServiceClient(client, base, n.options()...), Hello: n.hello, Status: n.status,
			Take: n.take, Outbox: n.out, Logger: slog.New(slog.DiscardHandler),
		}).Run(ctx)
	})
	return group.Wait()
}

// nodeHeader names the node that calls.
const nodeHeader = "Simulated-Node"

// Times of package engine/image/peer.
const (
	announceEvery = 15 * time.Second
	announceRetry = time.Second
)

// announce tells the tracker of images what a real node would: all at the beginning, each image once it is here, and now and
// then that the node is there.
func (n *simNode) announce(ctx context.Context, tracker gantryv1connect.NodeImageServiceClient) error {
	req := &gantryv1.AnnounceRequest{Boot: n.id, Full: true}
	next := time.NewTimer(0)
	defer next.Stop()
	beat := rand.N(announceEvery) // machines start at times of their own
	for {
		select {
		case digest := <-n.fetched:
			req.Have, req.Images = append(req.Have, digest), append(req.Images, digest)
		case <-next.C:
		case <-ctx.Done():
			return nil
		}
		call := connect.NewRequest(req)
		call.Header().Set(nodeHeader, n.id)
		if _, err := tracker.Announce(ctx, call); err != nil {
			next.Reset(announceRetry)
			continue
		}
		req = &gantryv1.AnnounceRequest{Boot: n.id}
		next.Reset(beat)
		beat = announceEvery
	}
}

func (n *simNode) hello() *gantryv1.NodeReport {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := &gantryv1.NodeReport{Hello: &gantryv1.NodeHello{Node: n.id, Name: n.id}, Status: n.status()}
	for _, st := range n.instances {
		r.Statuses = append(r.Statuses, st)
	}
	return r
}

func (n *simNode) status() *gantryv1.NodeStatus {
	return &gantryv1.NodeStatus{
		Meta: &gantryv1.Meta{Key: n.id}, Clock: timestamppb.Now(), NanoCpus: 64e9, Memory: 256 << 30, Architecture: "amd64",
		Os: "linux", Kernel: "6.1.0", Version: "simulated",
	}
}

// take starts and removes instances as a real agent does, with the same number of reports.
func (n *simNode) take(_ context.Context, u *gantryv1.NodeUpdate) {
	n.count.updates.Add(1)
	n.count.assignments.Add(int64(len(u.Assignments)))
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range u.Endpoints {
		ready := 0
		for _, ep := range e.Endpoints {
			if ep.Ready {
				ready++
			}
		}
		n.endpoints[e.Service] = ready
	}
	var start, stop []string
	named := map[string]bool{}
	for _, as := range u.Assignments {
		id := as.Instance.Meta.Key
		named[id] = true
		switch _, known := n.instances[id]; {
		case as.Instance.Desired == gantryv1.Instance_DESIRED_REMOVED:
			stop = append(stop, id)
		case !known:
			n.set(&gantryv1.InstanceStatus{Meta: &gantryv1.Meta{Key: id}, Phase: gantryv1.InstanceStatus_PHASE_PENDING})
			start = append(start, id)
			n.fetch(as.Spec.GetImageDigest())
		}
	}
	stop = append(stop, u.Unassigned...)
	if u.Full {
		for id := range n.instances {
			if !named[id] {
				stop = append(stop, id)
			}
		}
	}
	n.after(n.delay/4, start, n.created)
	n.after(n.delay, start, n.running)
	n.after(n.delay/4, stop, n.gone)
}

// fetch notes that an image is here; mu is held.
func (n *simNode) fetch(digest string) {
	if digest == "" || n.images[digest] {
		return
	}
	n.images[digest] = true
	n.fetched <- digest
}

func (n *simNode) after(d time.Duration, ids []string, do func(id string)) {
	if len(ids) == 0 {
		return
	}
	time.AfterFunc(d, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, id := range ids {
			do(id)
		}
	})
}

func (n *simNode) set(st *gantryv1.InstanceStatus) {
	n.instances[st.Meta.Key] = st
	n.out.Status(st)
}

// created may come late on a busy machine: after running.
func (n *simNode) created(id string) {
	if n.instances[id].GetPhase() != gantryv1.InstanceStatus_PHASE_PENDING {
		return
	}
	n.set(&gantryv1.InstanceStatus{
		Meta: &gantryv1.Meta{Key: id}, Phase: gantryv1.InstanceStatus_PHASE_CREATING, Address: n.address(),
	})
}

func (n *simNode) running(id string) {
	old := n.instances[id]
	if old == nil {
		return
	}
	n.created(id)
	old = n.instances[id]
	n.set(&gantryv1.InstanceStatus{
		Meta: &gantryv1.Meta{Key: id}, Phase: gantryv1.InstanceStatus_PHASE_RUNNING, Address: old.Address, Pid: 4711,
		StartedAt: timestamppb.Now(),
	})
}

func (n *simNode) gone(id string) {
	if st := n.instances[id]; st != nil {
		if a, err := netip.ParseAddr(st.Address); err == nil {
			delete(n.used, binary.BigEndian.Uint32(a.AsSlice()))
		}
		delete(n.instances, id)
	}
	n.out.Gone(id)
}

// address is the first free one; more instances than addresses share the last.
func (n *simNode) address() string {
	base := binary.BigEndian.Uint32(n.subnet.Addr().AsSlice())
	for host := uint32(2); host < 255; host++ {
		if !n.used[base+host] {
			n.used[base+host] = true
			return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, base+host))).String()
		}
	}
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, base+254))).String()
}
