package cluster_test

import (
	"context"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/gantryd/gantry/test/hostile"
	"github.com/gantryd/gantry/test/lab"
)

// TestNoMessageDoesHarm sends a whole daemon messages at random, as an operator and as a server that calls its node. It has to
// answer all of them, and to work afterwards. Package daemon does the same without containers.
func TestNoMessageDoesHarm(t *testing.T) {
	heavy(t)
	tr := begin(t, lab.Shape{Servers: 1})
	n := tr.Node(0)
	tr.up(t, "web", 2)
	n.Exec(t, "ip", "route", "del", "default") // images at random are looked for nowhere
	n.Gantry(t, "image", "tag", "busybox:lab", "app:1")
	var ids []string
	for _, v := range n.Instances(t) {
		ids = append(ids, v.Instance.Meta.Key)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	f, all := hostile.New(seed), hostile.Methods()
	operator, server := socket(strings.TrimPrefix(n.Host(), "unix://")), socket(filepath.Join(n.Run(), "node.sock"))
	for range 15 {
		var wg sync.WaitGroup
		for _, procedure := range slices.Sorted(maps.Keys(all)) {
			way, ok := map[string]hostile.Way{
				"AppService": operator, "InstanceService": operator, "VolumeService": operator, "SecretService": operator,
				"ConfigService": operator, "OperationService": operator, "ImageService": operator, "NodeService": server,
			}[strings.TrimPrefix(path.Dir(procedure), "/gantry.v1.")]
			if !ok || slices.Contains([]string{"Bootstrap", "Pull", "Push"}, path.Base(procedure)) { // reach out
				continue
			}
			m := all[procedure]
			for range 3 {
				msg := aimed(f, m, ids)
				wg.Go(func() { harmless(t, way, procedure, m, msg) })
			}
		}
		wg.Wait()
	}
	for line := range strings.Lines(n.DaemonLog()) {
		if strings.Contains(line, "panic") {
			t.Errorf("%.2000s", line)
		}
	}
	n.Gantry(t, "ps")
}

func socket(at string) hostile.Way {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return hostile.Way{Base: "http://gantryd", Client: &http.Client{Transport: &http.Transport{
		Protocols: protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", at)
		},
	}}}
}

// aimed is a message at random, about an instance that is there where it is about one.
func aimed(f *hostile.Filler, m protoreflect.MethodDescriptor, ids []string) proto.Message {
	msg := f.Message(m)
	if d := msg.ProtoReflect().Descriptor().Fields().ByName("target"); d != nil && d.Kind() == protoreflect.StringKind && f.IntN(2) == 0 {
		msg.ProtoReflect().Set(d, protoreflect.ValueOfString(ids[f.IntN(len(ids))]))
	}
	return msg
}

func harmless(t *testing.T, way hostile.Way, procedure string, m protoreflect.MethodDescriptor, msg proto.Message) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	got := way.Call(ctx, procedure, m, msg)
	switch {
	case got.Message == "EOF": // the caller has hung up
	case path.Base(procedure) == "Unpause" && strings.Contains(got.Message, "not paused"): // runc says it so
	case got.Err != nil, got.Code == connect.CodeInternal, got.Code == connect.CodeUnknown:
		t.Errorf("%s with %.600v: %+v", procedure, msg, got)
	}
}
