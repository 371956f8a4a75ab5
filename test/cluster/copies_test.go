package cluster_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/test/lab"
)

// TestImageOutlivesItsMachine builds an image on one machine, which alone runs it, and cuts that machine's power once the image
// has been copied. The service runs elsewhere, and there is a second copy again after a while.
func TestImageOutlivesItsMachine(t *testing.T) {
	heavy(t)
	c := lab.Form(t, lab.Shape{Servers: 3})
	first := c.Leader(t)
	others := c.Except(first)
	for _, n := range others {
		first.Gantry(t, "node", "drain", n.Name())
	}
	first.Gantry(t, "image", "import", lab.BusyboxArchive(t))
	compose := "services:\n  web:\n    build: .\n    image: built:1\n    command: sleep infinity\n"
	dir := lab.Project(t, compose, "Dockerfile", "FROM "+lab.Busybox+"\nRUN echo built > /built\n")
	first.GantryIn(t, dir, "up", "--build", "--detach")
	first.AwaitReady(t, "web", 1)
	if got := holders(t, first, "built:1"); !slices.Equal(got, []string{first.Name()}) {
		t.Fatalf("%v have the image, want the machine that built it alone", got)
	}
	for _, n := range others {
		first.Gantry(t, "node", "activate", n.Name())
	}
	lab.Eventually(t, time.Minute, "the copy is there", func() error {
		if got := holders(t, first, "built:1"); len(got) != 2 {
			return fmt.Errorf("%v have the image: %s", got, first.Try("cluster", "status").Stdout)
		}
		return nil
	})
	lab.Eventually(t, time.Minute, "nothing is found wrong", func() error { return found(first, "is on") })
	if r := first.Try("image", "rm", "built:1"); r.Code == 0 || !strings.Contains(r.Stderr, "is needed by service production/") {
		t.Errorf("the image of a service is removed: %s%s", r.Stdout, r.Stderr)
	}
	first.Gantry(t, "image", "prune", "--all", "--force")
	if got := holders(t, first, "built:1"); len(got) != 2 {
		t.Errorf("after images that nothing uses were removed, %v have it", got)
	}

	first.PowerOff(t)
	next := c.Leader(t, others...)
	begin := time.Now()
	lab.Eventually(t, time.Minute, "the service runs elsewhere", func() error {
		views, err := next.TryInstances()
		if err != nil {
			return err
		}
		for _, v := range views {
			if v.Instance.Service == "web" && lab.Ready(v) && v.Instance.Node != nodeID(t, next, first.Name()) {
				return nil
			}
		}
		return fmt.Errorf("not yet: %s", next.Try("ps").Stdout)
	})
	t.Logf("it ran elsewhere %s after another server led", time.Since(begin).Round(100*time.Millisecond))
	if out := next.GantryIn(t, dir, "exec", "web", "cat", "/built"); strings.TrimSpace(out) != "built" {
		t.Errorf("another image runs: %q", out)
	}
	// What the release means by the image's name is enough to deploy: nothing is built anew.
	next.GantryIn(t, dir, "up", "--no-build", "--detach")
	lab.Eventually(t, 3*time.Minute, "there is a second copy again", func() error {
		if got := copies(t, next); len(got) != 2 {
			return fmt.Errorf("%v have the image: %s", got, next.Try("cluster", "status").Stdout)
		}
		return nil
	})
}

// holders are the names of the machines that have an image.
func holders(t *testing.T, by *lab.Node, name string) []string {
	t.Helper()
	for _, i := range images(t, by) {
		if slices.ContainsFunc(i.References, func(r string) bool { return strings.HasSuffix(r, "/"+name) }) {
			return i.Nodes
		}
	}
	return nil
}

// copies are the names of the machines that have copies of the image built:1, to which nobody gave a name.
func copies(t *testing.T, by *lab.Node) []string {
	t.Helper()
	for _, i := range images(t, by) {
		if slices.ContainsFunc(i.References, func(r string) bool { return strings.Contains(r, "built@") }) {
			return i.Nodes
		}
	}
	return nil
}

func images(t *testing.T, by *lab.Node) []*gantryv1.Image {
	t.Helper()
	got, err := client.Call(t.Context(), by.Client(t).Images.List, &gantryv1.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return got.Images
}

// found is an error while the status of the cluster says something of that kind.
func found(by *lab.Node, what string) error {
	st, err := by.Status()
	if err != nil {
		return err
	}
	for _, f := range st.Findings {
		if strings.Contains(f.Message, what) {
			return fmt.Errorf("%s (%s)", f.Message, f.Hint)
		}
	}
	return nil
}

func nodeID(t *testing.T, by *lab.Node, name string) string {
	t.Helper()
	views, err := by.Machines()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range views {
		if v.Node.Name == name {
			return v.Node.Meta.Key
		}
	}
	return ""
}
