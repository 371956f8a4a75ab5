package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/network"
)

// create makes the container of an instance: image, volumes, network, files. What it made is found again by the next
// attempt, or removed with the instance.
func (w *worker) create(ctx context.Context, as *gantryv1.Assignment) error {
	as, err := w.permitted(as)
	if err != nil {
		return err
	}
	spec := as.Spec
	if err := w.haveImage(ctx, spec); err != nil {
		return err
	}
	w.progress(inPhase(gantryv1.InstanceStatus_PHASE_CREATING))
	req := engine.CreateRequest{
		ID: w.id, Name: instanceName(as.Instance), Spec: spec, Group: shimGroup(as.Instance), Labels: labels(as.Instance),
	}
	if req.Mounts, err = w.mounts(ctx, as); err != nil {
		return err
	}
	if req.Files, err = w.files(as); err != nil {
		return err
	}
	if err := w.noteJoined(as); err != nil {
		return err
	}
	if err := w.connect(ctx, as, &req); err != nil {
		return err
	}
	if err := w.share(as, &req); err != nil {
		return err
	}
	if err := w.noteMade(ctx, as); err != nil {
		return err
	}
	return w.saveWhile(func() error { return w.a.Engine.Create(ctx, req) })
}

// noteRoot lets people see who root is in the container.
func (w *worker) noteRoot(ctx context.Context) error {
	st, err := w.a.Engine.State(ctx, w.id)
	if err != nil {
		return err
	}
	w.progress(func(s *gantryv1.InstanceStatus) { s.RootId, s.RootReason = st.IDBase, st.HostIDs })
	return nil
}

// noteMade notes what the container is made from, and that its first run comes next. It is on disk before that run begins.
// A crash before leaves a container without a record, which is removed at the next start, or a record of one that is made
// and started then.
func (w *worker) noteMade(ctx context.Context, as *gantryv1.Assignment) error {
	health, err := w.resolveHealthcheck(ctx, as.Spec)
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.rec.Healthcheck = health
	w.rec.StartedGeneration, w.rec.StartedRuns, w.rec.StopRequested = as.Instance.RestartGeneration, 1, false
	w.mu.Unlock()
	return nil
}

func (w *worker) haveImage(ctx context.Context, spec *gantryv1.ContainerSpec) error {
	if spec.Rootfs != "" {
		return nil
	}
	policy := gantryv1.PullPolicy_PULL_POLICY_MISSING
	if spec.PullPolicy == gantryv1.PullPolicy_PULL_POLICY_NEVER || spec.PullPolicy == gantryv1.PullPolicy_PULL_POLICY_BUILD {
		policy = gantryv1.PullPolicy_PULL_POLICY_NEVER
	}
	ref := spec.Image
	if spec.ImageDigest != "" {
		ref = pinned(spec.Image, spec.ImageDigest)
	}
	if _, err := w.a.Images.Lookup(ctx, ref, spec.Platform); err == nil || !fault.Is(err, fault.NotFound) {
		return err
	}
	w.progress(inPhase(gantryv1.InstanceStatus_PHASE_PULLING))
	defer w.a.figures.Images.Since(time.Now())
	_, err := w.a.Images.Pull(ctx, &gantryv1.PullRequest{Image: ref, Platform: spec.Platform, Policy: policy},
		func(*gantryv1.Progress) error { return nil })
	return err
}

// pinned is a reference by digest: name@sha256:…
func pinned(image, digest string) string {
	name, _, _ := strings.Cut(image, "@")
	return name + "@" + digest
}

func instanceName(i *gantryv1.Instance) string {
	if i.Slot == 0 {
		return i.Service
	}
	return fmt.Sprintf("%s.%d", i.Service, i.Slot)
}

// serviceKey is "env/app/service"; `gantry run` instances are a service of their own without an app.
func serviceKey(i *gantryv1.Instance) string { return i.Environment + "/" + i.App + "/" + i.Service }

// shimMembers bounds the containers that share a shim. A shim hands every exit to all who wait for one, through buffers of
// 32; with few members these never fill, however many end at once. See doc/adr/0004-shared-shims.md.
const shimMembers = 8

// shimGroup names those who share a shim: neighbouring slots of one service.
func shimGroup(i *gantryv1.Instance) string {
	if i.Slot == 0 {
		return "" // what `gantry run` starts has one of its own
	}
	return fmt.Sprintf("%s/%d", serviceKey(i), (i.Slot-1)/shimMembers)
}

func labels(i *gantryv1.Instance) map[string]string {
	return map[string]string{
		"gantry.environment": i.Environment, "gantry.app": i.App, "gantry.service": i.Service,
		"gantry.slot": fmt.Sprint(i.Slot), "gantry.release": fmt.Sprint(i.Release),
	}
}

