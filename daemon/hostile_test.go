package daemon

import (
	"context"
	"flag"
	"fmt"
	"maps"
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
	"github.com/gantryd/gantry/test/hostile"
)

var hostileSeed = flag.Uint64("hostile-seed", 0, "repeat the random messages of an earlier run")

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
	f := hostile.New(seed)
	r := newRig(t)
	r.populate()
	r.control()
	doors, rules, all := r.doors(), access(), hostile.Methods()
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
				msgs = f.Messages(all[procedure])
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
		if got := r.call(doors[operator], procedure, all[procedure], time.Minute, dynamicpb.NewMessage(all[procedure].Input())); got.Code != 0 || got.Err != nil {
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
		msg = hostile.Typed(msg, &gantryv1.NodeReport{}, func(m *gantryv1.NodeReport) { m.Hello = &gantryv1.NodeHello{Node: r.callerOf(who)} })
	}
	got := r.call(d, procedure, m, hostilePatience, msg)
	if got.Message == "EOF" {
		return // the caller has hung up
	}
	if got.Err != nil || got.Code == connect.CodeInternal || got.Code == connect.CodeUnknown || got.Code == connect.CodeDataLoss {
		r.t.Errorf("%s calls %s with %v: %+v", who, procedure, msg, got)
	}
}

// hostilePatience is for calls that wait for something to happen, which nobody will bring about.
const hostilePatience = 400 * time.Millisecond
