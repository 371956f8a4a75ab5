package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/anishathalye/porcupine"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/test/lab"
)

// registers are configs that clients write and read at once through every server. Each write makes the next version; so a
// register has a value and a number that counts every write there ever was.
type registers struct {
	ctx     context.Context
	clients []*client.Client
	mu      sync.Mutex
	history []porcupine.Operation
	began   time.Time
}

// access is what a client asked of a register. A read has no value.
type access struct {
	key   int
	value string
}

// outcome is what it was told. Nothing is known of a write that failed: it may take effect at any later time, or never.
// resolve finds out what can be known.
type outcome struct {
	value   string
	version int64
	unknown bool
}

// model is a register with a version that grows with every write. It grows by more than one where a write came between of which
// nothing is known.
func model() porcupine.Model {
	return porcupine.Model{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			byKey := map[int][]porcupine.Operation{}
			for _, op := range history {
				key := op.Input.(access).key
				byKey[key] = append(byKey[key], op)
			}
			var out [][]porcupine.Operation
			for _, part := range byKey {
				out = append(out, part)
			}
			return out
		},
		Init: func() any { return outcome{} },
		Step: func(state, input, output any) (bool, any) {
			now, in, out := state.(outcome), input.(access), output.(outcome)
			if in.value == "" {
				return out == now, now
			}
			return out.version > now.version, outcome{value: in.value, version: out.version}
		},
		DescribeOperation: func(input, output any) string {
			return fmt.Sprintf("%+v -> %+v", input, output)
		},
	}
}

// resolve gives writes of unknown outcome the version that somebody has read, and drops those that nobody has seen.
func resolve(history []porcupine.Operation) []porcupine.Operation {
	seen := map[access]int64{}
	for _, op := range history {
		if told := op.Output.(outcome); op.Input.(access).value == "" {
			seen[access{op.Input.(access).key, told.value}] = told.version
		}
	}
	var out []porcupine.Operation
	for _, op := range history {
		in, told := op.Input.(access), op.Output.(outcome)
		if version, ok := seen[in]; told.unknown && ok {
			op.Output = outcome{value: in.value, version: version}
		} else if told.unknown {
			continue
		}
		out = append(out, op)
	}
	return out
}

const (
	registerKeys    = 5
	registerClients = 6
	// Reads list what is in an environment; in this one there is nothing else.
	registerEnvironment = "registers"
)

func TestRegistersAreLinearizable(t *testing.T) {
	long := 25 * time.Second
	if !short() {
		long = registerTime(t)
	}
	tr := begin(t, three)
	random := seeded(t)
	ctx, cancel := context.WithTimeout(context.Background(), long)
	defer cancel()
	r := &registers{ctx: ctx, began: time.Now()}
	var done sync.WaitGroup
	for i := range registerClients {
		r.clients = append(r.clients, tr.Node(i%3).Client(t))
		seed := rand.New(rand.NewPCG(random.Uint64(), 0))
		done.Go(func() { r.work(i, seed) })
	}
	for ctx.Err() == nil {
		harm(t, tr, random)
	}
	done.Wait()
	took := time.Since(r.began)
	tr.settle(t)
	r.check(t)
	rate := float64(len(r.history)) / took.Seconds()
	t.Logf("%.0f accesses a second", rate)
	if rate < minRate && !short() { // few faults more, and a short run spends most of its time without a leader
		t.Errorf("%.0f accesses a second were answered, want %d", rate, minRate)
	}
}

// registerTime is ten minutes, or MINUTES.
func registerTime(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("MINUTES")
	if text == "" {
		return 10 * time.Minute
	}
	minutes, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatalf("MINUTES=%q is no number", text)
	}
	return time.Duration(minutes * float64(time.Minute))
}

// minRate is how many accesses a second have to be answered on average, the times without a leader included.
const minRate = 50

