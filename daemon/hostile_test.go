package daemon

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"path"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/control/job"
	"github.com/gantryd/gantry/control/rollout"
	"github.com/gantryd/gantry/control/schedule"
	"github.com/gantryd/gantry/store"
)

var hostileSeed = flag.Uint64("hostile-seed", 0, "repeat the random messages of an earlier run")

// filler makes messages at random: parts that are missing, parts that fit, and parts that do harm where nobody has looked.
type filler struct {
	*rand.Rand
	rare int // of so many values one does not fit
}

// fill sets some of the fields of a message.
func (f filler) fill(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		d := fields.Get(i)
		plain := d.Kind() == protoreflect.StringKind && !d.IsList() && !d.IsMap()
		if f.IntN(10) < 3 && (!plain || f.IntN(f.rare) == 0) || depth == 0 && d.Kind() == protoreflect.MessageKind {
			continue
		}
		switch {
		case d.IsMap():
			for range f.IntN(3) {
				v := m.Mutable(d).Map().NewValue()
				m.Mutable(d).Map().Set(f.value(d.MapKey(), v, string(d.Name()), depth).MapKey(), f.value(d.MapValue(), v, string(d.Name()), depth))
			}
		case d.IsList():
			for range f.IntN(3) {
				l := m.Mutable(d).List()
				l.Append(f.value(d, l.NewElement(), string(d.Name()), depth))
			}
		default:
			m.Set(d, f.value(d, m.NewField(d), string(d.Name()), depth))
		}
	}
}

func (f filler) value(d protoreflect.FieldDescriptor, fresh protoreflect.Value, name string, depth int) protoreflect.Value {
	switch d.Kind() {
	case protoreflect.MessageKind:
		if depth > 0 && f.IntN(f.rare) > 0 {
			f.fill(fresh.Message(), depth-1)
		}
		return fresh
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(f.text(name))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(f.text(name)))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(f.IntN(2) == 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(f.IntN(d.Enum().Values().Len()+1) - f.IntN(20)/19))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(f.number()))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(f.number())
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(f.number()))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(f.number()))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64([]float64{0, 0.5, -1, math.NaN(), math.Inf(1), 1e300}[f.IntN(6)])
	}
	panic(fmt.Sprintf("no value for a field of kind %s", d.Kind()))
}

func (f filler) number() int64 {
	odd := []int64{-1, math.MaxInt32, math.MinInt32, math.MaxInt64, math.MinInt64, 1 << 40, 100_001}
	if f.IntN(min(f.rare, 8)) == 0 { // few of them are refused at once
		return odd[f.IntN(len(odd))]
	}
	return int64(f.IntN(4))
}

// text is mostly what the field may be, so that the message gets beyond the first check.
func (f filler) text(name string) string {
	odd := []string{
		"", " ", "/", "..", "../../etc", "\x1b[2J\x1b]0;x\a", "a\nb", "\x00", "production/", "//", "a/b/c/d", "%s%n", "-rf",
		"\u202e\u2028", "é", "1.2.3.4.5", string(make([]byte, 300)), "sha256:", "::", "0", "-1", "99999999999999999999", "*", "=", "@", "a@b:c",
	}
	if f.IntN(f.rare) == 0 {
		return odd[f.IntN(len(odd))]
	}
	fits := map[string][]string{
		"environment": {"production"}, "app": {"shop"}, "service": {"web", "db", "tick"}, "services": {"web", "db", "tick"},
		"volumes": {"data"}, "networks": {"default"}, "secrets": {"data"}, "configs": {"data"}, "depends_on": {"db"},
		"key": {"production/shop/data", "production/shop/default"}, "rootfs": {"", "/srv"}, "name": {"web", "data", "key", "other1"}, "target": {"web", "shop/web.1", "i1"}, "targets": {"web", "i1"},
		"source": {"production/shop/data", "production/data"}, "network": {"production/shop/default"}, "image": {"app:1"},
		"node": {aNode, aServer, "other1"}, "api_address": {"10.0.0.9:7450"}, "address": {"10.0.0.9"}, "driver": {"", "pool"},
		"role": {"node", "server"}, "mode": {"", "global", "job", "host"}, "strategy": {"rolling", "canary", "blue-green", "recreate"},
		"schedule": {"* * * * *", "@hourly", ""}, "time_zone": {"Europe/Berlin", ""}, "availability": {"drain", "active"},
		"failure_action": {"rollback", "pause", "continue"}, "order": {"start-first", "stop-first"}, "constraints": {"node.labels.a == b"},
		"image_digest": {"sha256:0000000000000000000000000000000000000000000000000000000000000000"}, "signal": {"TERM", "9"}, "path": {"/etc", "a"},
		"instance": {"i1", "i2"}, "removed": {"i1", "i2"}, "condition": {"service_healthy"},
	}
	if words := fits[name]; len(words) > 0 {
		return words[f.IntN(len(words))]
	}
	return []string{"a", "b", "production/shop/data", "10.0.0.1", "web", "1"}[f.IntN(6)]
}

