package daemon

import (
	"context"
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/prealloc"
	"github.com/gantryd/gantry/store"
)

// A server whose disk is full refuses changes while etcd itself has room to go on: its own files are allocated in advance. If
// another server has space, that one leads. What is under way goes on, and what frees space may be asked for.

// spareFile is room that a start on a full disk can use, and what removes things after it.
const (
	spareFile = "spare"
	spareSize = 32 << 20
	spareFrom = 256 << 20 // bytes free: putting room aside must not be what makes the disk full
	spareLook = 10 * time.Second
)

// useSpare gives the spare room up if the disk is full.
func (d *daemon) useSpare() error {
	if l := d.space.Left(); !l.Short || l.Bytes > spareSize {
		return nil
	}
	err := os.Remove(filepath.Join(d.Root, spareFile))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fault.Wrap(fault.Unavailable, err, "the disk is full, and the room that was kept for this cannot be used")
	}
	d.Logger.Warn("the disk is full: this start uses the room that was kept for it", "hint", "make room: gantry system df, gantry system prune")
	return nil
}

// databases are the files, below the root, that must be written when images and containers are removed.
func databases() []string { return []string{"engine/containerd/*/*.db", "build/*.db", "registry/*.db"} }

// databaseAhead is the room that each of them has on a full disk, in bytes.
const databaseAhead = 4 << 20

// keepSpare puts room aside whenever the disk has enough: a file that a start can use, and what databases need.
func (d *daemon) keepSpare(ctx context.Context) error {
	path := filepath.Join(d.Root, spareFile)
	look := time.NewTicker(spareLook)
	defer look.Stop()
	said := ""
	for {
		if !d.space.Left().Short {
			now := ""
			if err := d.putAside(path); err != nil {
				now = err.Error()
			}
			if now != said && now != "" {
				d.Logger.Warn("no room can be kept for a full disk", "err", now)
			}
			said = now
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (d *daemon) putAside(spare string) error {
	info, err := os.Stat(spare)
	if (err != nil || info.Size() < spareSize) && d.space.Left().Bytes > spareFrom {
		if err := prealloc.File(spare, spareSize); err != nil {
			return err
		}
	}
	for _, pattern := range databases() {
		files, _ := filepath.Glob(filepath.Join(d.Root, pattern)) // the patterns are good
		for _, file := range files {
			if _, err := prealloc.Ahead(file, 0, databaseAhead); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// fullDisk says for the node's status whether too little is free for the state, on a server.
func (d *daemon) fullDisk(m *machine) func() (int64, bool) {
	return func() (int64, bool) {
		l := d.space.Left()
		return l.Bytes, l.Short && m.isServer()
	}
}

// frees reports whether a call takes something away, or is one of machines among themselves.
func frees(call string) bool {
	if strings.HasPrefix(call, "MachineService/") {
		return true
	}
	switch path.Base(call) {
	case "Remove", "Prune", "RevokeToken", "Stop", "SetStopped", "Kill", "Pause", "Abort", "Demote", "SetAvailability":
		return true
	}
	return false
}

// admits refuses changes that the API asks for while too few servers have space for them.
func (r *serverRole) admits(s *serving) func(store.Origin) error {
	return func(o store.Origin) error {
		if !strings.Contains(o.Cause, "/") || frees(o.Cause) {
			return nil
		}
		if l := r.d.space.Left(); l.Short {
			return noSpace(fault.New(fault.Exhausted, "the disk under the state on server %s is full (%d MB and %d files are left): changes are refused",
				r.machine.Node().Name, l.Bytes>>20, l.Files))
		}
		if full, most := s.roomless(); most {
			return noSpace(fault.New(fault.Exhausted, "the disks under the state on servers %s are full: changes are refused", strings.Join(full, ", ")))
		}
		return nil
	}
}

func noSpace(f *fault.Error) error {
	return f.WithHint("make room there: gantry system df, gantry system prune, gantry volume prune -a; removing and stopping is not refused")
}

// roomless names the servers whose disks are full, and tells whether too few others are left for a majority.
func (s *serving) roomless() (full []string, most bool) {
	voters := 0
	byMember := s.servers()
	for _, m := range s.member.Members() {
		if m.Learner {
			continue
		}
		voters++
		if n := byMember[m.ID]; n.status.GetDiskFull() {
			full = append(full, n.name)
		}
	}
	return full, !enough(voters, len(full))
}

// enough reports whether the servers whose disks are not full are a majority.
func enough(voters, full int) bool { return voters-full > voters/2 }

// serverState is a server as the leader knows it.
type serverState struct {
	name   string
	status *gantryv1.NodeStatus
}

// servers lists the servers by the ID of their member.
func (s *serving) servers() map[string]serverState {
	out := map[string]serverState{}
	r := s.store.Live()
	for _, n := range store.List[*gantryv1.Node](r, "") {
		if n.Role == string(identity.Server) {
			st, _ := store.Get[*gantryv1.NodeStatus](r, n.Meta.Key)
			out[n.Member] = serverState{n.Name, st}
		}
	}
	return out
}

const spaceLook = time.Second

// yield hands the lead over to a server that has space, when this one has none.
func (r *serverRole) yield(ctx context.Context, s *serving) error {
	look := time.NewTicker(spaceLook)
	defer look.Stop()
	said := ""
	for {
		select {
		case <-look.C:
		case <-ctx.Done():
			return nil
		}
		if !r.d.space.Left().Short {
			continue
		}
		to := s.roomy()
		if len(to) == 0 {
			continue
		}
		if said == "" {
			said = "asked"
			r.d.Logger.Warn("the disk under the state is full: another server is to take the lead")
		}
		if err := s.member.HandOver(ctx, to...); err != nil && ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			r.d.Logger.Warn("the lead could not be handed over", "err", err)
		}
	}
}

// roomy lists the members of other servers that are ready and have space.
func (s *serving) roomy() []string {
	var out []string
	byMember := s.servers()
	for _, m := range s.member.Members() {
		n := byMember[m.ID]
		if !m.Learner && m.ID != s.member.ID() && n.status.GetState() == "ready" && !n.status.GetDiskFull() {
			out = append(out, m.ID)
		}
	}
	return out
}
