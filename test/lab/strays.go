package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// What a daemon keeps ready for the next containers.
const (
	linksAhead = 16
	shimsAhead = 2
)

// Strays lists what is on the machine because of containers and belongs to none of the daemon's instances: control groups,
// mounts, links, network namespaces, elements of the nftables table, snapshots, leases of images, records, files, processes. What
// the daemon keeps ready for the next containers is none, up to its bound. The daemon must run; while it works, what it works on
// may show.
func (n *Node) Strays() ([]string, error) {
	views, err := n.TryInstances()
	if err != nil {
		return nil, err
	}
	known := knownOf(views)
	out := n.strayGroups(known)
	for _, find := range []func(owners) ([]string, error){n.strayFiles, n.strayLinks, n.strayRules, n.strayStored, n.strayProcesses} {
		found, err := find(known)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

// owners are the instances that a daemon knows, and what is theirs.
type owners struct {
	ids       map[string]bool
	addresses map[netip.Addr]bool // virtual ones too
}

func knownOf(views []*gantryv1.InstanceView) owners {
	o := owners{ids: map[string]bool{}, addresses: map[netip.Addr]bool{}}
	for _, v := range views {
		o.ids[v.Instance.Meta.Key] = true
		for _, text := range []string{v.Status.GetAddress(), v.Status.GetAddress6(), v.Instance.VirtualIp} {
			if a, err := netip.ParseAddr(text); err == nil {
				o.addresses[a] = true
			}
		}
	}
	return o
}

// strayGroups finds control groups of no instance, and those of build steps.
func (n *Node) strayGroups(known owners) (out []string) {
	sum := sha256.Sum256([]byte(filepath.Join(n.root, "engine")))
	ours := filepath.Join("gantry", hex.EncodeToString(sum[:4]))
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		for _, below := range []string{"containers/*", "build/buildkit/*"} {
			dirs, _ := filepath.Glob(filepath.Join(pattern, n.cgroup(), ours, below))
			for _, dir := range dirs {
				if st, err := os.Stat(dir); err == nil && st.IsDir() && !known.ids[filepath.Base(dir)] {
					out = append(out, "control group "+dir)
				}
			}
		}
	}
	return out
}

// strayFiles finds records and directories named by an instance that is none, and what was written for a moment only.
func (n *Node) strayFiles(known owners) (out []string, err error) {
	containerd := filepath.Join(n.root, "engine", "containerd")
	for _, pattern := range []string{
		filepath.Join(n.root, "agent", "instances", "*"), filepath.Join(n.root, "network", "network", "attachments", "*"),
		filepath.Join(n.root, "engine", "containers", "*"), filepath.Join(containerd, "io.containerd.runtime.v2.task", "gantry", "*"),
		filepath.Join(n.run(), "engine", "io.containerd.runtime.v2.task", "gantry", "*"), filepath.Join(n.run(), "engine", "files", "*"),
	} {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			name := filepath.Base(path)
			if id := strings.TrimSuffix(name, filepath.Ext(name)); !known.ids[id] {
				out = append(out, "file "+path)
			}
		}
	}
	for _, pattern := range []string{
		filepath.Join(containerd, "io.containerd.snapshotter.v1.overlayfs", "snapshots", "[nr]*-*"), // new-…, rm-…
		filepath.Join(n.run(), "build", "context-*"), filepath.Join(n.run(), "build", "runc", "*"), filepath.Join(n.run(), "build", "steps", "*", "config.json"),
		filepath.Join(n.run(), "build", "tmp", "*"), filepath.Join(n.root, ".kernelcheck-*"), filepath.Join(n.root, ".new-*"),
		filepath.Join(n.root, "*", ".new-*"), filepath.Join(n.root, "volumes", "meta", ".new-*"), filepath.Join(n.root, "engine", "containers", "*", ".new-*"),
	} {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			out = append(out, "file "+path)
		}
	}
	return out, nil
}