// message makes one for a method.
func (f filler) message(m protoreflect.MethodDescriptor) proto.Message {
	f.rare = []int{3, 8, 30, 200}[f.IntN(4)]
	msg := proto.Message(dynamicpb.NewMessage(m.Input()))
	f.fill(msg.ProtoReflect(), 1+f.IntN(6))
	if f.IntN(4) > 0 {
		return plausible(msg)
	}
	return msg
}

// plausible makes good in a message what would be refused at first sight, so that the rest of it is looked at.
func plausible(msg proto.Message) proto.Message {
	switch msg.ProtoReflect().Descriptor().Name() {
	case "ApplyRequest":
		return typed(msg, &gantryv1.ApplyRequest{}, func(m *gantryv1.ApplyRequest) {
			if m.Environment, m.App, m.CheckIndex, m.Services = "production", "shop", 0, nil; m.Spec == nil {
				m.Spec = &gantryv1.AppSpec{}
			}
			if len(m.Spec.Services) == 0 {
				m.Spec.Services = map[string]*gantryv1.ServiceSpec{"web": {}}
			}
			for name, s := range m.Spec.Services {
				if s.Container == nil {
					s.Container = &gantryv1.ContainerSpec{}
				}
				if s.Container.Image = "app:1"; !slices.Contains([]string{"web", "db", "tick"}, name) {
					delete(m.Spec.Services, name)
					m.Spec.Services["tick"] = s
				}
			}
		})
	case "CreateInstanceRequest":
		return typed(msg, &gantryv1.CreateInstanceRequest{}, func(m *gantryv1.CreateInstanceRequest) {
			if m.Environment, m.Name, m.App = "production", "", ""; m.Spec == nil {
				m.Spec = &gantryv1.ContainerSpec{}
			}
			m.Spec.Image = "app:1"
		})
	}
	return msg
}

// typed gives a message its own type, and changes it.
func typed[T proto.Message](from proto.Message, to T, change func(T)) proto.Message {
	b, err := proto.Marshal(from)
	if err != nil {
		return from
	}
	if err := proto.Unmarshal(b, to); err != nil {
		return from
	}
	change(to)
	return to
}

// messages makes several for a method that takes much, one for others.
func (f filler) messages(m protoreflect.MethodDescriptor) (out []proto.Message) {
	n := 1
	switch m.Input().Name() {
	case "ApplyRequest", "CreateInstanceRequest", "NodeReport":
		n = 10
	case "ScaleRequest", "RollbackRequest", "OperationTarget", "InstanceTarget", "RemoveAppRequest":
		n = 3
	}
	for range n {
		out = append(out, f.message(m))
	}
	return out
}

// control runs the controllers, which have to live with whatever the API has let in.
func (r *rig) control() {
	ctx, cancel := context.WithCancel(context.Background())
	st, log := r.serving.store, r.front.role.d.Logger
	var wg sync.WaitGroup
	for name, run := range map[string]func(context.Context) error{
		"rollout": rollout.New(st, log).Run, "job": job.New(st, log).Run, "schedule": schedule.New(st, log).Run,
	} {
		wg.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				r.t.Errorf("%s ended: %v", name, err)
			}
		})
	}
	r.t.Cleanup(func() { cancel(); wg.Wait() })
}

