package daemon

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
	"github.com/gantryd/gantry/internal/ids"
	"github.com/gantryd/gantry/internal/seal"
	"github.com/gantryd/gantry/network"
	"github.com/gantryd/gantry/server/machines"
)

// machine is what this daemon knows of itself and its cluster without asking anybody: a record and a certificate, both on
// disk.
type machine struct {
	root   string
	keeper *identity.Keeper

	writing sync.Mutex // held from reading the record until it is changed

	mu      sync.Mutex
	record  *gantryv1.MachineRecord
	known   map[string]*gantryv1.Node // machines of the cluster, as last heard
	changed chan struct{}             // closed and replaced with every change
	barred  error                     // why it cannot be a server now
	inTouch bool                      // it has a session with the leader
	alone   time.Time                 // when the last one ended; zero before the first

	lost chan struct{} // has one when the session with the leader has ended
}

const (
	recordFile   = "machine.json"
	tokenFile    = "join-token"   // from `gantry join`
	foundingFile = "founding.pem" // the signing key, until the new cluster's state has it
	nodeIDFile   = "node-id"      // of roots that are older than clusters
	identityDir  = "identity"
	sealFile     = "secrets.key"
)

// machine finds out who this is: from the record, by joining, or by founding a cluster.
func (d *daemon) machine(ctx context.Context) (*machine, error) {
	m := &machine{root: d.Root, known: map[string]*gantryv1.Node{}, changed: make(chan struct{}), lost: make(chan struct{}, 1)}
	err := m.load()
	switch {
	case err == nil:
		if d.Join != "" {
			d.Logger.Info("this machine belongs to a cluster already; --join is ignored", "node", m.Node().Meta.Key)
		}
		err = m.joined() // what a crash has left
	case !fault.Is(err, fault.NotFound):
		return nil, err
	case d.Join != "":
		err = m.join(ctx, d.Config)
	default:
		err = m.found(d.Config)
	}
	if err != nil {
		return nil, err
	}
	return m, m.settle(d.Config)
}

// load reads the record and the certificate.
func (m *machine) load() error {
	text, err := atomicfile.Read(filepath.Join(m.root, recordFile))
	if errors.Is(err, os.ErrNotExist) {
		return fault.New(fault.NotFound, "this machine belongs to no cluster yet")
	}
	if fault.Is(err, fault.Corrupt) {
		return err
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot read this machine's record")
	}
	r := &gantryv1.MachineRecord{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, r); err != nil || r.GetNode().GetMeta() == nil {
		return fault.Wrap(fault.Corrupt, err, "this machine's record %s is damaged", filepath.Join(m.root, recordFile)).
			WithHint("put it back from your backup; or remove the node from its cluster, empty --root and join again")
	}
	m.record = r
	m.keeper, err = identity.OpenKeeper(filepath.Join(m.root, identityDir))
	if fault.Is(err, fault.NotFound) {
		return fault.Wrap(fault.Corrupt, err, "this machine's certificate is gone").WithHint("put it back from your backup, or join again with an empty --root")
	}
	return err
}

// found makes a cluster of this machine alone. The record goes last: until it is there, all of it is made anew.
func (m *machine) found(c Config) error {
	id := ids.New()
	authority, roots, signer, err := identity.NewAuthority(id)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(m.root, foundingFile), signer, 0o600); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot keep the new cluster's signing key")
	}
	key, request, err := identity.Request()
	if err != nil {
		return err
	}
	n, err := foundingNode(c, request)
	if err != nil {
		return err
	}
	cert, err := authority.Sign(request, n.Meta.Key, identity.Server, c.Advertise, machines.DefaultCertificateLife)
	if err != nil {
		return err
	}
	if m.keeper, err = identity.NewKeeper(filepath.Join(m.root, identityDir), cert, key, roots); err != nil {
		return err
	}
	return m.save(&gantryv1.MachineRecord{Node: n, Founding: true, Cluster: &gantryv1.Cluster{
		Id: id, Roots: roots, NodeRange: c.NodeRange.String(), NodePrefix: nodePrefix, VirtualIps: c.VirtualIPs.String(), Overlay: c.Overlay,
	}})
}

