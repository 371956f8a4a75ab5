package server_test

import (
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

func (p *platform) put(t *testing.T, objects ...store.Object) {
	t.Helper()
	err := p.store.Update(t.Context(), func(tx *store.Tx) error {
		for _, o := range objects {
			store.Put(tx, o)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// until awaits a state of the store.
func (p *platform) until(t *testing.T, what string, ok func(*store.ReadTx) bool) {
	t.Helper()
	sub, err := p.store.ViewAndWatch(func(*store.ReadTx) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	for !ok(p.store.Snapshot()) {
		if _, err := sub.Next(t.Context()); err != nil {
			t.Fatalf("waiting for %s: %v", what, err)
		}
	}
}

func (p *platform) run(t *testing.T, name string) string {
	t.Helper()
	req := &gantryv1.CreateInstanceRequest{Environment: "production", Name: name, Spec: &gantryv1.ContainerSpec{Image: "debian"}}
	resp, err := p.instances.Create(t.Context(), connect.NewRequest(req))
	if err != nil {
		t.Fatal(err)
	}
	return resp.Msg.Id
}

func target(name string) *gantryv1.InstanceTarget {
	return &gantryv1.InstanceTarget{Environment: "production", Target: name}
}

func (p *platform) say(id string, phase gantryv1.InstanceStatus_Phase, generation int64) {
	p.store.Observe([]store.Object{&gantryv1.InstanceStatus{Meta: store.NewMeta(id), Phase: phase, RestartGeneration: generation}}, nil)
}

func TestReleasesOfInstancesAreKept(t *testing.T) {
	p := start(t)
	p.apply(t, app(nil))
	p.put(t, &gantryv1.Instance{
		Meta: store.NewMeta("old"), Environment: "production", App: "shop", Service: "web", Slot: 9, Release: 1, Node: "elsewhere",
		Desired: gantryv1.Instance_DESIRED_REMOVED,
	})
	for n := range 25 {
		p.apply(t, app(func(s *gantryv1.AppSpec) { s.Services["web"].Container.Image = fmt.Sprint("web:", n) }))
	}
	kept := map[int64]bool{}
	for _, r := range store.List[*gantryv1.Release](p.store.Snapshot(), "production/shop/web/") {
		kept[r.Number] = true
	}
	if !kept[1] || kept[3] {
		t.Fatalf("kept %v; wanted is 1, which an instance has, and not 3", kept)
	}
}

func TestANodeKeepsAnInstanceWhoseReleaseIsMissing(t *testing.T) {
	p := start(t)
	_, updates := p.node(t)
	p.apply(t, app(func(s *gantryv1.AppSpec) {
		s.Services["web"].Container.Network = &gantryv1.NetworkMode{
			Attachments: []*gantryv1.NetworkAttachment{{Network: "production/shop/default"}},
		}
	}))
	for u := range updates {
		if len(u.Assignments) > 0 {
			break
		}
	}
	err := p.store.Update(t.Context(), func(tx *store.Tx) error {
		for _, r := range store.List[*gantryv1.Release](tx, "") {
			store.Delete[*gantryv1.Release](tx, r.Meta.Key)
		}
		store.Put(tx, &gantryv1.Network{Meta: store.NewMeta("production/shop/default"), Number: 77})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for u := range updates {
		if len(u.Unassigned) > 0 {
			t.Fatalf("taken from its node: %v", u.Unassigned)
		}
		if len(u.Networks) == 1 && u.Networks[0].Number == 77 {
			return
		}
	}
	t.Fatal("the session ended")
}

func TestASecretThatCannotBeOpenedEndsNoSession(t *testing.T) {
	p := start(t)
	_, updates := p.node(t)
	p.apply(t, app(func(s *gantryv1.AppSpec) {
		s.Secrets["other"] = &gantryv1.FileSpec{Key: "production/shop/other", Content: []byte("good")}
		s.Services["web"].Replicas = 0
		s.Services["web"].Container.Secrets = append(s.Services["web"].Container.Secrets, &gantryv1.FileRef{Source: "production/shop/other"})
	}))
	p.put(t, &gantryv1.Secret{Meta: store.NewMeta("production/shop/pw"), Version: 1, Sealed: []byte("damaged")})
	_, err := p.apps.Scale(t.Context(), connect.NewRequest(&gantryv1.ScaleRequest{
		Environment: "production", App: "shop", Replicas: map[string]int32{"web": 1},
	}))
	if err != nil {
		t.Fatal(err)
	}
	for u := range updates {
		if len(u.Assignments) == 0 {
			continue
		}
		secrets := u.Assignments[0].Secrets
		if _, ok := secrets["production/shop/pw"]; ok || string(secrets["production/shop/other"]) != "good" {
			t.Fatalf("%v", secrets)
		}
		return
	}
	t.Fatal("the session ended")
}

func TestUnplacedInstancesAreRemovedAtOnce(t *testing.T) {
	p := start(t) // there is no node
	id := p.run(t, "box")
	if _, err := p.instances.Remove(t.Context(), connect.NewRequest(&gantryv1.RemoveInstanceRequest{Target: target("box")})); err != nil {
		t.Fatal(err)
	}
	if _, ok := store.Get[*gantryv1.Instance](p.store.Snapshot(), id); ok {
		t.Fatal("it is still there")
	}
}

func TestWhatIsAtWorkIsRemovedByForceOnly(t *testing.T) {
	for _, phase := range []gantryv1.InstanceStatus_Phase{
		gantryv1.InstanceStatus_PHASE_RUNNING, gantryv1.InstanceStatus_PHASE_PAUSED, gantryv1.InstanceStatus_PHASE_RESTARTING,
	} {
		p := start(t)
		p.say(p.run(t, "box"), phase, 0)
		_, err := p.instances.Remove(t.Context(), connect.NewRequest(&gantryv1.RemoveInstanceRequest{Target: target("box")}))
		if !fault.Is(wire.Decode(err), fault.Conflict) {
			t.Errorf("%v: %v", phase, err)
		}
	}
}

func TestPrivilegedExecIsDenied(t *testing.T) {
	p := start(t)
	p.node(t)
	p.until(t, "the node", func(r *store.ReadTx) bool { return len(store.List[*gantryv1.NodeStatus](r, "")) > 0 })
	p.run(t, "box")
	stream := p.instances.Exec(t.Context())
	start := &gantryv1.ExecStart{Target: target("box"), Command: []string{"true"}, Privileged: true}
	if err := stream.Send(&gantryv1.ExecInput{Input: &gantryv1.ExecInput_Start{Start: start}}); err != nil {
		t.Fatal(err)
	}
	_, err := stream.Receive()
	if err = wire.Decode(err); !fault.Is(err, fault.Denied) || !strings.Contains(fault.HintOf(err), "--allow-privileged") {
		t.Fatalf("got %v", err)
	}
}

func TestRunIsDeniedWhatEqualsPrivileged(t *testing.T) {
	p := start(t)
	req := &gantryv1.CreateInstanceRequest{Environment: "production", Spec: &gantryv1.ContainerSpec{Image: "debian", PidMode: "host"}}
	_, err := p.instances.Create(t.Context(), connect.NewRequest(req))
	if err = wire.Decode(err); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "pid: host") {
		t.Fatalf("got %v", err)
	}
	p.put(t, &gantryv1.Environment{Meta: store.NewMeta("production"), Spec: &gantryv1.EnvironmentSpec{AllowPrivileged: true}})
	if _, err := p.instances.Create(t.Context(), connect.NewRequest(req)); err != nil {
		t.Fatal(err)
	}
}

func TestCallersHaveNoNodeSessions(t *testing.T) {
	p := start(t)
	stream := p.public.Session(t.Context())
	_ = stream.Send(&gantryv1.NodeReport{Hello: &gantryv1.NodeHello{Node: nodeID}})
	if _, err := stream.Receive(); connect.CodeOf(err) != connect.CodeUnimplemented {
		t.Fatalf("got %v", err)
	}
}

func TestKeysOfOtherEnvironmentsAreRefused(t *testing.T) {
	for name, mutate := range map[string]func(*gantryv1.AppSpec){
		"network": func(s *gantryv1.AppSpec) { s.Networks["default"].Key = "staging/shop/default" },
		"volume":  func(s *gantryv1.AppSpec) { s.Volumes = map[string]*gantryv1.VolumeSpec{"v": {Key: "staging/v"}} },
		"secret":  func(s *gantryv1.AppSpec) { s.Secrets["pw"].Key = "production/../pw" },
		"config":  func(s *gantryv1.AppSpec) { s.Configs = map[string]*gantryv1.FileSpec{"c": {Key: "c"}} },
		"mount": func(s *gantryv1.AppSpec) {
			s.Services["web"].Container.Mounts = []*gantryv1.Mount{{Type: gantryv1.Mount_TYPE_VOLUME, Source: "staging/db", Target: "/d"}}
		},
		"secret of a service": func(s *gantryv1.AppSpec) { s.Services["web"].Container.Secrets[0].Source = "staging/pw" },
		"attachment": func(s *gantryv1.AppSpec) {
			s.Services["web"].Container.Network = &gantryv1.NetworkMode{Attachments: []*gantryv1.NetworkAttachment{{Network: "staging/default"}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := start(t).apps.Plan(t.Context(), connect.NewRequest(app(mutate)))
			if !fault.Is(wire.Decode(err), fault.Invalid) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func TestShortAndForeignPrefixesMeanNothing(t *testing.T) {
	p := start(t)
	id := p.run(t, "box")
	for env, prefix := range map[string]string{"production": id[:3], "staging": id[:6]} {
		_, err := p.instances.Inspect(t.Context(), connect.NewRequest(&gantryv1.InstanceTarget{Environment: env, Target: prefix}))
		if !fault.Is(wire.Decode(err), fault.NotFound) {
			t.Errorf("%s in %s: %v", prefix, env, err)
		}
	}
	if _, err := p.instances.Inspect(t.Context(), connect.NewRequest(target(id[:4]))); err != nil {
		t.Fatal(err)
	}
}

func TestAnAppsServiceComesBeforeARunOfItsName(t *testing.T) {
	p := start(t)
	p.run(t, "web")
	p.apply(t, app(nil))
	p.until(t, "the service's instances", func(r *store.ReadTx) bool {
		return len(progress.ByService(r, "production/shop/")["production/shop/web"]) == 2
	})
	v, err := p.instances.Inspect(t.Context(), connect.NewRequest(&gantryv1.InstanceTarget{Environment: "production", App: "shop", Target: "web"}))
	if err != nil || v.Msg.Instance.App != "shop" {
		t.Fatalf("%v, %v", v, err)
	}
}

func TestARestartIsNewerThanThoseOfSingleInstances(t *testing.T) {
	p := start(t)
	p.apply(t, app(nil))
	p.put(t, &gantryv1.Instance{
		Meta: store.NewMeta("x"), Environment: "production", App: "shop", Service: "web", Slot: 1, Release: 1, RestartGeneration: 5, Node: nodeID,
		Desired: gantryv1.Instance_DESIRED_RUNNING,
	})
	_, err := p.apps.Restart(t.Context(), connect.NewRequest(&gantryv1.RestartRequest{Environment: "production", App: "shop"}))
	if err != nil {
		t.Fatal(err)
	}
	if s := p.service(t, "web"); s.RestartGeneration != 6 {
		t.Fatalf("generation %d", s.RestartGeneration)
	}
}

func TestStartAnswersForTheNewProcess(t *testing.T) {
	p := start(t)
	id := p.run(t, "box")
	p.say(id, gantryv1.InstanceStatus_PHASE_EXITED, 0)
	answered := make(chan error, 1)
	go func() {
		_, err := p.instances.Start(t.Context(), connect.NewRequest(target("box")))
		answered <- err
	}()
	p.until(t, "the start", func(r *store.ReadTx) bool {
		i, _ := store.Get[*gantryv1.Instance](r, id)
		return i.RestartGeneration == 1
	})
	p.say(id, gantryv1.InstanceStatus_PHASE_EXITED, 0)
	select {
	case err := <-answered:
		t.Fatalf("answered before the new process ran: %v", err)
	default:
	}
	p.say(id, gantryv1.InstanceStatus_PHASE_RUNNING, 1)
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
}

func TestWaitIgnoresTheExitBeforeARestart(t *testing.T) {
	p := start(t)
	id := p.run(t, "box")
	p.until(t, "the instance", func(r *store.ReadTx) bool { _, ok := store.Get[*gantryv1.Instance](r, id); return ok })
	err := p.store.Update(t.Context(), func(tx *store.Tx) error {
		return store.Modify(tx, id, func(i *gantryv1.Instance) error { i.RestartGeneration = 1; return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	p.store.Observe([]store.Object{&gantryv1.InstanceStatus{Meta: store.NewMeta(id), Phase: gantryv1.InstanceStatus_PHASE_EXITED, ExitCode: 9}}, nil)
	go p.store.Observe([]store.Object{&gantryv1.InstanceStatus{
		Meta: store.NewMeta(id), Phase: gantryv1.InstanceStatus_PHASE_EXITED, ExitCode: 4, RestartGeneration: 1,
	}}, nil)
	resp, err := p.instances.Wait(t.Context(), connect.NewRequest(target("box")))
	if err != nil || resp.Msg.ExitCode != 4 {
		t.Fatalf("%v, %v", resp, err)
	}
}

func TestStoppingWhatWasNeverStartedAnswers(t *testing.T) {
	p := start(t)
	p.say(p.run(t, "box"), gantryv1.InstanceStatus_PHASE_CREATED, 0)
	if _, err := p.instances.Stop(t.Context(), connect.NewRequest(&gantryv1.StopInstanceRequest{Target: target("box")})); err != nil {
		t.Fatal(err)
	}
}

func TestAServiceThatMovesToTheBridgeGetsAnAddress(t *testing.T) {
	p := start(t)
	p.apply(t, app(func(s *gantryv1.AppSpec) {
		s.Services["web"].Container.Network = &gantryv1.NetworkMode{Kind: gantryv1.NetworkMode_KIND_HOST}
	}))
	if ip := p.service(t, "web").VirtualIp; ip != "" {
		t.Fatalf("%s on the host's network", ip)
	}
	p.apply(t, app(nil))
	if p.service(t, "web").VirtualIp == "" {
		t.Fatal("no address on the bridge")
	}
}

func withVolume(s *gantryv1.AppSpec) {
	s.Volumes = map[string]*gantryv1.VolumeSpec{"data": {Key: "production/shop/data"}}
}

func TestAnInterruptedDownWithVolumesIsFinishedByTheNext(t *testing.T) {
	p := start(t)
	p.node(t)
	p.apply(t, app(withVolume))
	p.local.removed = func(string) error { return fault.New(fault.Unavailable, "interrupted") }
	down := connect.NewRequest(&gantryv1.RemoveAppRequest{Environment: "production", App: "shop", Volumes: true})
	if _, err := p.apps.Remove(t.Context(), down); err == nil {
		t.Fatal("the volume could not be removed and nobody was told")
	}
	var removed []string
	p.local.removed = func(v string) error { removed = append(removed, v); return nil }
	if _, err := p.apps.Remove(t.Context(), down); err != nil {
		t.Fatal(err)
	}
	snap := p.store.Snapshot()
	left := len(store.List[*gantryv1.Volume](snap, "")) + len(store.List[*gantryv1.App](snap, "")) + len(store.List[*gantryv1.Secret](snap, ""))
	if len(removed) != 1 || left != 0 {
		t.Fatalf("removed %v, %d objects are left", removed, left)
	}
}

func TestAVolumeThatIsTakenUpMeanwhileIsKept(t *testing.T) {
	p := start(t)
	p.put(t, &gantryv1.Volume{Meta: store.NewMeta("production/data")})
	user := &gantryv1.ContainerSpec{Mounts: []*gantryv1.Mount{{Type: gantryv1.Mount_TYPE_VOLUME, Source: "production/data"}}}
	p.local.removed = func(string) error {
		p.put(t, &gantryv1.Instance{Meta: store.NewMeta("u"), Environment: "production", Service: "u", Spec: user})
		return nil
	}
	_, err := p.volumes.Remove(t.Context(), connect.NewRequest(&gantryv1.VolumeTarget{Environment: "production", Name: "data"}))
	if !fault.Is(wire.Decode(err), fault.Conflict) {
		t.Fatalf("got %v", err)
	}
	if _, ok := store.Get[*gantryv1.Volume](p.store.Snapshot(), "production/data"); !ok {
		t.Fatal("the volume is gone")
	}
}

func TestVolumesOfOldReleasesAreInUse(t *testing.T) {
	p := start(t)
	p.apply(t, app(func(s *gantryv1.AppSpec) {
		withVolume(s)
		s.Services["web"].Container.Mounts = []*gantryv1.Mount{{Type: gantryv1.Mount_TYPE_VOLUME, Source: "production/shop/data", Target: "/d"}}
	}))
	p.put(t, &gantryv1.Instance{
		Meta: store.NewMeta("old"), Environment: "production", App: "shop", Service: "web", Slot: 1, Release: 1, Node: "elsewhere",
		Desired: gantryv1.Instance_DESIRED_REMOVED,
	})
	p.apply(t, app(nil))
	_, err := p.volumes.Remove(t.Context(), connect.NewRequest(&gantryv1.VolumeTarget{Environment: "production", Name: "shop/data"}))
	if !fault.Is(wire.Decode(err), fault.Conflict) {
		t.Fatalf("got %v", err)
	}
}

func TestFilesThatOthersUseAreKept(t *testing.T) {
	p := start(t)
	p.node(t)
	p.apply(t, app(nil))
	other := app(func(s *gantryv1.AppSpec) {
		s.Secrets = map[string]*gantryv1.FileSpec{"pw": {Key: "production/shop/pw", External: true}}
	})
	other.App = "bank"
	p.apply(t, other)
	if _, err := p.apps.Remove(t.Context(), connect.NewRequest(&gantryv1.RemoveAppRequest{Environment: "production", App: "shop"})); err != nil {
		t.Fatal(err)
	}
	if _, ok := store.Get[*gantryv1.Secret](p.store.Snapshot(), "production/shop/pw"); !ok {
		t.Fatal("the secret of another app's service is gone")
	}
}

func TestHintsNameTheKey(t *testing.T) {
	p := start(t)
	_, err := p.apps.Plan(t.Context(), connect.NewRequest(app(func(s *gantryv1.AppSpec) {
		s.Secrets["alias"] = &gantryv1.FileSpec{Key: "production/real", External: true}
	})))
	if hint := fault.HintOf(wire.Decode(err)); hint != "gantry secret create real FILE" {
		t.Fatalf("hint %q", hint)
	}
}