// harm does one thing to the servers, mostly to the one that leads, and mends it a little later.
func harm(t *testing.T, tr *trial, random *rand.Rand) {
	t.Helper()
	n := tr.Leader(t)
	if random.IntN(4) == 0 {
		n = tr.Node(random.IntN(3))
	}
	hold := time.Second + time.Duration(random.Int64N(int64(4*time.Second)))
	say := func(what string) { t.Logf("%s %s", n.Name(), what) }
	switch random.IntN(8) {
	case 0:
		say("is killed")
		n.KillDaemon(t)
		n.StartDaemon(t)
	case 1:
		say("is cut off for " + hold.String())
		n.Isolate(t)
		time.Sleep(hold)
		n.Heal(t)
	case 2:
		hold += time.Duration(random.IntN(6)) * time.Second
		say("is paused for " + hold.String())
		n.PauseDaemon(t)
		time.Sleep(hold)
		n.ResumeDaemon(t)
	case 3:
		say("is not heard for " + hold.String())
		n.Mute(t)
		time.Sleep(hold)
		n.Heal(t)
	case 4:
		say("hears nothing for " + hold.String())
		n.Deafen(t)
		time.Sleep(hold)
		n.Heal(t)
	case 5:
		say("has its power cut")
		n.Reboot(t)
	case 6:
		say("compacts the history")
		compact(t, n)
	case 7:
		if !short() {
			say("is replaced")
			replaceServer(t, tr, n)
		}
	}
	time.Sleep(time.Second)
}

// compact has etcd forget all but the newest state at once, which happens every ten minutes otherwise.
func compact(t *testing.T, n *lab.Node) {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + filepath.Join(n.Run(), "etcd", "etcd.sock")}, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	now, err := c.Get(ctx, "x")
	if err == nil {
		_, err = c.Compact(ctx, now.Header.Revision)
	}
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		t.Logf("%s: compaction: %v", n.Name(), err)
	}
}

// replaceServer takes a server's disk away, removes it from the cluster, and has it join again as a new one.
func replaceServer(t *testing.T, tr *trial, n *lab.Node) {
	t.Helper()
	tr.AwaitVoters(t)
	n.Wipe(t)
	by := tr.Leader(t, tr.Except(n)...)
	lab.Eventually(t, time.Minute, "removal of "+n.Name(), func() error {
		if res := by.Try("node", "rm", "--force", n.Name()); res.Code != 0 && !strings.Contains(res.Stderr, "there is no") {
			return errors.New(res.Stderr)
		}
		return nil
	})
	n.Rejoin(t, "server")
	tr.AwaitNodes(t, len(tr.Nodes()))
	tr.AwaitVoters(t)
}

// work reads registers, or writes them, until the time is over. Those who read do not wait for a write that hangs.
func (r *registers) work(who int, random *rand.Rand) {
	for i := 0; r.ctx.Err() == nil; i++ {
		in := access{key: random.IntN(registerKeys)}
		if who < registerClients/2 {
			in.value = fmt.Sprintf("%d-%d", who, i)
		}
		r.access(who, in)
		time.Sleep(time.Duration(random.Int64N(int64(20 * time.Millisecond))))
	}
}

func (r *registers) access(who int, in access) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	call := time.Since(r.began)
	var out outcome
	var err error
	if in.value == "" {
		out, err = r.read(ctx, r.clients[who], in.key)
	} else {
		out, err = r.write(ctx, r.clients[who], in)
	}
	back := time.Since(r.began)
	if err != nil {
		if in.value == "" || refused(err) {
			return // a read that failed tells nothing
		}
		out, back = outcome{unknown: true}, 1<<62
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.history = append(r.history, porcupine.Operation{ClientId: who, Input: in, Output: out, Call: int64(call), Return: int64(back)})
}

// refused reports whether an error says that nothing was changed.
func refused(err error) bool { return fault.Is(err, fault.Invalid) || fault.Is(err, fault.Exists) }

func registerName(key int) string { return fmt.Sprintf("register-%d", key) }

func (r *registers) write(ctx context.Context, c *client.Client, in access) (outcome, error) {
	res, err := c.Configs.Create(ctx, connect.NewRequest(&gantryv1.CreateFileRequest{
		Environment: registerEnvironment, Name: registerName(in.key), Content: []byte(in.value),
		Labels: map[string]string{"value": in.value}, Replace: true,
	}))
	if err != nil {
		return outcome{}, err
	}
	return outcome{value: in.value, version: res.Msg.Version}, nil
}

func (r *registers) read(ctx context.Context, c *client.Client, key int) (outcome, error) {
	res, err := c.Configs.List(ctx, connect.NewRequest(&gantryv1.ListFilesRequest{Environment: registerEnvironment}))
	if err != nil {
		return outcome{}, err
	}
	for _, info := range res.Msg.Files {
		if info.Meta.Key == registerEnvironment+"/"+registerName(key) {
			return outcome{value: info.Meta.Labels["value"], version: info.Version}, nil
		}
	}
	return outcome{}, nil
}

