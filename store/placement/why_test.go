package placement_test

import (
	"strings"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/placement"
)

const gib = 1 << 30

// cluster is two nodes: a, full in every respect, and b, which is the odd one.
func cluster() []store.Object {
	taken := &gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{
		Resources: &gantryv1.Resources{NanoCpusReservation: 3e9, MemoryReservation: 7 * gib, Pids: 900, NamedDevices: map[string]int32{"gpu": 1}},
		Ports:     []*gantryv1.PortPublish{{HostPort: 80, Mode: "host"}},
	}}
	out := []store.Object{
		&gantryv1.Node{Meta: &gantryv1.Meta{Key: "a", Labels: map[string]string{"rack": "r1"}}, Name: "n1", Subnet: "10.64.0.0/30"},
		&gantryv1.NodeStatus{Meta: store.NewMeta("a"), State: "ready", NanoCpus: 4e9, Memory: 8 * gib, Pids: 1000, Devices: map[string]int32{"gpu": 1}, Architecture: "amd64"},
	}
	out = append(out, service("full", taken)...)
	return append(out, &gantryv1.Instance{Meta: store.NewMeta("f1"), Environment: "p", App: "x", Service: "full", Slot: 1, Release: 1, Node: "a", Desired: gantryv1.Instance_DESIRED_RUNNING})
}

func service(name string, spec *gantryv1.ServiceSpec) []store.Object {
	key := "p/x/" + name
	return []store.Object{
		&gantryv1.Service{Meta: store.NewMeta(key), Environment: "p", App: "x", Name: name, Release: 1, Replicas: 1, Spec: spec},
		&gantryv1.Release{Meta: store.NewMeta(key + "/00000001"), Service: key, Number: 1, Spec: spec},
	}
}

func resources(r *gantryv1.Resources) *gantryv1.ServiceSpec {
	return &gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{Resources: r}}
}

func rules(p *gantryv1.Placement) *gantryv1.ServiceSpec {
	return &gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{Network: &gantryv1.NetworkMode{Kind: gantryv1.NetworkMode_KIND_NONE}}, Placement: p}
}

func TestEveryReasonHasWords(t *testing.T) {
	for name, test := range map[string]struct {
		spec        *gantryv1.ServiceSpec
		more        []store.Object
		why, reason string
	}{
		"CPU":          {resources(&gantryv1.Resources{NanoCpusReservation: 15e8}), nil, "1 lacks CPU (needs 1.5, most free 1)", "it lacks CPU: needs 1.5, free 1 of 4"},
		"memory":       {resources(&gantryv1.Resources{MemoryReservation: 3 * gib / 2}), nil, "1 lacks memory (needs 1.5 GiB, most free 1 GiB)", "it lacks memory: needs 1.5 GiB, free 1 GiB of 8 GiB"},
		"process IDs":  {resources(&gantryv1.Resources{Pids: 200}), nil, "1 lacks process IDs", "it lacks process IDs: needs 200, free 100 of 1000"},
		"devices":      {rulesWith(&gantryv1.Resources{NamedDevices: map[string]int32{"gpu": 1, "ssd": 2}}), nil, "1 lacks gpu, ssd", "it lacks gpu: needs 1, free 0 of 1; ssd: needs 2, free 0 of 0"},
		"addresses":    {resources(nil), nil, "1 has no address left", "its range has no free address: all 1 are taken"},
		"constraint":   {rules(&gantryv1.Placement{Constraints: []string{"node.labels.rack == r2", "node.id == a"}}), nil, "1 does not meet the constraints", "it does not meet node.labels.rack == r2"},
		"no such rule": {rules(&gantryv1.Placement{Constraints: []string{"rack"}}), nil, `"rack" is no constraint`, `"rack" is no constraint`},
		"platform":     {&gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{Platform: "arm64"}}, nil, "1 does not run linux/arm64", "it runs linux/amd64, not linux/arm64"},
		"apart":        {rules(&gantryv1.Placement{AntiAffinity: []string{"full"}}), nil, "1 has a service that must be kept apart", "an instance of full is there, which must be kept apart"},
		"most per node": {rules(&gantryv1.Placement{MaxReplicasPerNode: 1}), []store.Object{
			&gantryv1.Instance{Meta: store.NewMeta("s2"), Environment: "p", App: "x", Service: "subject", Slot: 2, Release: 1, Node: "a", Desired: gantryv1.Instance_DESIRED_RUNNING},
		}, "1 has 1 of the service already", "it has 1 of the service already, the most per node"},
		"port": {&gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{Ports: []*gantryv1.PortPublish{{HostPort: 80, Mode: "host"}}}}, nil,
			"1 has the host port taken", "its port 80/tcp is taken"},
		"volume": {mounted("p/x/data"), []store.Object{&gantryv1.Volume{Meta: store.NewMeta("p/x/data"), Node: "z"}},
			"1 lacks the data of the volume p/x/data, which was on node z, which has been removed: gantry volume rm --force x/data ",
			"the data of the volume p/x/data was on node z, which has been removed: gantry volume rm --force x/data "},
		"peer": {&gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{Network: &gantryv1.NetworkMode{Kind: gantryv1.NetworkMode_KIND_SERVICE, Target: "web"}}}, nil,
			"1 has no instance of web", "no instance of web is there, whose namespaces are to be shared"},
		"drained": {rules(nil), []store.Object{&gantryv1.Node{Meta: store.NewMeta("a"), Availability: "drain"}}, "1 is drained", "it is drained"},
		"down":    {rules(nil), []store.Object{&gantryv1.NodeStatus{Meta: store.NewMeta("a"), State: "down"}}, "1 is down", "it is down"},
		"suspect": {rules(nil), []store.Object{&gantryv1.NodeStatus{Meta: store.NewMeta("a"), State: "suspect"}}, "1 is silent", "it has been silent for a moment"},
		"unknown": {rules(nil), []store.Object{&gantryv1.NodeStatus{Meta: store.NewMeta("a")}}, "1 has not been heard of yet", "nothing has been heard of it yet"},
	} {
		t.Run(name, func(t *testing.T) {
			subject := &gantryv1.Instance{Meta: store.NewMeta("s1"), Environment: "p", App: "x", Service: "subject", Slot: 1, Release: 1, Desired: gantryv1.Instance_DESIRED_RUNNING}
			s := placement.NewState(store.Fixed(append(append(append(cluster(), service("subject", test.spec)...), subject), test.more...)...))
			p := s.Instance("s1")
			if why := s.Why(p); !strings.HasPrefix(strings.TrimPrefix(why, "no node fits: "), test.why) {
				t.Errorf("why: %s", why)
			}
			if got := s.Reasons(p, s.Machine("a")); !strings.Contains(strings.Join(got, " | "), test.reason) {
				t.Errorf("reasons: %v", got)
			}
		})
	}
}