// mounts resolves volumes to places on this machine.
func (w *worker) mounts(ctx context.Context, as *gantryv1.Assignment) ([]engine.Mount, error) {
	var out []engine.Mount
	for _, m := range as.Spec.Mounts {
		r, err := w.mount(ctx, as, m)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func (w *worker) mount(ctx context.Context, as *gantryv1.Assignment, m *gantryv1.Mount) (engine.Mount, error) {
	r := engine.Mount{
		Target: m.Target, ReadOnly: m.ReadOnly, Propagation: m.Propagation, Options: slices.Clone(m.Options), Type: "bind",
	}
	switch m.Type {
	case gantryv1.Mount_TYPE_TMPFS:
		r.Type = "tmpfs"
		if m.TmpfsSize > 0 {
			r.Options = append(r.Options, fmt.Sprintf("size=%d", m.TmpfsSize))
		}
		if m.TmpfsMode > 0 {
			r.Options = append(r.Options, fmt.Sprintf("mode=%o", m.TmpfsMode))
		}
		return r, nil
	case gantryv1.Mount_TYPE_BIND:
		r.Source = m.Source
		return r, createBindSource(m)
	}
	key, driver, options := m.Source, "", map[string]string(nil)
	if key == "" {
		key = w.anonymousKey(m.Target)
	} else if v := as.Volumes[key]; v != nil {
		driver, options = v.Driver, v.DriverOptions
	}
	path, _, err := w.a.Volumes.Ensure(ctx, key, driver, options)
	if err != nil {
		return r, err
	}
	r.Type, r.CopyUp = "volume", !m.NoCopy && m.Subpath == ""
	r.Source, r.Subpath = path, m.Subpath
	if m.Subpath == "" {
		return r, nil
	}
	// Only to say early and well what is wrong with it: the engine opens it again when it mounts it.
	f, err := w.a.Volumes.OpenSubpath(ctx, key, m.Subpath)
	if err != nil {
		return r, err
	}
	return r, f.Close()
}

const anonymousPrefix = "anonymous/"

// anonymousKey names the volume of an instance that has no name of its own.
func (w *worker) anonymousKey(target string) string {
	sum := sha256.Sum256([]byte(target))
	return anonymousPrefix + w.id + "/" + hex.EncodeToString(sum[:4])
}

func (w *worker) removeAnonymous(ctx context.Context) error {
	infos, err := w.a.Volumes.List(ctx)
	if err != nil {
		return err
	}
	for _, v := range infos {
		if strings.HasPrefix(v.Key, anonymousPrefix+w.id+"/") {
			if err := w.a.Volumes.Remove(ctx, v.Key); err != nil {
				return err
			}
		}
	}
	return nil
}

// files collects secrets and configs with their contents.
func (w *worker) files(as *gantryv1.Assignment) ([]engine.File, error) {
	if w.lacksSecrets(as) {
		return nil, fault.New(fault.Unavailable, "its secrets come from a server, and none has been heard since gantryd started").
			WithHint("gantry cluster status")
	}
	var out []engine.File
	add := func(refs []*gantryv1.FileRef, contents map[string][]byte, what string) error {
		for _, f := range refs {
			content, ok := contents[f.Source]
			if !ok {
				return fault.New(fault.NotFound, "the %s %q is not there", what, f.Source).
					WithHint("gantry %s create %s FILE", what, f.Source)
			}
			uid, gid, err := owner(f)
			if err != nil {
				return err
			}
			out = append(out, engine.File{Target: f.Target, Content: content, UID: uid, GID: gid, Mode: os.FileMode(f.Mode)})
		}
		return nil
	}
	if err := add(as.Spec.Secrets, as.Secrets, "secret"); err != nil {
		return nil, err
	}
	return out, add(as.Spec.Configs, as.Configs, "config")
}

// lacksSecrets reports that the contents of secrets are not known: they are not kept on disk, and no server has sent them yet.
func (w *worker) lacksSecrets(as *gantryv1.Assignment) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.told && len(as.Spec.GetSecrets()) > 0
}

// owner is the numbers of a file's owner; nothing means root.
func owner(f *gantryv1.FileRef) (uid, gid int, err error) {
	for _, id := range []struct {
		text string
		to   *int
	}{{f.Uid, &uid}, {f.Gid, &gid}} {
		if id.text == "" {
			continue
		}
		if *id.to, err = strconv.Atoi(id.text); err != nil {
			return 0, 0, fault.New(fault.Invalid, "the owner %q of %s is not a number", id.text, f.Target)
		}
	}
	return uid, gid, nil
}

// connect gives the container its network, with its name server and hosts.
func (w *worker) connect(ctx context.Context, as *gantryv1.Assignment, req *engine.CreateRequest) error {
	n := as.Spec.GetNetwork()
	switch n.GetKind() {
	case gantryv1.NetworkMode_KIND_NONE:
		req.Hosts = hosts(as.Spec, w.id, netip.Addr{}, netip.Addr{})
		return nil
	case gantryv1.NetworkMode_KIND_HOST:
		req.Netns = "host"
		resolv, _ := os.ReadFile("/etc/resolv.conf")
		req.ResolvConf, req.Hosts = resolv, hosts(as.Spec, w.id, netip.Addr{}, w.a.Network.Gateway())
		return nil
	case gantryv1.NetworkMode_KIND_SERVICE, gantryv1.NetworkMode_KIND_CONTAINER:
		return w.join(as, n.GetTarget(), req)
	}
	return w.bridge(ctx, as, req)
}

func (w *worker) bridge(ctx context.Context, as *gantryv1.Assignment, req *engine.CreateRequest) error {
	at, err := w.attachNetwork(ctx, as)
	if err != nil {
		return err
	}
	req.Netns = at.Netns
	req.ResolvConf = resolvConf(as.Spec, at.Gateway)
	req.Hosts = hosts(as.Spec, w.id, at.IPv4, at.Gateway)
	return nil
}

// attachNetwork gives the instance its link, the same one every time, and lets the kernel know its address before the
// first packet of the process.
func (w *worker) attachNetwork(ctx context.Context, as *gantryv1.Assignment) (network.Attachment, error) {
	opts := network.AttachOptions{MAC: as.Spec.MacAddress}
	if text := as.Spec.GetNetwork().GetAddress(); text != "" {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return network.Attachment{}, fault.Wrap(fault.Invalid, err, "the address %q of the instance is not one", text)
		}
		opts.Address = addr
	}
	w.a.state.setNameServers(w.id, as.Spec)
	at, err := w.a.Network.Attach(ctx, w.id, opts)
	if err != nil {
		return at, err
	}
	w.progress(func(s *gantryv1.InstanceStatus) {
		s.Address, s.Address6 = at.IPv4.String(), ""
		if at.IPv6.IsValid() {
			s.Address6 = at.IPv6.String()
		}
	})
	w.a.state.apply(ctx, w.a.log)
	return at, w.a.state.portError(serviceKey(as.Instance))
}