// populate puts in something that messages can mean.
func (r *rig) populate() {
	check(r.t, r.serving.store.Update(r.t.Context(), func(tx *store.Tx) error {
		store.Put(tx, &gantryv1.Environment{Meta: store.NewMeta("production"), Spec: &gantryv1.EnvironmentSpec{AllowPrivileged: true}})
		store.Put(tx, &gantryv1.Volume{Meta: store.NewMeta("production/shop/data")})
		for n, node := range []string{aNode, aServer, ""} {
			store.Put(tx, &gantryv1.Instance{
				Meta: store.NewMeta(fmt.Sprint("i", n+1)), Environment: "production", Service: fmt.Sprint("run", n), Node: node,
				Spec: &gantryv1.ContainerSpec{Image: "app:1"}, Desired: gantryv1.Instance_DESIRED_RUNNING,
			})
		}
		return nil
	}))
}

// TestNoMessageDoesHarm sends every method messages that are empty and messages that are filled at random. Each has to be
// answered, by whatever but a panic or a fault of the platform's own, and the controllers have to go on.
func TestNoMessageDoesHarm(t *testing.T) {
	seed := *hostileSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-hostile-seed %d", seed)
	f := filler{rand.New(rand.NewPCG(seed, 1)), 8}
	r := newRig(t)
	r.populate()
	r.control()
	doors, rules, all := r.doors(), access(), methods()
	rounds := 20
	if testing.Short() {
		rounds = 3
	}
	for round := range rounds {
		var wg sync.WaitGroup
		slots := make(chan struct{}, 16)
		for _, procedure := range slices.Sorted(maps.Keys(all)) {
			if harmsTheRig(procedure) {
				continue
			}
			msgs := []proto.Message{dynamicpb.NewMessage(all[procedure].Input())}
			if round > 0 {
				msgs = f.messages(all[procedure])
			}
			for _, who := range []string{operator, nodeCert, serverCert} {
				if !slices.Contains(rules[procedure], who) {
					continue
				}
				for _, msg := range msgs {
					slots <- struct{}{}
					wg.Go(func() {
						defer func() { <-slots }()
						r.harmless(who, doors[who], procedure, all[procedure], msg)
					})
				}
			}
		}
		wg.Wait()
	}
	for _, procedure := range []string{"AppService/List", "InstanceService/List", "NodeAdminService/List", "OperationService/List"} {
		procedure = "/gantry.v1." + procedure
		if got := r.call(doors[operator], procedure, all[procedure], time.Minute, dynamicpb.NewMessage(all[procedure].Input())); got.code != 0 || got.err != nil {
			t.Errorf("afterwards %s answers %+v", procedure, got)
		}
	}
}

// harmsTheRig names what takes the machines away as which the test calls.
func harmsTheRig(procedure string) bool {
	switch path.Base(procedure) {
	case "ForceNewCluster", "Restore":
		return true
	case "Remove", "Demote", "Promote", "SetAvailability":
		return path.Base(path.Dir(procedure)) == "gantry.v1.NodeAdminService"
	}
	return false
}

func (r *rig) harmless(who string, d door, procedure string, m protoreflect.MethodDescriptor, msg proto.Message) {
	if m.Input().Name() == "NodeReport" { // of the machine that calls
		msg = typed(msg, &gantryv1.NodeReport{}, func(m *gantryv1.NodeReport) { m.Hello = &gantryv1.NodeHello{Node: r.callerOf(who)} })
	}
	got := r.call(d, procedure, m, hostilePatience, msg)
	if got.message == "EOF" {
		return // the caller has hung up
	}
	if got.err != nil || got.code == connect.CodeInternal || got.code == connect.CodeUnknown || got.code == connect.CodeDataLoss {
		r.t.Errorf("%s calls %s with %v: %+v", who, procedure, msg, got)
	}
}

// hostilePatience is for calls that wait for something to happen, which nobody will bring about.
const hostilePatience = 400 * time.Millisecond
