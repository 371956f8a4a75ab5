package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// TestWhatServersSaidOutlivesTheDaemon has a daemon start while no server answers: it goes on with what the one before was told.
func TestWhatServersSaidOutlivesTheDaemon(t *testing.T) {
	root, quiet := t.TempDir(), slog.New(slog.DiscardHandler)
	start := func() *endpointState {
		e := newEndpointState(nil, nil, "n1")
		e.load(root, quiet)
		return e
	}
	told := func(address string) *gantryv1.NodeUpdate {
		return &gantryv1.NodeUpdate{
			Full: true, Nodes: []*gantryv1.Node{{Meta: &gantryv1.Meta{Key: "n2"}}},
			Networks: []*gantryv1.Network{{Meta: &gantryv1.Meta{Key: "e/a/back"}, Internal: true}},
			Endpoints: []*gantryv1.ServiceEndpoints{{Service: "e/a/db", VirtualIp: "10.96.0.7", Endpoints: []*gantryv1.Endpoint{
				{Instance: "i", Node: "n2", Address: address, Ready: true},
			}}},
		}
	}
	first := start()
	first.goOn()
	if first.told {
		t.Error("a machine that was never told anything goes on with nothing: its kernel loses what it has")
	}
	if err := first.save(); err != nil || first.due(time.Now()) {
		t.Fatalf("nothing is to be kept: %v, due %v", err, first.due(time.Now()))
	}
	first.update(told("10.64.2.1"))
	if !first.due(time.Now()) {
		t.Error("the first word is not to be kept")
	}
	if err := first.save(); err != nil {
		t.Fatal(err)
	}
	first.update(told("10.64.2.9"))
	if next := first.recall.next; first.due(next.Add(-1)) || !first.due(next) {
		t.Errorf("due too early: %v; in time: %v", first.due(next.Add(-1)), first.due(next))
	}

	path := first.recall.path
	first.recall.path = filepath.Join(root, "nowhere", recallFile)
	if err := first.save(); err == nil || first.due(time.Now()) || !first.due(time.Now().Add(recallPause)) {
		t.Errorf("what cannot be written: %v; due at once: %v, in a while: %v", err, first.due(time.Now()), first.due(time.Now().Add(recallPause)))
	}
	first.recall.path = path

	second := start()
	if second.told {
		t.Error("what is on disk counts as a server's word")
	}
	second.goOn()
	st := second.state()
	if !second.told || len(st.Nodes) != 1 || len(st.Networks) != 1 || !st.Networks[0].Internal || len(st.Endpoints) != 1 || st.Endpoints[0].Endpoints[0].Address != "10.64.2.1" {
		t.Errorf("it goes on with %v", st)
	}

	if err := first.save(); err != nil {
		t.Fatal(err)
	}
	if ep := start().services["e/a/db"].Endpoints[0]; ep.Address != "10.64.2.9" {
		t.Errorf("the last word is %v", ep)
	}
	if err := os.WriteFile(filepath.Join(root, recallFile), []byte("\xffnothing of ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	if third := start(); len(third.services) != 0 {
		t.Errorf("a damaged file says %v", third.services)
	}
	if left, _ := os.ReadDir(root); len(left) != 0 {
		t.Errorf("a damaged file stays: %v", left)
	}
}
