// Command cluster shows examples/voting on three machines, one of which dies: how many requests failed, and for how long.
//
//	make demo-cluster
//
// The machines are those of the lab (package test/lab): namespaces on this one. Everything goes away at the end, or with
// `make demo-stop` if the demonstration was killed. It needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/test/lab"
)

func main() {
	clean := flag.Bool("stop", false, "remove what a demonstration left that was killed")
	flag.Parse()
	if *clean {
		os.Exit(lab.Main(lab.Sweep))
	}
	os.Exit(lab.Main(show))
}

func say(format string, args ...any) { fmt.Printf("==> "+format+"\n", args...) }

// show is the demonstration from beginning to end.
func show(t testing.TB) {
	say("starting three machines as one cluster")
	c := lab.Cluster(t, 3)
	first := c.Node(0)
	base := base()
	say("making the base image %s from the distribution's packages", base)
	first.Gantry(t, "image", "bootstrap", base)
	say("building and starting examples/voting")
	dir := example(t)
	t.Setenv("BASE", base)
	first.GantryIn(t, dir, "up", "--build", "--timeout", "12m")
	first.GantryIn(t, dir, "scale", "vote=3")
	first.AwaitReady(t, "vote", 3)
	fmt.Println(first.GantryIn(t, dir, "ps"))
	say("waiting until each image is on two machines: none is lost with the machine that built it")
	awaitCopies(t, first)

	dead := withoutVolumes(t, c)
	alive := c.Except(dead)
	address := "http://" + alive[0].Address() + ":8080/"
	p := startProbe(address)
	p.await(100)
	say("the voting page answers at %s; cutting the power of %s", address, dead.Name())
	died := time.Now()
	dead.PowerOff(t)
	out := awaitDown(t, alive[0], dead, died)
	awaitElsewhere(t, alive[0])
	moved := time.Since(died)
	p.await(300)
	p.stop()
	fmt.Println(alive[0].GantryIn(t, dir, "ps"))
	report(p.answers(), died, moved)
	say("the dead machine was out %s after the power cut; of the requests that began later, %d failed", round(out.Sub(died)), p.failedAfter(out))
	if p.failedAfter(out) > 0 {
		t.Error("requests failed after the dead machine was out")
	}
	say("removing the cluster")
}

func base() string {
	if release, _ := os.ReadFile("/etc/os-release"); strings.Contains(string(release), "ID=ubuntu") {
		return "ubuntu:noble"
	}
	return "debian:bookworm"
}

// example copies examples/voting with a password of its own.
func example(t testing.TB) string {
	dir := filepath.Join(t.TempDir(), "voting")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(lab.Top(t), "examples", "voting"))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "db", "entrypoint.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "db_password.txt"), []byte("a password for a minute\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// withoutVolumes returns a machine whose instances can run anywhere: the database and the queue stay where their data is.
func withoutVolumes(t testing.TB, c *lab.Lab) *lab.Node {
	views, err := c.Node(0).Machines()
	if err != nil {
		t.Fatal(err)
	}
	var pinned []string
	for _, view := range c.Node(0).Instances(t) {
		if slices.Contains([]string{"db", "redis"}, view.Instance.Service) {
			pinned = append(pinned, view.Instance.Node)
		}
	}
	i := slices.IndexFunc(views, func(view *gantryv1.NodeView) bool { return !slices.Contains(pinned, view.Node.Meta.Key) })
	for _, n := range c.Nodes() {
		if i >= 0 && n.Name() == views[i].Node.Name {
			return n
		}
	}
	t.Fatal("every machine holds a volume")
	return nil
}

// awaitDown waits until the cluster has found out, and returns when that was.
func awaitDown(t testing.TB, by, dead *lab.Node, died time.Time) (out time.Time) {
	c := by.Client(t)
	lab.Eventually(t, time.Minute, "the machine is down", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		stream, err := c.Instances.Events(ctx, connect.NewRequest(&gantryv1.EventsRequest{
			Since: timestamppb.New(died), Until: timestamppb.Now(),
		}))
		if err != nil {
			return err
		}
		defer stream.Close()
		for stream.Receive() {
			if e := stream.Msg(); e.Kind == "node" && e.Action == "down" && e.Attributes["name"] == dead.Name() {
				out = e.Time.AsTime()
				return nil
			}
		}
		return errors.Join(errors.New("nothing says so"), stream.Err())
	})
	return out
}

// awaitCopies waits until two machines have the image of each service.
func awaitCopies(t testing.TB, by *lab.Node) {
	c := by.Client(t)
	lab.Eventually(t, 5*time.Minute, "two copies of each image", func() error {
		apps, err := client.Call(context.Background(), c.Apps.List, &gantryv1.ListAppsRequest{})
		if err != nil {
			return err
		}
		images, err := client.Call(context.Background(), c.Images.List, &gantryv1.ListImagesRequest{})
		if err != nil {
			return err
		}
		copies := map[string]int{}
		for _, i := range images.Images {
			copies[i.Digest] = len(i.Nodes)
		}
		for _, app := range apps.Apps {
			for _, s := range app.Services {
				if got := copies[s.Service.Spec.Container.ImageDigest]; got < 2 {
					return fmt.Errorf("the image of %s is on %d machines", s.Service.Name, got)
				}
			}
		}
		return nil
	})
}

// awaitElsewhere waits until all instances that the dead machine ran are healthy on others, and so are all the rest. Those of
// a machine that is down are not.
func awaitElsewhere(t testing.TB, by *lab.Node) {
	want := map[string]int{"vote": 3, "result": 1, "worker": 1}
	lab.Eventually(t, 2*time.Minute, "healthy elsewhere", func() error {
		views, err := by.TryInstances()
		if err != nil {
			return err
		}
		ready := map[string]int{}
		for _, view := range views {
			if lab.Ready(view) {
				ready[view.Instance.Service]++
			}
		}
		for service, n := range want {
			if ready[service] < n {
				return fmt.Errorf("%d of %d of %s", ready[service], n, service)
			}
		}
		return nil
	})
}

// report says what a person who reloads the page would have seen.
func report(all []answer, died time.Time, moved time.Duration) {
	failed, first, last := 0, time.Time{}, time.Time{}
	for _, a := range all {
		if a.err == nil {
			continue
		}
		if failed++; first.IsZero() {
			first = a.began
		}
		last = a.ended
	}
	say("%d requests, %d failed", len(all), failed)
	if failed > 0 {
		say("the first failed %s after the power cut, the last %s after it", round(first.Sub(died)), round(last.Sub(died)))
	}
	say("all instances of the dead machine were healthy on the other machines %s after the power cut", round(moved))
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }
