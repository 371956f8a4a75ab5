package server

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"sort"
	"time"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/control/rollout"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/operation"
	"github.com/gantryd/gantry/operation/rollouts"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/demands"
	"github.com/gantryd/gantry/store/placement"
	"github.com/gantryd/gantry/store/ports"
	"github.com/gantryd/gantry/store/progress"
)

// applier makes the objects of one app match its spec inside a transaction and notes every change. A plan is an apply
// whose transaction is dropped, so that both can never disagree.
type applier struct {
	tx      *store.Tx
	sealer  Sealer
	vips    netip.Prefix
	guarded []string
	req     *gantryv1.ApplyRequest
	digest  func(image, platform string) string // of a local image, "" if there is none
	who     string
	now     time.Time
	changes []*gantryv1.Change
	index   int64    // of the app before the changes
	begun   []string // operations
}

func (a *applier) appKey() string { return a.req.Environment + "/" + a.req.App }

func (a *applier) note(action gantryv1.Change_Action, kind, key string, fields []*gantryv1.FieldChange) {
	a.changes = append(a.changes, &gantryv1.Change{Action: action, Kind: kind, Key: key, Fields: fields})
}

const (
	create = gantryv1.Change_ACTION_CREATE
	change = gantryv1.Change_ACTION_UPDATE
	remove = gantryv1.Change_ACTION_REMOVE
)

// run does it all, in the order in which things refer to each other.
func (a *applier) run() error {
	if err := a.check(); err != nil {
		return err
	}
	if a.index = appIndex(a.tx, a.appKey()); a.req.CheckIndex != 0 && a.req.CheckIndex != a.index {
		return errStale(a.req, a.index)
	}
	a.environment()
	steps := []func() error{a.networks, a.volumes, a.secrets, a.configs, a.services, a.orphans}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	a.app()
	return nil
}

func (a *applier) check() error {
	if err := validName("environment", a.req.Environment); err != nil {
		return err
	}
	if err := validName("app", a.req.App); err != nil {
		return err
	}
	if a.req.Spec == nil || len(a.req.Spec.Services) == 0 {
		return fault.New(fault.Invalid, "the app %q has no services", a.req.App).WithHint("add a service to the Compose file")
	}
	for name, s := range a.req.Spec.Services {
		if err := validName("service", name); err != nil {
			return err
		}
		if err := specValid(name, s); err != nil {
			return err
		}
	}
	for _, name := range a.req.Services {
		if a.req.Spec.Services[name] == nil {
			return fault.New(fault.NotFound, "the app %q has no service %q", a.req.App, name)
		}
	}
	return appKeysValid(a.req.Environment, a.req.Spec)
}

func (a *applier) environment() {
	if _, ok := store.Get[*gantryv1.Environment](a.tx, a.req.Environment); !ok {
		store.Put(a.tx, &gantryv1.Environment{Meta: store.NewMeta(a.req.Environment), Spec: &gantryv1.EnvironmentSpec{}})
	}
}

// app stores the user's words, without the contents of secrets and configs.
func (a *applier) app() {
	spec := proto.Clone(a.req.Spec).(*gantryv1.AppSpec)
	for _, files := range []map[string]*gantryv1.FileSpec{spec.Secrets, spec.Configs} {
		for _, f := range files {
			f.Content = nil
		}
	}
	key := a.appKey()
	old, ok := store.Get[*gantryv1.App](a.tx, key)
	if ok && proto.Equal(old.Spec, spec) {
		return
	}
	app := &gantryv1.App{Meta: store.NewMeta(key), Environment: a.req.Environment, Name: a.req.App, Spec: spec}
	if ok {
		app.Meta = proto.Clone(old.Meta).(*gantryv1.Meta)
	} else {
		a.note(create, "app", key, nil)
	}
	store.Put(a.tx, app)
}