func rulesWith(r *gantryv1.Resources) *gantryv1.ServiceSpec {
	spec := rules(nil)
	spec.Container.Resources = r
	return spec
}

func mounted(volume string) *gantryv1.ServiceSpec {
	spec := rules(nil)
	spec.Container.Mounts = []*gantryv1.Mount{{Type: gantryv1.Mount_TYPE_VOLUME, Source: volume}}
	return spec
}

func TestNoNodeAtAll(t *testing.T) {
	subject := &gantryv1.Instance{Meta: store.NewMeta("s1"), Environment: "p", Service: "shell", Spec: &gantryv1.ContainerSpec{}}
	s := placement.NewState(store.Fixed(subject))
	if why := s.Why(s.Instance("s1")); why != "there is no node" {
		t.Error(why)
	}
}

func TestEligible(t *testing.T) {
	spec := &gantryv1.ServiceSpec{Container: &gantryv1.ContainerSpec{Platform: "linux/amd64"}, Placement: &gantryv1.Placement{Constraints: []string{"node.labels.rack == r1"}}}
	for name, test := range map[string]struct {
		node   *gantryv1.Node
		status *gantryv1.NodeStatus
		want   bool
	}{
		"fits":                 {node("r1", "active"), &gantryv1.NodeStatus{Architecture: "amd64", State: "ready"}, true},
		"down is no reason":    {node("r1", ""), &gantryv1.NodeStatus{Architecture: "amd64", State: "down"}, true},
		"nothing heard of yet": {node("r1", "active"), nil, true},
		"another rack":         {node("r2", "active"), nil, false},
		"drained":              {node("r1", "drain"), nil, false},
		"another platform":     {node("r1", "active"), &gantryv1.NodeStatus{Architecture: "arm64"}, false},
	} {
		if got := placement.Eligible(test.node, test.status, spec); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func node(rack, availability string) *gantryv1.Node {
	return &gantryv1.Node{Meta: &gantryv1.Meta{Key: "a", Labels: map[string]string{"rack": rack}}, Availability: availability}
}

func TestAsks(t *testing.T) {
	spec := &gantryv1.ServiceSpec{
		Priority: 5,
		Container: &gantryv1.ContainerSpec{
			Resources: &gantryv1.Resources{NanoCpusReservation: 5e8, MemoryReservation: gib, Pids: 10, NamedDevices: map[string]int32{"gpu": 2}},
			Platform:  "linux/arm64", Ports: []*gantryv1.PortPublish{{HostPort: 53, Protocol: "udp", Mode: "host"}}, PidMode: "service:web",
			Mounts: []*gantryv1.Mount{{Type: gantryv1.Mount_TYPE_VOLUME, Source: "p/x/here"}, {Type: gantryv1.Mount_TYPE_VOLUME, Source: "p/x/new"}},
		},
		Placement: &gantryv1.Placement{Constraints: []string{"node.role != node"}, Preferences: []string{"node.labels.rack"}, MaxReplicasPerNode: 2, AntiAffinity: []string{"full"}},
	}
	r := store.Fixed(append(append(cluster(), service("subject", spec)...), &gantryv1.Volume{Meta: store.NewMeta("p/x/here"), Node: "a"})...)
	s := placement.NewState(r)
	got := strings.Join(s.Asks(s.Another(r, s.Service("p/x/subject"))), "\n")
	const want = `CPU: 0.5
memory: 1 GiB
process IDs: 10
device gpu: 2
platform: linux/arm64
port 53/udp of the node
an instance of web, whose namespaces it shares
the volume p/x/here, whose data is on node n1
the volume p/x/new, whose data will be where it is used first
node.role != node
at most 2 of the service
no instance of p/x/full
if possible, few others with the same node.labels.rack
priority 5`
	if got != want {
		t.Errorf("%s", got)
	}
}
