package schedule_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

// service is one of a Compose file: it sleeps, and the rest is said in the words of deploy and x-gantry.
func service(name, deploy, extension string) string {
	return fmt.Sprintf("  %s:\n    image: %s\n    command: sleep 10000\n    init: true\n    deploy: {%s}\n    x-gantry: {%s}\n",
		name, lab.Busybox, deploy, extension)
}

// inSlots is a number of instances that take a device of the machine each.
func inSlots(n int) string {
	return fmt.Sprintf("replicas: %d, resources: {reservations: {generic_resources: [{discrete_resource_spec: {kind: slot, value: 1}}]}}", n)
}

func project(t *testing.T, name string, services ...string) string {
	t.Helper()
	return lab.Project(t, "name: "+name+"\nservices:\n"+strings.Join(services, ""))
}

// ready lists what of a service is ready and to stay.
func ready(t *testing.T, n *lab.Node, service string) (ids []string, at map[string]int) {
	t.Helper()
	at = map[string]int{}
	for _, v := range n.Instances(t) {
		if v.Instance.Service == service && lab.Ready(v) && v.Instance.Desired == gantryv1.Instance_DESIRED_RUNNING {
			ids = append(ids, v.Instance.Meta.Key)
			at[v.Instance.Node]++
		}
	}
	slices.Sort(ids)
	return ids, at
}

// awaitSpread waits until a service has that many ready instances on its machines, the largest number first.
func awaitSpread(t *testing.T, n *lab.Node, service string, want ...int) {
	t.Helper()
	lab.Eventually(t, patience, fmt.Sprintf("%s is spread as %v", service, want), func() error {
		_, at := ready(t, n, service)
		var got []int
		for _, k := range at {
			got = append(got, k)
		}
		slices.Sort(got)
		slices.Reverse(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("it is %v", got)
		}
		return nil
	})
}

// watchReady notes the smallest number of ready instances of a service, until the function that it returns is called.
func watchReady(t *testing.T, n *lab.Node, service string) (least func() int) {
	t.Helper()
	stop, out := make(chan struct{}), make(chan int)
	go func() {
		low := -1
		for {
			if views, err := n.TryInstances(); err == nil {
				now := 0
				for _, v := range views {
					if v.Instance.Service == service && lab.Ready(v) {
						now++
					}
				}
				if low < 0 || now < low {
					low = now
				}
			}
			select {
			case <-stop:
				out <- low
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	done := false
	t.Cleanup(func() {
		if !done {
			close(stop)
			<-out
		}
	})
	return func() int {
		done = true
		close(stop)
		return <-out
	}
}

// TestRoomForWhatMattersMost fills two machines, and has a service that matters more take the place of one that matters less.
// Then a third machine comes.
func TestRoomForWhatMattersMost(t *testing.T) {
	shape := lab.Shape{Servers: 1, Nodes: 1, Flags: []string{"--device", "slot=2"}}
	c := lab.Form(t, shape)
	n := c.Node(0)
	n.ImportBusybox(t)

	n.GantryIn(t, project(t, "close", service("packed", "replicas: 3", "placement: {strategy: binpack}")), "up")
	awaitSpread(t, n, "packed", 3)

	low := service("low", inSlots(4), "priority: -10")
	left := service("left", "replicas: 1", "")
	n.GantryIn(t, project(t, "room", low, left), "up")
	before, _ := ready(t, n, "low")
	dir := project(t, "room", low, left,
		service("equal", inSlots(1), "priority: -10"),
		service("high", inSlots(1), "priority: 100"),
		service("even", "replicas: 6", "placement: {rebalance: true}"),
		service("stay", "replicas: 6", ""),
		service("right", "replicas: 3", "placement: {anti_affinity: [left]}"),
	)
	n.GantryIn(t, dir, "up", "-d")
	n.AwaitReady(t, "high", 1)
	for name, spread := range map[string][]int{"low": {2, 1}, "even": {3, 3}, "stay": {3, 3}, "left": {1}, "right": {3}} {
		awaitSpread(t, n, name, spread...)
	}
	lab.Eventually(t, patience, "those without room say why", func() error {
		if ps := n.GantryIn(t, dir, "ps", "--no-trunc"); strings.Count(ps, "Pending: no node fits: 2 lack slot") != 2 {
			return fmt.Errorf("%s", ps)
		}
		return nil
	})
	for _, name := range []string{"low", "equal"} {
		if out := n.GantryIn(t, dir, "explain", name); !strings.Contains(out, name+".") || strings.Count(out, "no: it lacks slot: needs 1, free 0 of 2") != 2 {
			t.Errorf("explain:\n%s", out)
		}
	}
	after, _ := ready(t, n, "low")
	if gone := slices.DeleteFunc(slices.Clone(before), func(id string) bool { return slices.Contains(after, id) }); len(gone) != 1 {
		t.Errorf("of %v only %v is left: more than one made room for one", before, after)
	}
	_, on := ready(t, n, "left")
	if _, right := ready(t, n, "right"); len(right) != 1 || right[only(on)] > 0 {
		t.Errorf("left is on %v, right on %v", on, right)
	}

	stayed, _ := ready(t, n, "stay")
	least := watchReady(t, n, "even")
	third := c.Join(t, "node", shape)
	c.AwaitNodes(t, 3)
	awaitSpread(t, n, "low", 2, 1, 1)
	n.AwaitReady(t, "equal", 1)
	awaitSpread(t, n, "even", 2, 2, 2)
	// A machine that was drained and is activated has come as well. The first coming is over by then: it is looked at once a second.
	time.Sleep(3 * time.Second)
	if now, _ := ready(t, n, "stay"); !slices.Equal(now, stayed) {
		t.Errorf("stay was %v and is %v", stayed, now)
	}
	n.Gantry(t, "node", "drain", third.Name())
	awaitSpread(t, n, "even", 3, 3)
	n.Gantry(t, "node", "activate", third.Name())
	awaitSpread(t, n, "even", 2, 2, 2)
	if k := least(); k < 5 {
		t.Errorf("of 6 instances that were evened out, %d were ready at a time", k)
	}
}

// only is the machine that has all.
func only(at map[string]int) (machine string) {
	for machine = range at {
	}
	return machine
}
