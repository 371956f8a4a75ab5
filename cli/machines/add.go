package machines

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/cli/overssh"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
)

// addition is a machine on its way into the cluster.
type addition struct {
	verbs
	host      overssh.Host
	programs  string
	advertise string
	labels    []string
	server    bool
	limit     time.Duration
}

// remoteBin and remoteRecord are where a joined machine has its programs and what it knows of itself.
const (
	remoteBin    = "/usr/local/bin"
	remoteRecord = "/var/lib/gantry/machine.json"
	addTokenLife = 15 * time.Minute
)

func (s verbs) nodeAdd() *cobra.Command {
	a := &addition{verbs: s}
	var timeout string
	cmd := &cobra.Command{
		Use: "add ssh://[USER@]HOST[:PORT]", Short: "Install Gantry on another machine over SSH and join it", Args: verb.Between(1, 1),
		Long: "Install Gantry on another machine over SSH and join it: copies the programs to " + remoteBin + " there, runs gantry join\n" +
			"with a token of its own and waits until the node is ready. It needs root there, or sudo without a password, and uses\n" +
			"the ssh program of this machine with its keys and configuration. Run again it goes on where it was interrupted.",
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if a.limit, err = verb.Timeout(timeout); err != nil {
				return err
			}
			if a.host, err = overssh.Parse(args[0]); err != nil {
				return err
			}
			return a.run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&a.server, "server", false, "make it a server, which also holds the cluster's state")
	cmd.Flags().StringArrayVar(&a.labels, "label", nil, "label of the node, KEY=VALUE")
	cmd.Flags().StringVar(&a.advertise, "advertise", "", "address that other machines reach it at (default the one on its way to this cluster)")
	cmd.Flags().StringVar(&a.programs, "programs", "", "directory of Gantry's programs for that machine (default that of this gantry)")
	cmd.Flags().StringVarP(&timeout, "timeout", "t", "2m", "how long to wait for it after it has joined")
	return cmd
}

// run checks all that can be checked before it changes anything.
func (a *addition) run(ctx context.Context) error {
	programs, machine, err := findPrograms(a.programs)
	if err != nil {
		return err
	}
	c, err := a.Client()
	if err != nil {
		return err
	}
	st, err := client.Call(ctx, c.Cluster.Status, &gantryv1.ClusterStatusRequest{})
	if err != nil {
		return err
	}
	there, err := a.probe(ctx)
	if err != nil {
		return err
	}
	if there.record != nil {
		return a.again(ctx, c, st.GetId(), there.record)
	}
	if err := there.fits(a.host, programs[0], machine); err != nil {
		return err
	}
	if err := a.copy(ctx, there, programs); err != nil {
		return err
	}
	node, err := a.join(ctx, c, there)
	if err != nil {
		return err
	}
	return a.await(ctx, c, node)
}

// again is for a machine that has joined before: it is waited for, if it is ours.
func (a *addition) again(ctx context.Context, c *client.Client, cluster string, r *gantryv1.MachineRecord) error {
	if id := r.GetCluster().GetId(); id != cluster {
		return fault.New(fault.Conflict, "%s belongs to another cluster, %s", a.host, verb.Line("%s", id)).
			WithHint("in that cluster: gantry node rm; then on it: systemctl disable --now gantryd, reboot, empty /var/lib/gantry")
	}
	n := r.GetNode()
	if _, err := client.Call(ctx, c.Nodes.Get, &gantryv1.NodeRequest{Node: n.GetMeta().GetKey()}); fault.Is(err, fault.NotFound) {
		return fault.New(fault.Conflict, "%s was removed from this cluster", a.host).WithHint("to have it back: systemctl disable --now gantryd on it, reboot, empty /var/lib/gantry and try again")
	}
	if a.server && n.GetRole() != "server" {
		return fault.New(fault.Conflict, "%s is a node of this cluster already, and no server", a.host).WithHint("gantry node promote %s", n.GetMeta().GetKey())
	}
	a.Say("%s belongs to this cluster already; nothing is installed and nothing is set", a.host)
	return a.await(ctx, c, r.GetNode().GetMeta().GetKey())
}