// strayLinks finds links and network namespaces without an owner beyond those that are kept ready, and what is one without the
// other. The kernel shows mounts of containers here too.
func (n *Node) strayLinks(known owners) (out []string, err error) {
	owned := map[string]bool{}
	for a := range known.addresses {
		if a.Is4() {
			owned[fmt.Sprintf("gv%x", a.As4())] = true
		}
	}
	result := n.TryExec("bash", "-c", `ip -o link show | awk '{print $2}' | cut -d@ -f1 | grep ^gv; echo; awk '{print $5}' /proc/self/mountinfo`)
	if result.Code != 0 {
		return nil, fmt.Errorf("links and mounts of %s: %s", n.name, result.Stderr)
	}
	linkText, mountText, _ := strings.Cut(result.Stdout, "\n\n")
	var links, namespaces []string
	if linkText = strings.TrimSpace(linkText); linkText != "" {
		links = strings.Split(linkText, "\n")
	}
	for _, point := range strings.Fields(mountText) {
		below, ours := strings.CutPrefix(point, n.run()+"/")
		switch {
		case !ours:
		case strings.HasPrefix(below, "network/netns/"):
			namespaces = append(namespaces, filepath.Base(below))
		case strings.HasSuffix(below, "/rootfs") && !known.ids[filepath.Base(filepath.Dir(below))], strings.HasPrefix(below, "build/"),
			strings.HasPrefix(below, "engine/files/") && !known.ids[filepath.Base(below)]:
			out = append(out, "mount "+point)
		}
	}
	slices.Sort(links)
	slices.Sort(namespaces)
	if !slices.Equal(links, namespaces) {
		out = append(out, fmt.Sprintf("links %v, network namespaces %v", links, namespaces))
	}
	if ahead := slices.DeleteFunc(links, func(name string) bool { return owned[name] }); len(ahead) > linksAhead {
		out = append(out, fmt.Sprintf("%d links without an owner: %v", len(ahead), ahead))
	}
	return out, nil
}

// strayRules finds addresses of no instance in what changes of the nftables table, and chains that nothing leads to.
func (n *Node) strayRules(known owners) (out []string, err error) {
	result := n.TryExec("nft", "list", "table", "inet", "gantry0")
	if result.Code != 0 {
		return nil, fmt.Errorf("nftables of %s: %s", n.name, result.Stderr)
	}
	out = strayRules(result.Stdout, known)
	if tables := n.TryExec("nft", "list", "tables", "inet"); strings.Contains(tables.Stdout, "gantry0-deputy") {
		out = append(out, "the table that stands in while ours is written anew")
	}
	return out, nil
}

var (
	setOf     = regexp.MustCompile(`(?ms)^\t(?:set|map) (\S+) \{\n(.*?)^\t\}`)
	elements  = regexp.MustCompile(`(?s)elements = \{(.*?)\}`)
	chainName = regexp.MustCompile(`(?m)^\tchain ((?:service|port|segment)\.\S+) \{`)
)

// strayRules is Node.strayRules of a table that nft has listed.
func strayRules(table string, known owners) (out []string) {
	led := map[string]bool{}
	for _, set := range setOf.FindAllStringSubmatch(table, -1) {
		name := set[1]
		if strings.HasPrefix(name, "nodes") || strings.HasPrefix(name, "gateways") {
			continue // of other machines
		}
		found := elements.FindStringSubmatch(set[2])
		if found == nil {
			continue
		}
		for _, word := range strings.FieldsFunc(found[1], func(r rune) bool { return strings.ContainsRune(" ,\t\n", r) }) {
			led[word] = true
			if a, err := netip.ParseAddr(word); err == nil && !known.addresses[a] {
				out = append(out, fmt.Sprintf("nftables: %s in %s", a, name))
			}
		}
	}
	for _, chain := range chainName.FindAllStringSubmatch(table, -1) {
		if !led[chain[1]] {
			out = append(out, "nftables: chain "+chain[1])
		}
	}
	return out
}

