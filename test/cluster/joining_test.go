package cluster_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/engine/image/peer"
	"github.com/gantryd/gantry/test/lab"
)

// setUp runs a command line of gantry on a machine itself, as one who sets it up does: init and join.
func setUp(t *testing.T, n *lab.Node, line string) lab.Result {
	t.Helper()
	where := fmt.Sprintf(" --root %s --run %s --listen %s --group root", n.Root(), n.Run(), n.Host())
	return n.TryExec("sh", "-c", "PATH="+lab.Binaries(t)+":$PATH; "+line+where)
}

// printed is the line that a command has printed for the next machine.
func printed(t *testing.T, n *lab.Node, args ...string) string {
	t.Helper()
	return strings.TrimSpace(n.Gantry(t, args...))
}

// awaitRoles waits until exactly those machines are ready, in those roles; what others there are, beside the lost ones, is wrong.
func awaitRoles(t *testing.T, by *lab.Node, want map[*lab.Node]string, lost ...*lab.Node) {
	t.Helper()
	lab.Eventually(t, 2*time.Minute, fmt.Sprintf("%d machines are ready", len(want)), func() error {
		views, err := by.Machines()
		if err != nil {
			return err
		}
		roles := map[string]string{}
		for _, view := range views {
			roles[view.Node.Name] = view.Node.Role + " " + view.Status.GetState()
		}
		for _, n := range lost {
			delete(roles, n.Name())
		}
		for n, role := range want {
			if roles[n.Name()] != role+" ready" || len(roles) != len(want) {
				return fmt.Errorf("the machines are %v", roles)
			}
		}
		return nil
	})
}

// TestJoining sets machines up with the lines that init and token print, and holds real daemons against tokens that admit
// nobody; then it removes a node and a server, of whose disks somebody has copies.
func TestJoining(t *testing.T) {
	l := lab.Network(t)
	first, node, server, spare := l.AddNode(t, ""), l.AddNode(t, ""), l.AddNode(t, ""), l.AddNode(t, "")
	begun := setUp(t, first, "gantry init")
	line := strings.TrimSpace(begun.Stdout)
	if begun.Code != 0 || !strings.HasPrefix(line, "gantry join "+first.Address()+":7450 --token gantry-node-") {
		t.Fatalf("init: %d %q\n%s", begun.Code, line, begun.Stderr)
	}

	refused := func(why, line, want string) {
		t.Helper()
		began := time.Now()
		got := setUp(t, node, line)
		if got.Code == 0 || !strings.Contains(got.Stderr, want) || !strings.Contains(got.Stderr, "\nhint: ") || time.Since(began) > patience {
			t.Errorf("%s: exit %d\n%s%s", why, got.Code, got.Stdout, got.Stderr)
		}
	}
	invalid := "gantry: gantryd ended: cannot join the cluster at " + first.Address() + ":7450: the token is not valid: it is unknown, has expired or was revoked\nhint: make a new one"
	revoked := printed(t, first, "cluster", "token", "create")
	first.Gantry(t, "cluster", "token", "rm", strings.Split(revoked, "-")[4])
	refused("a token that was revoked", revoked, invalid)
	expired := printed(t, first, "cluster", "token", "create", "--life", "1s")
	time.Sleep(1100 * time.Millisecond)
	refused("a token that has expired", expired, invalid)
	refused("a node's token for a server", line+" --server", "the token and --server do not agree")
	refused("one that says that it is a server's", strings.Replace(line, "gantry-node-", "gantry-server-", 1)+" --server", invalid)
	end := strings.LastIndex(line, "-") + 1
	foreign := line[:end] + strings.Repeat("0", len(line)-end)
	refused("a token of another cluster", foreign, "the server's root certificate is not the one that the token names")
	fresh := printed(t, first, "cluster", "token", "rotate")
	refused("a token from before the rotation", line, invalid)
	awaitRoles(t, first, map[*lab.Node]string{first: "server"})

	for _, n := range []*lab.Node{node, spare} {
		if got := setUp(t, n, fresh); got.Code != 0 {
			t.Fatalf("%s: exit %d\n%s", fresh, got.Code, got.Stderr)
		}
	}
	line = printed(t, first, "cluster", "token", "create", "--role", "server")
	if got := setUp(t, server, line); got.Code != 0 || !strings.HasSuffix(line, " --server") {
		t.Fatalf("%s: exit %d\n%s", line, got.Code, got.Stderr)
	}
	all := map[*lab.Node]string{first: "server", node: "node", server: "server", spare: "node"}
	awaitRoles(t, first, all)
	refusalIsFinal(t, first, node, foreign)
	awaitRoles(t, first, all)
	instance := onEach(t, first, node)
	removedNodeIsRefused(t, spare, first, server, node)
	removedServerIsRefused(t, server, first, node, instance)
}

// patience of `gantry join` with a daemon that does not answer.
const patience = time.Minute