// nodePrefix is the length of the ranges that nodes are given: 1,021 instances each.
const nodePrefix = 22

func foundingNode(c Config, request []byte) (*gantryv1.Node, error) {
	id, err := machines.NodeID(request)
	if err != nil {
		return nil, err
	}
	old, err := os.ReadFile(filepath.Join(c.Root, nodeIDFile))
	if text := strings.TrimSpace(string(old)); err == nil && text != "" {
		id = text
	}
	name, err := hostName()
	return &gantryv1.Node{
		Meta: &gantryv1.Meta{Key: id}, Name: name, Subnet: c.Subnet.String(), Availability: "active", Role: string(identity.Server),
		Address: c.Advertise, ApiAddress: c.apiAddress(),
	}, err
}

func hostName() (string, error) {
	name, err := os.Hostname()
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "cannot read the machine's name")
	}
	return name, nil
}

// settle brings the record in step with how the daemon was started today.
func (m *machine) settle(c Config) error {
	if c.Advertise == "" && m.Node().ApiAddress != "" {
		return fault.New(fault.Invalid, "this machine belongs to a cluster, at the address %s", m.Node().Address).
			WithHint("start gantryd with --advertise %s, or the address it has now", m.Node().Address)
	}
	name, err := hostName()
	if err != nil {
		return err
	}
	key, err := m.overlayKey(c)
	if err != nil {
		return err
	}
	return m.update(func(r *gantryv1.MachineRecord) {
		r.Node.Name, r.Node.Address, r.Node.ApiAddress, r.Node.OverlayKey = name, c.Advertise, c.apiAddress(), key
	})
}

// overlayKey is the public key by which other machines know this one where traffic between them is encrypted.
func (m *machine) overlayKey(c Config) (string, error) {
	if c.Advertise == "" || m.Cluster().GetOverlay() != "wireguard" {
		return "", nil
	}
	return network.OverlayKey(filepath.Join(c.Root, "network"))
}

// Node is this machine's own object, as it knows it.
func (m *machine) Node() *gantryv1.Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.record.Node
}

// Cluster is what the machine knows of its cluster.
func (m *machine) Cluster() *gantryv1.Cluster {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.record.Cluster
}

// Record is a copy of all that is on disk.
func (m *machine) Record() *gantryv1.MachineRecord {
	m.mu.Lock()
	defer m.mu.Unlock()
	return proto.Clone(m.record).(*gantryv1.MachineRecord)
}

// Changed is closed with the next change.
func (m *machine) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// isServer reports whether the cluster wants this machine to be a server.
func (m *machine) isServer() bool { return m.Node().Role == string(identity.Server) }

// noServer is why this machine, which is to be a server, cannot be one now; nil if nothing is in the way.
func (m *machine) noServer() error {
	if !m.isServer() {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.barred
}

// bar notes what noServer says.
func (m *machine) bar(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.barred = err
}

// Subnet is the range of this machine's instances.
func (m *machine) Subnet() (netip.Prefix, error) {
	p, err := netip.ParsePrefix(m.Node().Subnet)
	if err != nil {
		return p, fault.Wrap(fault.Corrupt, err, "the range of this node's instances %q cannot be read", m.Node().Subnet)
	}
	return p, nil
}

// virtualIPs is the range of the addresses of services: the cluster's, whatever this daemon was started with. The network could
// not have been opened with one that cannot be read.
func (m *machine) virtualIPs() netip.Prefix {
	p, _ := netip.ParsePrefix(m.Cluster().GetVirtualIps())
	return p
}

// Servers lists where servers answer, without this machine.
func (m *machine) Servers() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(m.record.Servers), func(a string) bool { return a == m.record.Node.ApiAddress })
}