// check looks for an order of all accesses that explains every answer.
func (r *registers) check(t *testing.T) {
	t.Helper()
	reads, writes, unknown := 0, 0, 0
	for _, op := range r.history {
		switch {
		case op.Input.(access).value == "":
			reads++
		case op.Output.(outcome).unknown:
			unknown++
		default:
			writes++
		}
	}
	t.Logf("%d reads, %d writes, %d writes of unknown outcome", reads, writes, unknown)
	if writes == 0 || reads == 0 {
		t.Error("no register was read or written")
	}
	result, info := porcupine.CheckOperationsVerbose(model(), resolve(r.history), 5*time.Minute)
	if result == porcupine.Ok {
		return
	}
	picture := filepath.Join(os.TempDir(), fmt.Sprintf("gantry-registers-%d.html", os.Getpid()))
	if err := porcupine.VisualizePath(model(), info, picture); err != nil {
		t.Log(err)
	}
	t.Errorf("the history is not linearizable (%s): see %s", result, picture)
	for _, line := range r.suspects() {
		t.Log(line)
	}
}

// suspects lists answers that cannot be right on their own: a read older than what was acknowledged before it began, and a
// version that two writes were told.
func (r *registers) suspects() []string {
	var out []string
	type version struct {
		key    int
		number int64
	}
	writers := map[version]porcupine.Operation{}
	for _, op := range r.history {
		in, told := op.Input.(access), op.Output.(outcome)
		if in.value == "" || told.unknown {
			continue
		}
		at := version{in.key, told.version}
		if other, twice := writers[at]; twice {
			out = append(out, fmt.Sprintf("version %d of register %d was told to %s and to %s", at.number, at.key, describe(other), describe(op)))
		}
		writers[at] = op
	}
	for _, op := range r.history {
		in, told := op.Input.(access), op.Output.(outcome)
		for at, write := range writers {
			if in.value == "" && at.key == in.key && write.Return < op.Call && told.version < at.number {
				out = append(out, fmt.Sprintf("stale: %s after %s", describe(op), describe(write)))
				break
			}
		}
	}
	return out[:min(len(out), 20)]
}

func describe(op porcupine.Operation) string {
	return fmt.Sprintf("client %d [%s, %s] %+v %+v", op.ClientId, time.Duration(op.Call), time.Duration(op.Return), op.Input, op.Output)
}

// TestModelFindsFaults shows that the model refuses a lost write, a stale read and a version given twice.
func TestModelFindsFaults(t *testing.T) {
	op := func(client int, call, back int64, value, got string, version int64) porcupine.Operation {
		out := outcome{value: got, version: version}
		return porcupine.Operation{ClientId: client, Input: access{value: value}, Call: call, Output: out, Return: back}
	}
	first := op(0, 0, 1, "a", "a", 1)
	for name, c := range map[string]struct {
		history []porcupine.Operation
		want    bool
	}{
		"in order":            {[]porcupine.Operation{first, op(0, 2, 3, "b", "b", 2), op(1, 4, 5, "", "b", 2)}, true},
		"at the same time":    {[]porcupine.Operation{first, op(0, 2, 9, "b", "b", 2), op(1, 4, 5, "", "a", 1)}, true},
		"a stale read":        {[]porcupine.Operation{first, op(0, 2, 3, "b", "b", 2), op(1, 4, 5, "", "a", 1)}, false},
		"a lost write":        {[]porcupine.Operation{first, op(1, 4, 5, "", "", 0)}, false},
		"one version twice":   {[]porcupine.Operation{first, op(1, 0, 1, "b", "b", 1)}, false},
		"an unknown one took": {[]porcupine.Operation{first, unknownWrite("c"), op(1, 4, 5, "", "c", 2)}, true},
		"an unknown one not":  {[]porcupine.Operation{first, unknownWrite("c"), op(1, 4, 5, "", "a", 1)}, true},
	} {
		if got := porcupine.CheckOperations(model(), resolve(c.history)); got != c.want {
			t.Errorf("%s: linearizable: %v", name, got)
		}
	}
}

func unknownWrite(value string) porcupine.Operation {
	return porcupine.Operation{ClientId: 2, Input: access{value: value}, Call: 2, Output: outcome{unknown: true}, Return: 1 << 62}
}
