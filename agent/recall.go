package agent

import (
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/discovery"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
)

const (
	recallFile = "known.pb"
	// While what servers say changes all the time, writing it takes at most one part in recallShare of the time, as long as a write
	// is not slow: then, and after one that failed, the next one waits for recallPause.
	recallShare = 50
	recallPause = 5 * time.Second
)

// recall is what servers said last, on disk: a daemon that starts answers names as the one before did, and a machine that starts
// while no server answers keeps networks apart and finds services as before.
type recall struct {
	path  string
	saved uint64 // the change that is on disk
	next  time.Time
}

// load reads what the daemon before has kept. What is damaged or missing is as if there were nothing: servers say it again.
func (e *endpointState) load(root string, log *slog.Logger) {
	e.recall.path = filepath.Join(root, recallFile)
	u := &gantryv1.NodeUpdate{}
	_ = atomicfile.Tidy(root) // what a crash has left of a write
	data, err := atomicfile.Read(e.recall.path)
	if err == nil {
		err = proto.Unmarshal(data, u)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		log.Warn("what servers said before cannot be read; names are known when one answers", "err", err)
		_ = os.Remove(e.recall.path)
		return
	}
	e.mu.Lock()
	for _, s := range u.Endpoints {
		e.services[s.Service] = s
	}
	for _, n := range u.Networks {
		e.networks[n.Meta.Key] = n
	}
	for _, n := range u.Nodes {
		e.nodes[n.Meta.Key] = n
	}
	e.mu.Unlock()
	if e.discovery != nil {
		e.discovery.Apply(discovery.State{Endpoints: u.Endpoints, Networks: u.Networks})
	}
}

// goOn has the kernel follow what is known from before, since no server answers.
func (e *endpointState) goOn() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.services)+len(e.networks) > 0 {
		e.told = true
		e.asked++
	}
}

// due reports whether what servers have said is to be written: a change of the last moments is lost with the machine's power.
func (e *endpointState) due(now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.told && e.heard != e.recall.saved && !now.Before(e.recall.next)
}

// save writes what servers have said, as long as one has said anything.
func (e *endpointState) save() error {
	began := time.Now()
	e.mu.Lock()
	if !e.told || e.heard == e.recall.saved {
		e.mu.Unlock()
		return nil
	}
	heard := e.heard
	u := &gantryv1.NodeUpdate{
		Full: true, Endpoints: slices.Collect(maps.Values(e.services)),
		Networks: slices.Collect(maps.Values(e.networks)), Nodes: slices.Collect(maps.Values(e.nodes)),
	}
	e.mu.Unlock()
	data, err := proto.Marshal(u) // nobody changes what it is made of
	if err == nil {
		err = atomicfile.Write(e.recall.path, data, 0o600)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	e.recall.next = now.Add(min(now.Sub(began)*recallShare, recallPause))
	if err != nil {
		e.recall.next = now.Add(recallPause)
		return fault.Wrap(fault.Unavailable, err, "cannot keep what servers say")
	}
	e.recall.saved = heard
	return nil
}