// knows tells the role of a machine that belongs to the cluster, as far as this one has heard. Before it has heard anything
// it knows nobody: a certificate does not say who has been removed since.
func (m *machine) knows(c identity.Caller) (identity.Role, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.known[c.Node]
	return identity.Role(n.GetRole()), n != nil
}

// update changes the record on disk, then in memory. Changes come one after another: fn must not make another one.
func (m *machine) update(fn func(*gantryv1.MachineRecord)) error {
	m.writing.Lock()
	defer m.writing.Unlock()
	next, same := m.Record(), m.Record()
	fn(next)
	if proto.Equal(next, same) {
		return nil
	}
	return m.save(next)
}

func (m *machine) save(r *gantryv1.MachineRecord) error {
	text, err := protojson.MarshalOptions{Multiline: true}.Marshal(r)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot encode this machine's record")
	}
	if err := atomicfile.Write(filepath.Join(m.root, recordFile), text, 0o600); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot keep this machine's record")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.record = r
	m.notify()
	return nil
}

// notify wakes those who wait for a change; mu is held.
func (m *machine) notify() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// heard takes what a server has told of the cluster.
func (m *machine) heard(u *gantryv1.NodeUpdate) error {
	m.mu.Lock()
	m.inTouch = true
	if u.Full {
		clear(m.known)
	}
	for _, n := range u.Nodes {
		m.known[n.Meta.Key] = n
		if n.Meta.Key == m.record.Node.Meta.Key {
			m.notify() // the cluster may think it elsewhere
		}
	}
	for _, id := range u.RemovedNodes {
		delete(m.known, id)
	}
	m.mu.Unlock()
	return m.update(func(r *gantryv1.MachineRecord) {
		if u.Node != nil {
			own := r.Node
			r.Node = proto.Clone(u.Node).(*gantryv1.Node)
			// Of itself the machine knows better where it is.
			r.Node.Name, r.Node.Address, r.Node.ApiAddress, r.Node.OverlayKey = own.Name, own.Address, own.ApiAddress, own.OverlayKey
			r.Node.Meta.Revision = 0
		}
		if u.Cluster != nil {
			r.Cluster = proto.Clone(u.Cluster).(*gantryv1.Cluster)
			r.Cluster.Meta = nil
		}
		if len(u.Servers) > 0 {
			r.Servers = slices.Sorted(slices.Values(u.Servers))
		}
	})
}

// join asks a server to admit this machine.
func (m *machine) join(ctx context.Context, c Config) error {
	welcome, key, err := askToJoin(ctx, c)
	if err != nil {
		return err
	}
	if m.keeper, err = identity.NewKeeper(filepath.Join(m.root, identityDir), welcome.Certificate, key, welcome.Cluster.Roots); err != nil {
		return err
	}
	if welcome.Node.Role == string(identity.Server) {
		if err := seal.Import(filepath.Join(m.root, sealFile), welcome.SecretsKey); err != nil {
			return err
		}
	}
	if err := m.save(&gantryv1.MachineRecord{Node: welcome.Node, Cluster: welcome.Cluster, Servers: welcome.Servers}); err != nil {
		return err
	}
	return m.joined()
}

// joined removes what was needed to join: the key, which the certificate has now, and the token that `gantry join` has put into
// the root. A token elsewhere belongs to whoever put it there.
func (m *machine) joined() error {
	for _, name := range []string{joiningFile, tokenFile} {
		if err := atomicfile.Remove(filepath.Join(m.root, name)); err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot remove %s, with which this machine has joined", name)
		}
	}
	return nil
}

// hasSession reports whether the leader has taken this machine's session and has not gone silent since, and if not, since when.
func (m *machine) hasSession() (since string, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if since = "gantryd was started"; !m.alone.IsZero() {
		since = m.alone.UTC().Format(time.RFC3339)
	}
	return since, m.inTouch
}

// heardOf is this machine's object as the cluster has it; nil before a server was heard.
func (m *machine) heardOf() *gantryv1.Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.known[m.record.Node.Meta.Key]
}
