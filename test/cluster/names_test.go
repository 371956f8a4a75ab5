package cluster_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/test/lab"
)

// TestNamesAfterPartition cuts a machine off for 10 to 30 seconds, in which its instances are replaced, and heals: within five
// seconds every machine resolves the service to what runs, and to nothing else. NAMES_ROUNDS says how often.
func TestNamesAfterPartition(t *testing.T) {
	rounds := 1
	if !short() {
		rounds = 10
	}
	if given, err := strconv.Atoi(os.Getenv("NAMES_ROUNDS")); err == nil {
		rounds = given
	}
	tr := begin(t, three)
	tr.up(t, "web", 6)
	tr.global = map[string]bool{"client": true}
	tr.up(t, "client", 3)
	awaitNames(t, tr, time.Minute)
	random := seeded(t)
	for round := range rounds {
		n := tr.Nodes()[random.IntN(3)]
		long := 10*time.Second + time.Duration(random.Int64N(int64(20*time.Second)))
		if short() {
			long = 10 * time.Second
		}
		t.Logf("round %d: %s is cut off for %s", round, n.Name(), long.Round(time.Millisecond))
		n.Isolate(t)
		time.Sleep(long)
		n.Heal(t)
		took := awaitNames(t, tr, 5*time.Second+slowness)
		t.Logf("a name was wrong for the last time %s after the heal", took.Round(100*time.Millisecond))
		if !short() && took > 5*time.Second {
			t.Error("that is more than 5 s")
		}
		tr.AwaitNodes(t, 3)
		tr.converge(t)
	}
	tr.settle(t)
}

// slowness is what three machines on two processors, busy with other tests too, may need beyond a promise's time.
const slowness = 20 * time.Second

// awaitNames waits until a client on each machine resolves the service to the addresses of the instances that are ready, and
// reaches every one of them. It returns after what time an answer was wrong for the last time: to ask them all takes a while.
func awaitNames(t *testing.T, tr *trial, within time.Duration) (wrong time.Duration) {
	t.Helper()
	began := time.Now()
	lab.Eventually(t, within, "names", func() (err error) {
		defer func() {
			if err != nil {
				wrong = time.Since(began)
			}
		}()
		views, err := tr.Node(0).TryInstances()
		if err != nil {
			return err
		}
		want, clients, turns := map[string]bool{}, map[string]*gantryv1.InstanceView{}, map[string]bool{}
		for _, view := range views {
			if lab.Ready(view) {
				turns[view.Status.Address] = true
			}
			if view.Instance.Service == "web" && lab.Ready(view) {
				want[view.Status.Address], want[view.Status.Address6] = true, true
			}
			if view.Instance.Service == "client" && lab.Ready(view) {
				clients[view.Instance.Node] = view
			}
		}
		if len(clients) != len(tr.Nodes()) || len(want) != 2*tr.want["web"] {
			return fmt.Errorf("%d addresses and clients on %d machines are ready", len(want), len(clients))
		}
		for _, view := range clients {
			if err := resolves(tr, view, want); err != nil {
				return fmt.Errorf("%s on %s: %w", lab.Name(view), view.Instance.Node, err)
			}
		}
		for _, n := range tr.Nodes() {
			if got := inTurn(n); !maps.Equal(got, turns) {
				return fmt.Errorf("the kernel of %s sends connections to %v, not to %v", n.Name(), slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(turns)))
			}
		}
		return nil
	})
	return wrong
}

// resolves asks one client for all addresses of the service, and for a page from each.
func resolves(tr *trial, client *gantryv1.InstanceView, want map[string]bool) error {
	ask := func(command string) (string, error) {
		result := tr.Node(0).TryWithin(10*time.Second, tr.dir, "exec", "shop/"+lab.Name(client), "sh", "-c", command)
		if result.Code != 0 {
			return "", fmt.Errorf("%s: %s%s", command, result.Stdout, result.Stderr)
		}
		return result.Stdout, nil
	}
	answer, err := ask("nslookup tasks.web | sed -n '/^Name/,$s/^Address[^:]*: *//p'")
	if err != nil {
		return err
	}
	got := map[string]bool{}
	for _, address := range strings.Fields(answer) {
		got[address] = true
	}
	if !maps.Equal(got, want) {
		return fmt.Errorf("tasks.web is %v, want %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
	for address := range want {
		if _, err := ask(get(address)); err != nil {
			return err
		}
	}
	_, err = ask("date +%T; for i in 1 2 3 4 5 6 7 8; do " + get("web") + ` || { echo "failed"; exit 1; }; date +%T; done`)
	return err
}

// get asks for a page and fails without one; the time limit of busybox's wget crashes it.
func get(from string) string {
	return `printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 2 ` + from + ` 80 | grep -q '^HTTP/1.[01] 200'`
}

// short reports whether only what `make test` has time for is run.
func short() bool { return os.Getenv("FAULTS") == "" }

// seeded is randomness that SEED repeats.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