// strayStored finds what containerd keeps and nobody needs: what an instance has written that is none, layers half unpacked, and
// leases of an action that is over.
func (n *Node) strayStored(known owners) (out []string, err error) {
	err = n.containerd(func(ctx context.Context, conn *grpc.ClientConn) error {
		err := snapshots(ctx, conn, func(s *snapshotsapi.Info) {
			id, container := s.Labels["gantry.dev/container"]
			if container && !known.ids[id] || strings.HasPrefix(s.Name, "extract-") {
				out = append(out, fmt.Sprintf("snapshot %s of %s %v", s.Kind, s.Name, s.Labels))
			}
		})
		if err != nil {
			return err
		}
		leases, err := leasesapi.NewLeasesClient(conn).List(ctx, &leasesapi.ListRequest{})
		for _, l := range leases.GetLeases() {
			_, pull := l.Labels["gantry.dev/pull"] // the next pull goes on with what it has
			if _, expires := l.Labels["containerd.io/gc.expire"]; expires && !pull {
				out = append(out, fmt.Sprintf("lease %s %v", l.ID, l.Labels))
			}
		}
		return err
	})
	return out, err
}

// containerd calls do with a connection to the containerd in the daemon.
func (n *Node) containerd(do func(context.Context, *grpc.ClientConn) error) error {
	conn, err := grpc.NewClient("unix://"+filepath.Join(n.run(), "engine", "containerd.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return do(metadata.AppendToOutgoingContext(ctx, "containerd-namespace", "gantry"), conn)
}

// snapshots calls do with each snapshot of the daemon's.
func snapshots(ctx context.Context, conn *grpc.ClientConn, do func(*snapshotsapi.Info)) error {
	stream, err := snapshotsapi.NewSnapshotsClient(conn).List(ctx, &snapshotsapi.ListSnapshotsRequest{Snapshotter: "overlayfs"})
	if err != nil {
		return err
	}
	for {
		page, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, s := range page.Info {
			do(s)
		}
	}
}

// shimArgs is the command line of a shim: in its ID the daemon that started it, and the socket of its containerd.
var shimArgs = regexp.MustCompile(`containerd-shim-runc-v2 .*-id ([A-Z2-7]{8})-[A-Z2-7]{12} .*-address (\S+)`)

// strayProcesses finds shims without a container beyond those that one daemon keeps ready, and runc at work.
func (n *Node) strayProcesses(owners) (out []string, err error) {
	result := n.TryExec("ps", "-eo", "pid=,ppid=,args=", "-ww")
	if result.Code != 0 {
		return nil, fmt.Errorf("processes of %s: %s", n.name, result.Stderr)
	}
	lines := strings.Split(strings.TrimSpace(result.Stdout), "\n")
	parents := map[string]bool{}
	for _, line := range lines {
		if fields := strings.Fields(line); len(fields) > 1 {
			parents[fields[1]] = true
		}
	}
	var idle []string
	daemons := map[string]bool{}
	for _, line := range lines {
		fields := strings.Fields(line)
		shim := shimArgs.FindStringSubmatch(line)
		switch {
		case len(fields) > 2 && strings.HasSuffix(fields[2], "/runc") && strings.Contains(line, n.run()+"/"):
			out = append(out, "process "+line)
		case shim != nil && strings.HasPrefix(shim[2], n.run()+"/") && !parents[fields[0]]:
			idle = append(idle, "process "+line)
			daemons[shim[1]] = true
		}
	}
	if len(idle) > shimsAhead || len(daemons) > 1 {
		out = append(out, idle...)
	}
	return out, nil
}

// Stored lists all snapshots, leases, blobs and unfinished blobs that the daemon's containerd keeps.
func (n *Node) Stored() (out []string, err error) {
	err = n.containerd(func(ctx context.Context, conn *grpc.ClientConn) error {
		if err := snapshots(ctx, conn, func(s *snapshotsapi.Info) { out = append(out, fmt.Sprintf("snapshot %s of %s", s.Kind, s.Name)) }); err != nil {
			return err
		}
		leases, err := leasesapi.NewLeasesClient(conn).List(ctx, &leasesapi.ListRequest{})
		for _, l := range leases.GetLeases() {
			out = append(out, fmt.Sprintf("lease %s %v", l.ID, l.Labels))
		}
		return err
	})
	content := filepath.Join(n.root, "engine", "containerd", "io.containerd.content.v1.content")
	for _, pattern := range []string{"blobs/*/*", "ingest/*"} {
		paths, _ := filepath.Glob(filepath.Join(content, pattern))
		for _, path := range paths {
			out = append(out, "file "+path)
		}
	}
	return out, err
}
