package nodesession

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

// Spec is what an instance runs; nil while its release is not known.
func Spec(r store.Reader, i *gantryv1.Instance) *gantryv1.ContainerSpec {
	as, _ := assignment(r, i)
	return as.GetSpec()
}

// assignment is an instance with its spec and volumes; nil while its release is not known, which is named then.
func assignment(r store.Reader, i *gantryv1.Instance) (as *gantryv1.Assignment, missing string) {
	spec, needs := i.Spec, []*gantryv1.Dependency(nil)
	if i.App != "" && i.Slot > 0 {
		key := progress.ReleaseKey(progress.Key(i), i.Release)
		release, ok := store.Get[*gantryv1.Release](r, key)
		if !ok {
			if i.Desired != gantryv1.Instance_DESIRED_REMOVED {
				return nil, key
			}
			release = &gantryv1.Release{Spec: &gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{}}}
		}
		spec, needs = release.Spec.Container, release.Spec.DependsOn
	}
	env, _ := store.Get[*gantryv1.Environment](r, i.Environment)
	as = &gantryv1.Assignment{
		Instance: i, Spec: spec, AllowPrivileged: env.GetSpec().GetAllowPrivileged(), Volumes: map[string]*gantryv1.Volume{},
	}
	for _, d := range needs {
		as.DependsOn = append(as.DependsOn, d.Service)
	}
	for _, m := range spec.GetMounts() {
		if m.Type != gantryv1.Mount_TYPE_VOLUME || m.Source == "" {
			continue
		}
		if vol, ok := store.Get[*gantryv1.Volume](r, m.Source); ok {
			as.Volumes[m.Source] = vol
		}
	}
	return as, ""
}

// sources are the paths of the objects whose changes change an assignment.
func sources(as *gantryv1.Assignment, missing string, i *gantryv1.Instance) []string {
	if as == nil {
		return []string{"Release/" + missing}
	}
	out := []string{"Environment/" + i.Environment}
	for _, f := range as.Spec.GetSecrets() {
		out = append(out, "Secret/"+f.Source)
	}
	for _, f := range as.Spec.GetConfigs() {
		out = append(out, "Config/"+f.Source)
	}
	return out
}

// madeFrom names everything an assignment was made from, so that a change of any part is noticed without comparing bytes.
func madeFrom(r store.Reader, as *gantryv1.Assignment) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %d %t", as.Instance.Meta.Revision, as.Instance.Release, as.AllowPrivileged)
	for _, f := range as.Spec.GetSecrets() {
		s, _ := store.Get[*gantryv1.Secret](r, f.Source)
		fmt.Fprintf(&b, " %s@%d", f.Source, s.GetVersion())
	}
	for _, f := range as.Spec.GetConfigs() {
		c, _ := store.Get[*gantryv1.Config](r, f.Source)
		fmt.Fprintf(&b, " %s@%d", f.Source, c.GetVersion())
	}
	return b.String()
}

// contents adds the secrets and configs that the instance uses. A secret that cannot be opened is left out: its instance
// fails for want of it, and no other does.
func (s *session) contents(r store.Reader, as *gantryv1.Assignment) {
	as.Secrets, as.Configs = map[string][]byte{}, map[string][]byte{}
	for _, f := range as.Spec.GetSecrets() {
		sealed, ok := store.Get[*gantryv1.Secret](r, f.Source)
		if !ok {
			continue
		}
		plain, err := s.term.hub.o.Secrets.Open(f.Source, sealed.Sealed)
		if err != nil {
			s.term.hub.log.Error("a secret cannot be opened", "secret", f.Source, "instance", as.Instance.Meta.Key, "err", err)
			continue
		}
		as.Secrets[f.Source] = plain
	}
	for _, f := range as.Spec.GetConfigs() {
		if c, ok := store.Get[*gantryv1.Config](r, f.Source); ok {
			as.Configs[f.Source] = c.Content
		}
	}
}

// parts is an update in the making. It is sent a message at a time, so that what a node is behind is never all in memory.
type parts struct {
	send func(*gantryv1.NodeUpdate) error
	err  error                // of send: nothing is sent after it
	last *gantryv1.NodeUpdate // is not sent yet
	raw  []byte               // its fragments
	size int
	some bool // there is something to say
}

// flush sends the last message.
func (p *parts) flush() {
	if len(p.raw) > 0 { // as fields that it holds in their form on the wire already
		p.last.ProtoReflect().SetUnknown(p.raw)
		p.raw = nil
	}
	if p.err == nil {
		p.err = p.send(p.last)
	}
}

// grow makes room for so many bytes.
func (p *parts) grow(n int) {
	p.some = true
	if p.size > 0 && p.size+n > maxMessage {
		p.last.More = true
		p.flush()
		p.last, p.size = &gantryv1.NodeUpdate{}, 0
	}
	p.size += n
}

func (p *parts) fragment(f fragment) {
	p.grow(len(f))
	if p.raw == nil {
		p.raw = f[:len(f):len(f)] // shared as it is, until a second one comes
	} else {
		p.raw = append(p.raw, f...)
	}
}

func (p *parts) assign(as *gantryv1.Assignment) {
	p.grow(proto.Size(as))
	p.last.Assignments = append(p.last.Assignments, as)
}

func (p *parts) unassign(id string) {
	p.grow(len(id))
	p.last.Unassigned = append(p.last.Unassigned, id)
}

// done sends what is left, and reports whether anything was sent.
func (p *parts) done() (bool, error) {
	if p.some {
		p.flush()
	}
	return p.some, p.err
}