// findPrograms lists what a machine needs, and the kind of processor it is built for.
func findPrograms(dir string) (paths []string, machine string, err error) {
	if dir == "" {
		self, err := os.Executable()
		if err == nil {
			self, err = filepath.EvalSymlinks(self)
		}
		if err != nil {
			return nil, "", fault.Wrap(fault.Internal, err, "this program cannot be found").WithHint("name its directory: --programs DIR")
		}
		dir = filepath.Dir(self)
	}
	for _, name := range []string{"gantryd", "gantry", "gantry-init", "runc", "containerd-shim-runc-v2"} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
			return nil, "", fault.New(fault.NotFound, "the program %s is not in %s", name, dir).WithHint("make build makes all of them; name their directory: --programs DIR")
		}
		paths = append(paths, path)
	}
	f, err := elf.Open(paths[0])
	if err != nil {
		return nil, "", fault.Wrap(fault.Invalid, err, "%s is no program for Linux", paths[0]).WithHint("name a directory with Gantry for Linux: --programs DIR")
	}
	defer f.Close()
	return paths, machineName(f.Machine), nil
}

// machineName is a processor as `uname -m` calls it.
func machineName(m elf.Machine) string {
	switch m {
	case elf.EM_X86_64:
		return "x86_64"
	case elf.EM_AARCH64:
		return "aarch64"
	case elf.EM_RISCV:
		return "riscv64"
	case elf.EM_S390:
		return "s390x"
	case elf.EM_PPC64:
		return "ppc64le"
	}
	return m.String()
}

// remote is what a machine says of itself.
type remote struct {
	system, machine string
	rights          string // root, sudo or none
	record          *gantryv1.MachineRecord
}

// mark comes before what a script tells: a user's shell may have printed something already.
const (
	mark  = "gantry-tells"
	probe = `rights=none become=
if [ "$(id -u)" = 0 ]; then rights=root; elif sudo -n true </dev/null 2>/dev/null; then rights=sudo become='sudo -n'; fi
echo "` + mark + ` $(uname -s) $(uname -m) $rights"
if [ $rights != none ]; then $become cat ` + remoteRecord + ` </dev/null 2>/dev/null || true; fi
`
)

func (a *addition) probe(ctx context.Context) (*remote, error) {
	out, err := a.host.Run(ctx, "sh", strings.NewReader(probe), nil)
	if err != nil {
		return nil, err
	}
	_, text, found := bytes.Cut(out, []byte(mark+" "))
	line, record, _ := bytes.Cut(text, []byte("\n"))
	words := strings.Fields(string(line))
	if !found || len(words) != 3 {
		return nil, fault.New(fault.Unavailable, "%s does not say what it is: %s", a.host, verb.Line("%.200s", out)).WithHint("ssh %s uname -m has to work", a.host)
	}
	r := &remote{system: words[0], machine: words[1], rights: words[2]}
	if len(bytes.TrimSpace(record)) > 0 {
		r.record, err = readRecord(record)
	}
	return r, err
}

func readRecord(text []byte) (*gantryv1.MachineRecord, error) {
	r := &gantryv1.MachineRecord{}
	err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, r)
	if err == nil && r.GetNode().GetMeta().GetKey() == "" {
		err = errors.New("it names no node")
	}
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "what the machine has in %s cannot be read", remoteRecord)
	}
	return r, nil
}

// fits refuses a machine that the programs do not run on, or on which nothing may be installed.
func (r *remote) fits(h overssh.Host, program, machine string) error {
	switch {
	case r.system != "Linux":
		return fault.New(fault.Invalid, "%s runs %s, and Gantry needs Linux", h, verb.Line("%s", r.system))
	case r.machine != machine:
		return fault.New(fault.Invalid, "%s is a machine of kind %s, and %s is for %s", h, verb.Line("%s", r.machine), program, machine).
			WithHint("name a directory with Gantry built for %s: --programs DIR", verb.Line("%s", r.machine))
	case r.rights == "none":
		return fault.New(fault.Denied, "on %s Gantry is neither root nor may it use sudo without a password", h).
			WithHint("ssh://root@%s, or let the user do so: NOPASSWD in /etc/sudoers.d", h.Name)
	}
	return nil
}

// become runs a POSIX shell as root.
func (r *remote) become() string {
	if r.rights == "sudo" {
		return "sudo -n sh"
	}
	return "sh"
}

// unpack replaces the programs as a whole, so that one which runs goes on with what it is.
const unpack = `set -e
mkdir -p ` + remoteBin + `
dir=$(mktemp -d ` + remoteBin + `/.gantry-add-XXXXXX)
trap "rm -rf $dir" EXIT
tar -x -f - -C $dir
mv -f $dir/* ` + remoteBin + `/`

