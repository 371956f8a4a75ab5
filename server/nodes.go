package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/server/nodesession"
	"github.com/gantryd/gantry/store"
)

// How long one node may take to answer: what it looks up, and what it has to walk its disk for.
const (
	nodePatience = 20 * time.Second // longer than a node waits for a shim
	diskPatience = 10 * time.Minute
)

// nodeName is what people call a node.
func nodeName(snap store.Reader, id string) string {
	if n, ok := store.Get[*gantryv1.Node](snap, id); ok && n.Name != "" {
		return n.Name
	}
	return id
}

// NodeSessions is what holds the sessions of nodes with this server.
func (s *Server) NodeSessions() *nodesession.Hub { return s.nodes }

// briefs names all machines of the cluster.
func briefs(snap store.Reader) []*gantryv1.NodeBrief {
	var out []*gantryv1.NodeBrief
	for _, n := range store.List[*gantryv1.Node](snap, "") {
		st, _ := store.Get[*gantryv1.NodeStatus](snap, n.Meta.Key)
		out = append(out, &gantryv1.NodeBrief{Id: n.Meta.Key, Name: nodeName(snap, n.Meta.Key), State: st.GetState()})
	}
	return out
}

// nodeIDs lists all machines of the cluster.
func nodeIDs(snap store.Reader) []string {
	var out []string
	for _, n := range store.List[*gantryv1.Node](snap, "") {
		out = append(out, n.Meta.Key)
	}
	return out
}

// reach gives the way to a node that may answer: one that is down is not asked.
func (s *Server) reach(id string) (Node, error) {
	snap := s.store.Snapshot()
	name := nodeName(snap, id)
	if _, ok := store.Get[*gantryv1.Node](snap, id); !ok && id != s.o.Node {
		return Node{}, fault.New(fault.Unavailable, "node %s is no part of the cluster any more", name).WithHint("gantry node ls")
	}
	if st, ok := store.Get[*gantryv1.NodeStatus](snap, id); ok && st.State == "down" && id != s.o.Node {
		return Node{}, fault.New(fault.Unavailable, "node %s is down", name).WithHint("gantry node show %s", name)
	}
	n, err := s.node(id)
	if err != nil {
		return Node{}, fault.New(fault.Unavailable, "node %s is not reachable", name).WithHint("gantry node show %s", name)
	}
	return n, nil
}

// answered turns the error of a call to a node into ours. One that the node did not send itself names the node.
func (s *Server) answered(id string, err error) error {
	if err == nil || connect.IsWireError(err) || errors.Is(err, context.Canceled) {
		return wire.Decode(err)
	}
	ce, ok := errors.AsType[*connect.Error](err)
	if !ok && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if ok && ce.Code() != connect.CodeUnavailable && ce.Code() != connect.CodeDeadlineExceeded {
		return wire.Decode(err)
	}
	name := nodeName(s.store.Snapshot(), id)
	return fault.Wrap(fault.Unavailable, wire.Decode(err), "node %s does not answer", name).WithHint("gantry node show %s", name)
}

// nodeError is why a node gave no answer.
type nodeError struct {
	node string
	err  error
}

// nodeErrors are in the order in which the nodes were asked.
type nodeErrors []nodeError

// first is the first error; nil if there is none.
func (l nodeErrors) first() error {
	if len(l) == 0 {
		return nil
	}
	return l[0].err
}

// failures is their form as part of an answer.
func (l nodeErrors) failures(snap store.Reader) []*gantryv1.NodeFailure {
	var out []*gantryv1.NodeFailure
	for _, e := range l {
		out = append(out, &gantryv1.NodeFailure{
			Node: e.node, Name: nodeName(snap, e.node), Message: e.err.Error(), Hint: fault.HintOf(e.err),
		})
	}
	return out
}

// ask puts the same question to nodes at the same time. One that does not answer does not keep the others' answers back.
func ask[T any](ctx context.Context, s *Server, ids []string, patience time.Duration, question func(context.Context, Node, string) (T, error)) (map[string]T, nodeErrors) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	answers, failed := map[string]T{}, map[string]error{}
	for _, id := range ids {
		wg.Go(func() {
			got, err := askOne(ctx, s, id, patience, question)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed[id] = err
				return
			}
			answers[id] = got
		})
	}
	wg.Wait()
	var errs nodeErrors
	for _, id := range ids {
		if err := failed[id]; err != nil {
			errs = append(errs, nodeError{id, err})
		}
	}
	return answers, errs
}

// askOne puts a question to one node.
func askOne[T any](ctx context.Context, s *Server, id string, patience time.Duration, question func(context.Context, Node, string) (T, error)) (T, error) {
	var none T
	n, err := s.reach(id)
	if err != nil {
		return none, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	got, err := question(ctx, n, id)
	return got, s.answered(id, err)
}
