package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/api/gen/gantry/v1/gantryv1connect"
	"github.com/gantryd/gantry/cluster/identity"
	"github.com/gantryd/gantry/engine/image/peer"
	"github.com/gantryd/gantry/test/lab"
)

// stolen is a copy of a machine's identity.
func stolen(t *testing.T, from *lab.Node, role identity.Role) *identity.Keeper {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "identity")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(from.Root(), "identity"))); err != nil {
		t.Fatal(err)
	}
	k, err := identity.OpenKeeper(dir)
	if err != nil || k.Role() != role {
		t.Fatalf("what was stolen is of a %s: %v", k.Role(), err)
	}
	return k
}

// cutOff is within which time a machine that was removed has nothing any more.
func cutOff() time.Duration {
	if short() {
		return time.Minute
	}
	return 3 * time.Second
}

// stream is something that somebody has open, and reads.
type stream struct {
	what  string
	open  chan struct{} // closed when something has come
	ended chan error
}

// read begins a stream; next waits for what comes next.
func read(what string, next func() error) *stream {
	s := &stream{what: what, open: make(chan struct{}), ended: make(chan error, 1)}
	go func() {
		for first := true; ; first = false {
			if err := next(); err != nil {
				s.ended <- err
				return
			}
			if first {
				close(s.open)
			}
		}
	}()
	return s
}

// awaitOpen waits until something has come on all of the streams.
func awaitOpen(t *testing.T, streams []*stream) {
	t.Helper()
	late := time.After(time.Minute)
	for _, s := range streams {
		select {
		case <-s.open:
		case err := <-s.ended:
			t.Fatalf("%s: %v", s.what, err)
		case <-late:
			t.Fatalf("%s: nothing comes", s.what)
		}
	}
}

// awaitEnded wants all of the streams to be cut off, in time after the machine was removed.
func awaitEnded(t *testing.T, removed time.Time, streams []*stream) {
	t.Helper()
	late := time.After(time.Until(removed.Add(cutOff())))
	for _, s := range streams {
		select {
		case err := <-s.ended:
			t.Logf("%s: ended within %s: %v", s.what, time.Since(removed).Round(time.Millisecond), err)
			if errors.Is(err, io.EOF) {
				t.Errorf("%s: it has come to its end by itself", s.what)
			}
		case <-late:
			t.Fatalf("%s goes on %s after the machine was removed", s.what, time.Since(removed))
		}
	}
}

// openBlob reads a part of an image, a little at a time: all of it takes most of a minute.
func openBlob(t *testing.T, as *identity.Keeper, of *lab.Node, digest string) *stream {
	t.Helper()
	tr := &http.Transport{
		TLSClientConfig: as.ClientTLS(identity.AnyMachine), ForceAttemptHTTP2: true, HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10},
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); tr.CloseIdleConnections() })
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+of.Address()+":7450"+peer.Path+digest, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("a part of an image of %s: %v %v", of.Name(), resp, err)
	}
	some := make([]byte, 4<<10)
	return read("a part of an image of "+of.Name()+", with the certificate of a "+string(as.Role()), func() error {
		time.Sleep(20 * time.Millisecond)
		_, err := io.ReadFull(resp.Body, some)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = io.EOF // the last bit of it
		}
		return err
	})
}

// largeBlob is the digest of a part of the image that largeArchive makes, on a machine that has it.
func largeBlob(t *testing.T, of *lab.Node) string {
	t.Helper()
	found := ""
	err := filepath.WalkDir(filepath.Join(of.Root(), "engine"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.Contains(path, "/blobs/sha256/") {
			return err
		}
		if info, err := d.Info(); err == nil && info.Size() >= 8<<20 {
			found = "sha256:" + filepath.Base(path)
		}
		return nil
	})
	if err != nil || found == "" {
		t.Fatalf("%s has no large part of an image: %v", of.Name(), err)
	}
	return found
}

// openAsServer is what a server may have open: an operator's stream at the leader, the log of an instance and a process in it.
func openAsServer(t *testing.T, as *identity.Keeper, leader, of *lab.Node, instance string) []*stream {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := as.Client(identity.AnyMachine)
	t.Cleanup(func() { cancel(); c.CloseIdleConnections() })
	logs := func(what string, open func(context.Context, *connect.Request[gantryv1.LogsRequest]) (*connect.ServerStreamForClient[gantryv1.LogEntry], error)) *stream {
		s, err := open(ctx, connect.NewRequest(&gantryv1.LogsRequest{Targets: []string{instance}, Follow: true, Tail: 1}))
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return read(what, func() error {
			if s.Receive() {
				return nil
			}
			if s.Err() == nil {
				return io.EOF
			}
			return s.Err()
		})
	}
	node := gantryv1connect.NewNodeServiceClient(c, "https://"+of.Address()+":7450")
	exec := node.Exec(ctx)
	if err := exec.Send(&gantryv1.ExecInput{Input: &gantryv1.ExecInput_Start{Start: &gantryv1.ExecStart{
		Target: &gantryv1.InstanceTarget{Target: instance}, Command: []string{"sh", "-c", "while :; do echo goes on; sleep 1; done"},
	}}}); err != nil {
		t.Fatal(err)
	}
	return []*stream{
		logs("the log of an instance, by the API", gantryv1connect.NewInstanceServiceClient(c, "https://"+leader.Address()+":7450/api").Logs),
		logs("the log of an instance, at its node", node.Logs),
		read("a process in an instance", func() error { _, err := exec.Receive(); return err }),
	}
}

// locked is where a machine knocks that must not be let in.
type locked struct {
	of   *lab.Node
	port int
	path string
}

// awaitRefused wants a machine that was removed to be let in nowhere, in time.
func awaitRefused(t *testing.T, as *identity.Keeper, removed time.Time, doors ...locked) {
	t.Helper()
	var all sync.WaitGroup
	for _, at := range doors {
		all.Go(func() {
			for {
				began := time.Since(removed)
				code, text := knock(as, at.of, at.port, at.path)
				what := fmt.Sprintf("%s at %d of %s, with the certificate of a %s", at.path, at.port, at.of.Name(), as.Role())
				switch {
				case code == http.StatusForbidden || code == http.StatusServiceUnavailable:
					t.Logf("%s: refused from %s on", what, began.Round(time.Millisecond))
					return
				case began > cutOff():
					t.Errorf("%s: %d %s, %s after it was removed", what, code, text, began)
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
	all.Wait()
}