func (a *addition) copy(ctx context.Context, r *remote, programs []string) error {
	var size int64
	for _, p := range programs {
		if info, err := os.Stat(p); err == nil {
			size += info.Size()
		}
	}
	a.Say("%s: copying %s, %s, to %s", a.host, verb.Count(len(programs), "program"), human.Size(size), remoteBin)
	in, out := io.Pipe()
	defer in.Close() // ends the writer, whatever ssh has read
	go func() { out.CloseWithError(pack(out, programs)) }()
	_, err := a.host.Run(ctx, r.become()+" -c "+overssh.Quote(unpack), in, nil)
	return err
}

// pack writes the programs as a tar archive that root owns.
func pack(w io.Writer, programs []string) error {
	tw := tar.NewWriter(w)
	for _, p := range programs {
		if err := packOne(tw, p); err != nil {
			return fault.Wrap(fault.Unavailable, err, "the program %s cannot be read", p)
		}
	}
	return tw.Close()
}

func packOne(tw *tar.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := tw.WriteHeader(&tar.Header{Name: filepath.Base(path), Mode: 0o755, Size: info.Size(), ModTime: info.ModTime()}); err != nil {
		return err
	}
	_, err = io.Copy(tw, f)
	return err
}

// join makes a token for this machine alone, and takes it back whatever comes of it.
func (a *addition) join(ctx context.Context, c *client.Client, r *remote) (node string, err error) {
	role := "node"
	if a.server {
		role = "server"
	}
	t, err := client.Call(ctx, c.Cluster.CreateToken, &gantryv1.CreateTokenRequest{Role: role, Life: durationpb.New(addTokenLife)})
	if err != nil {
		return "", err
	}
	defer func() {
		ctx := context.WithoutCancel(ctx)
		if _, rerr := client.Call(ctx, c.Cluster.RevokeToken, &gantryv1.RevokeTokenRequest{Id: t.GetId()}); rerr != nil {
			a.Warn("the token could not be revoked (%s): gantry cluster token rm %s", rerr, t.GetId())
		}
	}()
	out, err := a.host.Run(ctx, r.become(), strings.NewReader(a.joinScript(t)), func(line string) { a.Say("%s: %s", a.host, line) })
	if err != nil {
		return "", err
	}
	_, text, _ := bytes.Cut(out, []byte(mark+"\n"))
	record, err := readRecord(text)
	return record.GetNode().GetMeta().GetKey(), err
}

// joinScript has the token on the standard input of gantry, where the list of processes does not show it.
func (a *addition) joinScript(t *gantryv1.CreateTokenResponse) string {
	args := []string{"join", t.GetAddress(), "--token", "-"}
	if a.server {
		args = append(args, "--server")
	}
	if a.advertise != "" {
		args = append(args, "--advertise", a.advertise)
	}
	for _, l := range a.labels {
		args = append(args, "--label", l)
	}
	for i := range args {
		args[i] = overssh.Quote(args[i])
	}
	return "set -e\nexport PATH=\"$PATH:/usr/local/sbin:/usr/sbin:/sbin\"\n" +
		remoteBin + "/gantry " + strings.Join(args, " ") + " >&2 <<'END'\n" + t.GetToken() + "\nEND\necho " + mark + "\ncat " + remoteRecord + "\n"
}

// await waits until the node is ready, and a server has its vote.
func (a *addition) await(ctx context.Context, c *client.Client, node string) error {
	deadline := time.Now().Add(a.limit)
	for {
		v, err := client.Call(ctx, c.Nodes.Get, &gantryv1.NodeRequest{Node: node})
		if err == nil && v.GetStatus().GetState() == "ready" {
			break
		}
		if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Denied) {
			return err
		}
		if time.Now().After(deadline) {
			return fault.New(fault.Timeout, "node %s has joined and is not ready after %s", node, a.limit).WithHint("gantry node show %s; and on it the log of gantryd", node)
		}
		select {
		case <-time.After(handOverWait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if a.server {
		if err := awaitMember(ctx, c, node, a.limit, func(m *gantryv1.MemberStatus) bool { return m != nil && !m.GetLearner() }); err != nil {
			return err
		}
	}
	a.Say("%s is ready", a.host)
	a.Put("%s", node)
	return nil
}