// join puts the container into the network of another instance on this machine.
func (w *worker) join(as *gantryv1.Assignment, target string, req *engine.CreateRequest) error {
	other := w.peer(as.Instance, target)
	if other == nil {
		return errNoPeer(sharedNamespace{"net", target})
	}
	theirs := other.assignment().Spec
	switch theirs.GetNetwork().GetKind() {
	case gantryv1.NetworkMode_KIND_UNSPECIFIED, gantryv1.NetworkMode_KIND_BRIDGE:
	default:
		return fault.New(fault.Unsupported, "%q, whose network is to be shared, has none of its own", target).
			WithHint("give %s a network of its own, or both the same network_mode", target)
	}
	at, ok := w.a.Network.Attached(other.id) // its own worker attaches it, with what its spec asks for
	if !ok {
		return errNoPeer(sharedNamespace{"net", target})
	}
	req.Netns, req.ResolvConf = at.Netns, resolvConf(as.Spec, at.Gateway)
	req.Hosts = hosts(theirs, other.id, at.IPv4, at.Gateway)
	return nil
}

func resolvConf(spec *gantryv1.ContainerSpec, gateway netip.Addr) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "nameserver %s\n", gateway)
	if len(spec.DnsSearch) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(spec.DnsSearch, " "))
	}
	options := spec.DnsOptions
	if len(options) == 0 {
		options = []string{"ndots:0"}
	}
	fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	return []byte(b.String())
}

func hosts(spec *gantryv1.ContainerSpec, id string, address, gateway netip.Addr) []byte {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	if address.IsValid() {
		name := spec.Hostname
		if name == "" {
			name = id
		}
		if spec.Domainname != "" {
			name = name + "." + spec.Domainname + " " + name
		}
		fmt.Fprintf(&b, "%s\t%s\n", address, name)
	}
	for _, h := range spec.ExtraHosts {
		host, addr, ok := strings.Cut(h, ":")
		if !ok {
			continue
		}
		if addr == "host-gateway" {
			addr = gateway.String()
		}
		fmt.Fprintf(&b, "%s\t%s\n", strings.Trim(addr, "[]"), host)
	}
	return []byte(b.String())
}