func sorted[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

func (a *applier) networks() error {
	for _, name := range sorted(a.req.Spec.Networks) {
		n := a.req.Spec.Networks[name]
		old, ok := store.Get[*gantryv1.Network](a.tx, n.Key)
		switch {
		case !ok && n.External:
			return fault.New(fault.NotFound, "the external network %q does not exist", n.Key).WithHint("gantry network ls")
		case n.External:
		case !ok:
			store.Put(a.tx, &gantryv1.Network{
				Meta: labelled(n.Key, n.Labels), Internal: n.Internal, Number: nextNumber(a.tx),
			})
			a.note(create, "network", n.Key, nil)
		case old.Internal != n.Internal:
			c := proto.Clone(old).(*gantryv1.Network)
			c.Internal = n.Internal
			a.note(change, "network", n.Key, diff(old, c))
			store.Put(a.tx, c)
		}
	}
	return nil
}

func labelled(key string, labels map[string]string) *gantryv1.Meta {
	return &gantryv1.Meta{Key: key, Labels: labels}
}

// nextNumber is a small number that no network has.
func nextNumber(r store.Reader) uint32 {
	used := map[uint32]bool{}
	for _, n := range store.List[*gantryv1.Network](r, "") {
		used[n.Number] = true
	}
	n := uint32(1)
	for used[n] {
		n++
	}
	return n
}

func (a *applier) volumes() error {
	for _, name := range sorted(a.req.Spec.Volumes) {
		v := a.req.Spec.Volumes[name]
		old, ok := store.Get[*gantryv1.Volume](a.tx, v.Key)
		switch {
		case !ok && v.External:
			return fault.New(fault.NotFound, "the external volume %q does not exist", v.Key).
				WithHint("gantry volume create %s", nameIn(v.Key))
		case v.External:
		case !ok:
			store.Put(a.tx, &gantryv1.Volume{Meta: labelled(v.Key, v.Labels), Driver: v.Driver, DriverOptions: v.DriverOptions})
			a.note(create, "volume", v.Key, nil)
		case old.Driver != v.Driver:
			return fault.New(fault.Conflict, "the volume %q has the driver %q and cannot be given %q", v.Key, old.Driver, v.Driver).
				WithHint("copy the data to a new volume, or remove this one: gantry volume rm %s", nameIn(v.Key))
		}
	}
	return nil
}

const maxFile = 500 << 10 // bytes of one secret or config, as in Docker

func (a *applier) secrets() error {
	for _, name := range sorted(a.req.Spec.Secrets) {
		if err := a.secret(name, a.req.Spec.Secrets[name]); err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) secret(name string, f *gantryv1.FileSpec) error {
	old, ok := store.Get[*gantryv1.Secret](a.tx, f.Key)
	if f.External {
		if !ok {
			return fault.New(fault.NotFound, "the external secret %q does not exist", f.Key).WithHint("gantry secret create %s FILE", nameIn(f.Key))
		}
		return nil
	}
	if len(f.Content) > maxFile {
		return fault.New(fault.Invalid, "the secret %q has %d bytes, more than %d", name, len(f.Content), maxFile)
	}
	print := a.sealer.Fingerprint(f.Key, f.Content)
	if ok && old.Fingerprint == print {
		return nil
	}
	sealed, err := a.sealer.Seal(f.Key, f.Content)
	if err != nil {
		return err
	}
	s := &gantryv1.Secret{Meta: labelled(f.Key, f.Labels), Version: old.GetVersion() + 1, Sealed: sealed, Fingerprint: print}
	a.noteFile("secret", f.Key, ok)
	store.Put(a.tx, s)
	return nil
}

func (a *applier) noteFile(kind, key string, existed bool) {
	if existed {
		a.note(change, kind, key, []*gantryv1.FieldChange{{Path: "content", Old: "as before", New: "changed"}})
		return
	}
	a.note(create, kind, key, nil)
}

func (a *applier) configs() error {
	for _, name := range sorted(a.req.Spec.Configs) {
		f := a.req.Spec.Configs[name]
		old, ok := store.Get[*gantryv1.Config](a.tx, f.Key)
		if f.External {
			if !ok {
				return fault.New(fault.NotFound, "the external config %q does not exist", f.Key).WithHint("gantry config create %s FILE", nameIn(f.Key))
			}
			continue
		}
		if len(f.Content) > maxFile {
			return fault.New(fault.Invalid, "the config %q has %d bytes, more than %d", name, len(f.Content), maxFile)
		}
		if ok && string(old.Content) == string(f.Content) {
			continue
		}
		a.noteFile("config", f.Key, ok)
		store.Put(a.tx, &gantryv1.Config{Meta: labelled(f.Key, f.Labels), Version: old.GetVersion() + 1, Content: f.Content})
	}
	return nil
}

// wanted is the services to apply: those asked for with all they depend on.
func (a *applier) wanted() map[string]bool {
	out := map[string]bool{}
	var visit func(name string)
	visit = func(name string) {
		s := a.req.Spec.Services[name]
		if s == nil || out[name] {
			return
		}
		out[name] = true
		if a.req.NoDependencies && len(a.req.Services) > 0 {
			return
		}
		for _, d := range s.DependsOn {
			visit(d.Service)
		}
	}
	names := a.req.Services
	if len(names) == 0 {
		names = sorted(a.req.Spec.Services)
	}
	for _, n := range names {
		visit(n)
	}
	return out
}

func (a *applier) services() error {
	for _, name := range sorted(a.wanted()) {
		spec := proto.Clone(a.req.Spec.Services[name]).(*gantryv1.ServiceSpec)
		if err := a.resolve(spec); err != nil {
			return err
		}
		if err := a.service(name, spec); err != nil {
			return err
		}
	}
	return nil
}

// resolve fills in what a release fixes: the image's digest, the versions of secrets and configs.
func (a *applier) resolve(spec *gantryv1.ServiceSpec) error {
	c := spec.Container
	if c.ImageDigest == "" && c.Rootfs == "" {
		c.ImageDigest = a.digest(c.Image, c.Platform)
	}
	for _, f := range c.Secrets {
		s, ok := store.Get[*gantryv1.Secret](a.tx, f.Source)
		if !ok {
			return fault.New(fault.NotFound, "the secret %q does not exist", f.Source).WithHint("gantry secret create %s FILE", nameIn(f.Source))
		}
		f.Version = s.Version
	}
	for _, f := range c.Configs {
		s, ok := store.Get[*gantryv1.Config](a.tx, f.Source)
		if !ok {
			return fault.New(fault.NotFound, "the config %q does not exist", f.Source).WithHint("gantry config create %s FILE", nameIn(f.Source))
		}
		f.Version = s.Version
	}
	return permitted(a.tx, a.req.Environment, c, a.guarded)
}

// permitted refuses a spec that amounts to root on the machine in an environment that does not permit it.
func permitted(r store.Reader, environment string, c *gantryv1.ContainerSpec, guarded []string) error {
	if demand := demands.Privileged(c, guarded); demand != "" {
		return allowed(r, environment, demand)
	}
	return nil
}

func allowed(r store.Reader, environment, demand string) error {
	env, _ := store.Get[*gantryv1.Environment](r, environment)
	if env.GetSpec().GetAllowPrivileged() {
		return nil
	}
	return fault.New(fault.Denied, "%s is as much as root on the machine, which the environment %q does not permit", demand, environment).
		WithHint("gantry system set-environment %s --allow-privileged", environment)
}

func (a *applier) service(name string, spec *gantryv1.ServiceSpec) error {
	key := a.appKey() + "/" + name
	old, ok := store.Get[*gantryv1.Service](a.tx, key)
	if ok && old.Removing {
		return fault.New(fault.Conflict, "the service %q is still being removed", name).WithHint("gantry ps, and try again when it is gone")
	}
	s := &gantryv1.Service{Meta: store.NewMeta(key), Environment: a.req.Environment, App: a.req.App, Name: name}
	if ok {
		s = proto.Clone(old).(*gantryv1.Service)
	}
	if s.VirtualIp == "" {
		if err := a.address(s, spec); err != nil {
			return err
		}
	}
	s.Spec, s.Replicas, s.Stopped = spec, spec.Replicas, false
	if ok && old.Stopped {
		s.RestartGeneration = nextGeneration(a.tx, s)
	}
	fields, err := a.release(s, old)
	if err != nil {
		return err
	}
	if err := ports.Assign(a.tx, s); err != nil {
		return err
	}
	switch {
	case !ok:
		a.note(create, "service", key, nil)
	case proto.Equal(old, s):
		return nil
	default:
		if old.Replicas != s.Replicas {
			fields = append(fields, diff(&gantryv1.Service{Replicas: old.Replicas}, &gantryv1.Service{Replicas: s.Replicas})...)
		}
		if old.Stopped {
			fields = append(fields, &gantryv1.FieldChange{Path: "stopped", Old: "true", New: "false"})
		}
		if len(fields) > 0 {
			a.note(change, "service", key, fields)
		}
	}
	store.Put(a.tx, s)
	return nil
}

// release points the service to a release with its spec, a new one if what runs would differ.
func (a *applier) release(s, old *gantryv1.Service) ([]*gantryv1.FieldChange, error) {
	hash, err := specHash(s.Spec)
	if err != nil {
		return nil, err
	}
	current, ok := store.Get[*gantryv1.Release](a.tx, rollout.ReleaseKey(s.Meta.Key, s.Release))
	if placement.IsJob(s.Spec) {
		operation.Abandon(a.tx, s.Meta.Key, "the service has become a job", a.now)
	}
	if ok && current.SpecHash == hash && !a.forced(s.Name) && !a.displaced(s, current.Spec) {
		return diff(rest(old.Spec), rest(s.Spec)), nil
	}
	number := int64(1)
	all := store.List[*gantryv1.Release](a.tx, s.Meta.Key+"/")
	if len(all) > 0 {
		number = all[len(all)-1].Number + 1
	}
	a.forget(all[:max(0, len(all)-keepReleases)], s)
	store.Put(a.tx, &gantryv1.Release{
		Meta: store.NewMeta(rollout.ReleaseKey(s.Meta.Key, number)), Service: s.Meta.Key, Number: number,
		Spec: s.Spec, SpecHash: hash,
	})
	s.PreviousRelease, s.Release = s.Release, number
	if !placement.IsJob(s.Spec) {
		op := rollouts.Begin(a.tx, s, a.who, rollouts.CauseUp, a.now)
		a.begun = append(a.begun, op.Meta.Key)
		if op.Rollout.From != 0 {
			s.PreviousRelease = op.Rollout.From // what never worked is nothing to go back to
		}
	}
	if !ok {
		return nil, nil
	}
	return append(diff(running(current.Spec), running(s.Spec)), diff(rest(old.Spec), rest(s.Spec))...), nil
}

// displaced reports that a change of constraints leaves an instance of a service on a machine that they exclude, so that a rollout
// is to move it. One with a volume stays where its data is; a global service follows its machines by itself.
func (a *applier) displaced(s *gantryv1.Service, was *gantryv1.ServiceSpec) bool {
	if slices.Equal(was.GetPlacement().GetConstraints(), s.Spec.GetPlacement().GetConstraints()) || placement.IsGlobal(s.Spec) || placement.IsJob(s.Spec) {
		return false
	}
	for _, i := range store.List[*gantryv1.Instance](a.tx, "") {
		n, ok := store.Get[*gantryv1.Node](a.tx, i.Node)
		if progress.Key(i) != s.Meta.Key || !ok || progress.Pinned(a.tx, i) != "" {
			continue
		}
		if st, _ := store.Get[*gantryv1.NodeStatus](a.tx, i.Node); !placement.Meets(n, st, s.Spec) {
			return true
		}
	}
	return false
}

const keepReleases = 20 // per service, besides those in use

// forget deletes old releases, but none that the service may return to or that an instance was made from: its node has to
// be told the spec as long as it is there.
func (a *applier) forget(old []*gantryv1.Release, s *gantryv1.Service) {
	if len(old) == 0 {
		return
	}
	used := map[int64]bool{s.Release: true, s.PreviousRelease: true, rollouts.Good(operation.Last(a.tx, s.Meta.Key)): true}
	for _, i := range store.List[*gantryv1.Instance](a.tx, "") {
		if progress.Key(i) == s.Meta.Key {
			used[i.Release] = true
		}
	}
	for _, r := range old {
		if !used[r.Number] {
			store.Delete[*gantryv1.Release](a.tx, r.Meta.Key)
		}
	}
}

func (a *applier) forced(name string) bool {
	if !a.req.ForceRecreate {
		return false
	}
	if len(a.req.Services) == 0 {
		return true
	}
	for _, s := range a.req.Services {
		if s == name {
			return true
		}
	}
	return false
}

// running is the part of a spec that a running container was made from.
func running(s *gantryv1.ServiceSpec) *gantryv1.ServiceSpec {
	return &gantryv1.ServiceSpec{Container: s.GetContainer(), Version: s.GetVersion()}
}

// rest is the part that only says how the platform treats the service.
func rest(s *gantryv1.ServiceSpec) *gantryv1.ServiceSpec {
	if s == nil {
		return &gantryv1.ServiceSpec{}
	}
	c := proto.Clone(s).(*gantryv1.ServiceSpec)
	c.Container, c.Version, c.Build, c.Replicas = nil, "", nil, 0
	return c
}

func specHash(s *gantryv1.ServiceSpec) (string, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(running(s))
	if err != nil {
		return "", fault.Wrap(fault.Internal, err, "cannot encode the spec of a service")
	}
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

// address gives a service on the bridge its virtual IP.
func (a *applier) address(s *gantryv1.Service, spec *gantryv1.ServiceSpec) error {
	switch spec.Container.GetNetwork().GetKind() {
	case gantryv1.NetworkMode_KIND_BRIDGE, gantryv1.NetworkMode_KIND_UNSPECIFIED:
	default:
		return nil
	}
	used := map[string]bool{}
	for _, o := range store.List[*gantryv1.Service](a.tx, "") {
		used[o.VirtualIp] = true
	}
	for ip := a.vips.Masked().Addr().Next(); a.vips.Contains(ip); ip = ip.Next() {
		if !used[ip.String()] {
			s.VirtualIp = ip.String()
			return nil
		}
	}
	return fault.New(fault.Exhausted, "all virtual addresses of %s are taken", a.vips).
		WithHint("remove services, or start gantryd with a larger --virtual-ips range")
}

// orphans are services that the app has and its file no longer names.
func (a *applier) orphans() error {
	if !a.req.RemoveOrphans {
		return nil
	}
	for _, s := range store.List[*gantryv1.Service](a.tx, a.appKey()+"/") {
		if a.req.Spec.Services[s.Name] != nil || s.Removing {
			continue
		}
		a.note(remove, "service", s.Meta.Key, nil)
		if err := store.Modify(a.tx, s.Meta.Key, func(o *gantryv1.Service) error { o.Removing = true; return nil }); err != nil {
			return err
		}
	}
	return nil
}