// refusalIsFinal has gantryd itself end with the status that keeps systemd from another start, unless the machine has joined
// already: then its token does not matter any more.
func refusalIsFinal(t *testing.T, first, node *lab.Node, line string) {
	t.Helper()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(line[strings.LastIndex(line, " ")+1:]), 0o600); err != nil {
		t.Fatal(err)
	}
	node.SetFlags("--advertise", node.Address(), "--join", first.Address()+":7450", "--token-file", token)
	node.Reboot(t)
	got := node.TryExec(filepath.Join(lab.Binaries(t), "gantryd"), "--root", t.TempDir(), "--run", t.TempDir(), "--group", "root",
		"--advertise", node.Address(), "--join", first.Address()+":7450", "--token-file", token)
	if got.Code != 78 || !strings.Contains(got.Stderr, "\ngantryd: cannot join the cluster at ") {
		t.Errorf("gantryd with a token of another cluster: exit %d\n%s", got.Code, got.Stderr)
	}
}

// onEach runs an instance of an image with large parts on every machine, and returns the one of a node.
func onEach(t *testing.T, server, node *lab.Node) string {
	t.Helper()
	server.Gantry(t, "image", "import", largeArchive(t, 32))
	server.GantryIn(t, lab.Project(t, "name: on\nservices:\n  each:\n    image: "+largeImage+
		"\n    command: sh -c 'while :; do echo goes on; sleep 1; done'\n    stop_grace_period: 0s\n    deploy: {mode: global}\n"), "up", "--timeout", "5m")
	own := stolen(t, node, identity.Node).Node()
	for _, view := range server.Instances(t) {
		if view.Instance.Node == own {
			return view.Instance.Meta.Key
		}
	}
	t.Fatalf("nothing runs on %s", node.Name())
	return ""
}

// remove takes a machine out and returns when that was done.
func remove(t *testing.T, by, gone *lab.Node) time.Time {
	t.Helper()
	lab.Eventually(t, time.Minute, "it is removed", func() error { // a server not before it has been heard for some seconds
		if got := by.Try("node", "rm", "--force", gone.Name()); got.Code != 0 {
			return fmt.Errorf("%s", got.Stderr)
		}
		return nil
	})
	return time.Now()
}

// removedNodeIsRefused takes a node out and tries what a copy of its identity opens, and what it had open before: at the server
// that leads, at one that does not, and at a node.
func removedNodeIsRefused(t *testing.T, gone, leader, server, node *lab.Node) {
	t.Helper()
	thief, blob := stolen(t, gone, identity.Node), largeBlob(t, leader)
	var open []*stream
	var doors []locked
	for _, n := range []*lab.Node{leader, server, node} {
		open = append(open, openBlob(t, thief, n, blob))
		doors = append(doors, locked{n, 7450, "/metrics"})
	}
	awaitOpen(t, open)
	removed := remove(t, leader, gone)
	awaitEnded(t, removed, open)
	awaitRefused(t, thief, removed, doors...)
}

// removedServerIsRefused takes a server out, with the other machines as they are, and tries what a copy of its identity opens, and
// what it had open before.
func removedServerIsRefused(t *testing.T, gone, server, node *lab.Node, instance string) {
	t.Helper()
	thief := stolen(t, gone, identity.Server)
	blob := peer.Path + "sha256:" + strings.Repeat("0", 64)
	for _, want := range []struct {
		locked
		code int
	}{
		{locked{server, 7450, "/metrics"}, http.StatusOK}, {locked{node, 7450, "/metrics"}, http.StatusOK},
		{locked{server, 7450, blob}, http.StatusNotFound},
		{locked{server, 7451, "/members"}, http.StatusOK}, {locked{server, 7451, "/raft"}, http.StatusMethodNotAllowed},
	} {
		lab.Eventually(t, time.Minute, "a server is let in", func() error {
			if code, text := knock(thief, want.of, want.port, want.path); code != want.code {
				return fmt.Errorf("%s at %d answers a server: %d %s", want.path, want.port, code, text)
			}
			return nil
		})
	}
	open := openAsServer(t, thief, server, node, instance)
	for _, n := range []*lab.Node{server, node} {
		open = append(open, openBlob(t, thief, n, largeBlob(t, server)))
	}
	awaitOpen(t, open)
	removed := remove(t, server, gone)
	awaitEnded(t, removed, open)
	awaitRefused(t, thief, removed, locked{server, 7450, "/metrics"}, locked{server, 7450, blob}, locked{server, 7451, "/members"},
		locked{server, 7451, "/raft"}, locked{node, 7450, "/metrics"}, locked{node, 7450, blob})
	if err := session(thief, server); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("a session of a machine that was removed: %v", err)
	}
}

// knock asks a machine with the certificate of another.
func knock(as *identity.Keeper, of *lab.Node, port int, path string) (int, string) {
	config := as.ClientTLS(identity.AnyMachine)
	config.NextProtos = nil
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	resp, err := c.Get(fmt.Sprintf("https://%s:%d%s", of.Address(), port, path))
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
	return resp.StatusCode, string(text)
}

// session opens a session of the machine whose certificate it is.
func session(as *identity.Keeper, with *lab.Node) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	client := as.Client(identity.AnyServer)
	defer client.CloseIdleConnections()
	s := gantryv1connect.NewNodeSessionServiceClient(client, "https://"+with.Address()+":7450").Session(ctx)
	_ = s.Send(&gantryv1.NodeReport{Hello: &gantryv1.NodeHello{Node: as.Node()}})
	_, err := s.Receive()
	return err
}
