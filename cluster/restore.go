package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
)

// revisionGap is how far revisions jump when a state is restored, so that none is used for two states.
const revisionGap = 1_000_000_000

// The state that is made of a backup is beside that in use: under one name until it is whole, then under another until it takes
// the place of that in use. A crash leaves one of the two, and a start knows what to do.
const (
	making   = ".restoring"
	made     = ".restored"
	noteFile = "restore-note"
)

// Restore makes a cluster of one out of a snapshot, to take the place of what is under o.Root: by Finish, at once or at the next
// start. The note is given back then. The member must be stopped.
func Restore(o Options, file string, note []byte) error {
	if err := GiveUp(o); err != nil {
		return err
	}
	fresh := o.Root + making
	if err := restore(o, file, fresh); err != nil {
		_ = os.RemoveAll(fresh)
		return err
	}
	err := atomicfile.Write(filepath.Join(fresh, noteFile), note, 0o600)
	for _, dir := range []string{"member/wal", "member/snap", "member", "."} {
		err = errors.Join(err, atomicfile.SyncDir(filepath.Join(fresh, dir)))
	}
	if err == nil {
		err = os.Rename(fresh, o.Root+made)
	}
	if err == nil {
		err = atomicfile.SyncDir(filepath.Dir(o.Root))
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "the state that was made of the backup cannot be kept")
	}
	return nil
}

// GiveUp forgets a restore that was not finished.
func GiveUp(o Options) error {
	err := os.RemoveAll(o.Root + making)
	if err == nil {
		err = os.Rename(o.Root+made, o.Root+making)
	}
	switch {
	case err == nil:
		err = os.RemoveAll(o.Root + making)
	case errors.Is(err, os.ErrNotExist):
		err = nil
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot remove what an earlier restore has left in %s", o.Root+making)
	}
	return nil
}

// Finish puts a state that Restore has made in its place, and does nothing if there is none. What was there is kept beside it, at
// the path that is returned. adopt is called with the note in between, while neither is in place, and after a crash again.
func Finish(o Options, adopt func(note []byte) error) (kept string, err error) {
	note, err := atomicfile.Read(filepath.Join(o.Root+made, noteFile))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fault.Wrap(fault.Corrupt, err, "the state that was made of a backup cannot be read").WithHint("gantry cluster restore BACKUP, here")
	}
	kept = o.Root + ".before-" + time.Now().UTC().Format("20060102T150405")
	switch err := os.Rename(o.Root, kept); {
	case os.IsNotExist(err): // there was none, or a crash came after this
		kept = ""
	case err != nil:
		return "", errors.Join(fault.Wrap(fault.Unavailable, err, "the backup is not restored: the present state cannot be put aside").
			WithHint("if %s is a mount of its own: stop gantryd and unmount it", o.Root), GiveUp(o))
	}
	if err := adopt(note); err != nil {
		return kept, err
	}
	if err := os.Rename(o.Root+made, o.Root); err != nil {
		return kept, fault.Wrap(fault.Corrupt, err, "the restored state cannot be put in place; gantryd tries again").
			WithHint("look at the disk that %s is on: dmesg; mount", o.Root)
	}
	if err := errors.Join(os.Remove(filepath.Join(o.Root, noteFile)), atomicfile.SyncDir(filepath.Dir(o.Root))); err != nil {
		return kept, fault.Wrap(fault.Unavailable, err, "cannot make the restored state last")
	}
	return kept, nil
}

// restore makes the files in a directory.
func restore(o Options, file, dir string) error {
	cfg, err := config(o)
	if err != nil {
		return err
	}
	var peers []string
	for _, u := range cfg.AdvertisePeerUrls {
		peers = append(peers, u.String())
	}
	err = snapshot.NewV3(logger(o.Logger)).Restore(snapshot.RestoreConfig{
		SnapshotPath: file, Name: cfg.Name, OutputDataDir: dir, PeerURLs: peers,
		InitialCluster: fmt.Sprintf("%s=%s", cfg.Name, strings.Join(peers, ",")), InitialClusterToken: "gantry-restored",
		RevisionBump: revisionGap, MarkCompacted: true,
	})
	if err != nil {
		return fault.Wrap(fault.Corrupt, err, "the backup cannot be restored").WithHint("the file is damaged or was cut short: use another backup")
	}
	return nil
}
