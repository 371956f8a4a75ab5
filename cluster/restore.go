package cluster

import (
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

// Restore makes a cluster of one out of a snapshot, in place of what is under o.Root. The member must be stopped. What was
// there is kept beside it, at the path that is returned.
func Restore(o Options, file string) (kept string, err error) {
	cfg, err := config(o)
	if err != nil {
		return "", err
	}
	fresh := o.Root + ".restored"
	if err := os.RemoveAll(fresh); err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "cannot remove what an earlier attempt has left in %s", fresh)
	}
	var peers []string
	for _, u := range cfg.AdvertisePeerUrls {
		peers = append(peers, u.String())
	}
	err = snapshot.NewV3(logger(o.Logger)).Restore(snapshot.RestoreConfig{
		SnapshotPath: file, Name: cfg.Name, OutputDataDir: fresh, PeerURLs: peers,
		InitialCluster: fmt.Sprintf("%s=%s", cfg.Name, strings.Join(peers, ",")), InitialClusterToken: "gantry-restored",
		RevisionBump: revisionGap, MarkCompacted: true,
	})
	if err != nil {
		_ = os.RemoveAll(fresh)
		return "", fault.Wrap(fault.Corrupt, err, "the backup cannot be restored").WithHint("the file is damaged or was cut short: use another backup")
	}
	kept = o.Root + ".before-" + time.Now().UTC().Format("20060102T150405")
	if err := os.Rename(o.Root, kept); err != nil && !os.IsNotExist(err) {
		return "", fault.Wrap(fault.Unavailable, err, "cannot put the present state aside")
	}
	if err := os.Rename(fresh, o.Root); err != nil {
		return kept, fault.Wrap(fault.Unavailable, err, "cannot put the restored state in place").
			WithHint("stop gantryd, then: mv %s %s", kept, o.Root)
	}
	if err := atomicfile.SyncDir(filepath.Dir(o.Root)); err != nil {
		return kept, fault.Wrap(fault.Unavailable, err, "cannot make the restored state last")
	}
	return kept, nil
}
