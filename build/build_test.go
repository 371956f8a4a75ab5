package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"golang.org/x/sys/unix"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

func full(t testing.TB) string { return "docker.io/" + tag(t) + ":latest" }

func TestMultiStageBuildIsStoredAndUnpacked(t *testing.T) {
	r := sharedRig(t)
	out := r.build(t, `FROM busybox AS make
COPY a.txt /in
RUN cat /in /in > /twice
FROM scratch
COPY --from=make /twice /out
CMD ["/out"]
`, map[string]string{"a.txt": "x"})
	equal(t, "content", r.file(t, full(t), "out"), "xx")
	equal(t, "digest", r.stored(t, full(t)).Target().Digest.String(), out.image.Digest)
	equal(t, "reference", out.image.References[0], full(t))
	if out.image.Size == 0 || out.image.CreatedAt == nil || len(out.image.Platforms) != 1 || out.image.ConfigDigest == "" {
		t.Errorf("the result lacks fields: %v", out.image)
	}
}

func TestConfigurationIsInDockersForm(t *testing.T) {
	r := sharedRig(t)
	out := r.build(t, `FROM busybox
SHELL ["/bin/sh", "-ec"]
ENV A=1 B="two words"
WORKDIR /w
USER 1000:1000
EXPOSE 80/tcp 53/udp
VOLUME /data
STOPSIGNAL SIGINT
HEALTHCHECK --interval=3s --timeout=2s --retries=4 --start-period=1s CMD wget -q localhost
LABEL a=b
ENTRYPOINT ["/bin/e"]
CMD x y
ONBUILD USER 0
ONBUILD RUN echo onbuild > /onbuild
`, nil, func(req *Request) { req.Start.Spec.Labels = map[string]string{"more": "1"} })
	c := r.config(t, full(t)).Config
	equal(t, "health", strings.Join(c.Healthcheck.Test, " "), "CMD-SHELL wget -q localhost")
	equal(t, "interval", c.Healthcheck.Interval, 3*time.Second)
	equal(t, "retries", c.Healthcheck.Retries, 4)
	equal(t, "shell", strings.Join(c.Shell, " "), "/bin/sh -ec")
	equal(t, "command", strings.Join(c.Cmd, " "), "/bin/sh -ec x y")
	equal(t, "onbuild", strings.Join(c.OnBuild, ";"), "USER 0;RUN echo onbuild > /onbuild")
	equal(t, "user", c.User, "1000:1000")
	equal(t, "stop signal", c.StopSignal, "SIGINT")
	equal(t, "ports", len(c.ExposedPorts), 2)
	equal(t, "label of the request", out.image.Labels["more"], "1")
	equal(t, "label", out.image.Labels["a"], "b")

	child := r.build(t, "FROM "+tag(t)+"\n", nil, func(req *Request) { req.Start.Tags = []string{tag(t) + ":child"} })
	equal(t, "ONBUILD ran", r.file(t, child.image.References[0], "onbuild"), "onbuild\n")
}

func TestHeredocs(t *testing.T) {
	r := sharedRig(t)
	r.build(t, `FROM busybox
RUN <<EOF
set -e
echo one > /a
echo two >> /a
EOF
COPY <<"X" /b
literal $PATH
X
`, nil)
	equal(t, "RUN", r.file(t, full(t), "a"), "one\ntwo\n")
	equal(t, "COPY", r.file(t, full(t), "b"), "literal $PATH\n")
}

func TestTargetsAndArguments(t *testing.T) {
	r := sharedRig(t)
	text := "ARG BASE=nothing\nFROM ${BASE} AS one\nARG WHO=nobody\nRUN echo $WHO > /who\nFROM one AS two\nRUN exit 1\n"
	out := r.build(t, text, nil, func(req *Request) {
		req.Start.Spec.Target = "one"
		req.Start.Spec.Args = map[string]string{"BASE": "busybox", "WHO": "me"}
		req.Start.Tags = []string{tag(t), "registry.test:5000/x/y:1", tag(t)}
	})
	equal(t, "who", r.file(t, "registry.test:5000/x/y:1", "who"), "me\n")
	equal(t, "names", strings.Join(out.image.References, " "), full(t)+" registry.test:5000/x/y:1")
	wantFault(t, r.try(t, text, nil, func(req *Request) {
		req.Start.Spec.Target = "three"
		req.Start.Spec.Args = map[string]string{"BASE": "busybox"}
	}).err, fault.Invalid, "three")
}

func TestMounts(t *testing.T) {
	r := sharedRig(t)
	text := `FROM busybox
RUN --mount=type=cache,target=/c echo x >> /c/log && cat /c/log > /cached
RUN --mount=type=bind,source=src,target=/s cat /s/f > /bound
RUN --mount=type=secret,id=key,required=true cat /run/secrets/key | wc -c > /secretlength
RUN --mount=type=secret,id=key,env=KEY test "$KEY" = hunter2
RUN --mount=type=tmpfs,target=/t mount | grep -q 'on /t type tmpfs'
`
	files := map[string]string{"src/f": "bound"}
	secret := func(req *Request) { req.Start.Secrets = map[string][]byte{"key": []byte("hunter2")} }
	r.build(t, text, files, secret)
	equal(t, "bind", r.file(t, full(t), "bound"), "bound")
	equal(t, "secret", strings.TrimSpace(r.file(t, full(t), "secretlength")), "7")
	equal(t, "cache", r.file(t, full(t), "cached"), "x\n")
	r.build(t, strings.Replace(text, "RUN", "RUN true\nRUN", 1), files, secret)
	equal(t, "cache mount on the second build", r.file(t, full(t), "cached"), "x\nx\n")
	r.files(t, full(t), func(root string) {
		if _, err := os.Stat(filepath.Join(root, "run/secrets/key")); err == nil {
			t.Error("the secret is in the image")
		}
	})
	wantFault(t, r.try(t, "FROM busybox\nRUN --mount=type=secret,id=other,required=true true\n", nil).err, fault.NotFound, "Dockerfile:2", "other")
}

func TestSecretsLeaveNoTrace(t *testing.T) {
	r := sharedRig(t)
	const canary = "canary-0d9f6a3f-secret"
	r.build(t, "FROM busybox\nRUN --mount=type=secret,id=k wc -c /run/secrets/k\n", nil,
		func(req *Request) { req.Start.Secrets = map[string][]byte{"k": []byte(canary)} })
	err := filepath.WalkDir(r.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		data, _ := os.ReadFile(path)
		if strings.Contains(string(data), canary) {
			t.Errorf("the secret is in %s", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestSSHAgentIsForwarded(t *testing.T) {
	r := sharedRig(t)
	agent := func(context.Context) (io.ReadWriteCloser, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			buf := make([]byte, 4)
			if _, err := io.ReadFull(theirs, buf); err == nil {
				theirs.Write([]byte("got " + string(buf)))
			}
		}()
		return ours, nil
	}
	dir := tree(t, map[string]string{"Dockerfile": "FROM busybox\nCOPY ask /ask\nRUN --mount=type=ssh /ask > /answer\n"})
	ask := exec.Command("go", "build", "-o", filepath.Join(dir, "ask"), "./testdata/ask")
	ask.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := ask.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out := r.run(t, Request{
		Start:    &gantryv1.BuildStart{Tags: []string{tag(t)}, Offline: true},
		Contexts: map[string]string{"context": dir}, SSH: map[string]Dial{"default": agent},
	})
	if out.err != nil {
		t.Fatal(out.err)
	}
	equal(t, "answer", r.file(t, full(t), "answer"), "got ping")
	wantFault(t, r.try(t, "FROM busybox\nRUN --mount=type=ssh,required=true true\n", nil).err, fault.NotFound, "ssh")
}

func TestCopyLinkAddAndIgnore(t *testing.T) {
	r := sharedRig(t)
	dir := tree(t, map[string]string{
		"Dockerfile": "FROM busybox\nCOPY --link --chmod=0640 --chown=5:6 a /linked\nCOPY . /all\nADD --chmod=600 t.tar /\n",
		"a":          "a", "no/b": "b", "keep.log": "k", "x.log": "x",
		".dockerignore": "no\n*.log\n!keep.log\nDockerfile\n",
	})
	tarball(t, filepath.Join(dir, "t.tar"), "unpacked", "tar")
	out := r.run(t, Request{Start: &gantryv1.BuildStart{Tags: []string{tag(t)}, Offline: true}, Contexts: map[string]string{"context": dir}})
	if out.err != nil {
		t.Fatal(out.err)
	}
	r.files(t, full(t), func(root string) {
		fi, err := os.Stat(filepath.Join(root, "linked"))
		if err != nil || fi.Mode().Perm() != 0o640 || owner(fi) != [2]uint32{5, 6} {
			t.Errorf("COPY --link: %v %v", fi, err)
		}
		for path, want := range map[string]bool{"all/a": true, "all/keep.log": true, "all/no": false, "all/x.log": false, "all/Dockerfile": false, "unpacked": true} {
			if _, err := os.Stat(filepath.Join(root, path)); (err == nil) != want {
				t.Errorf("%s is there: %v", path, err == nil)
			}
		}
	})
}

func TestAdditionalContexts(t *testing.T) {
	r := sharedRig(t)
	other := tree(t, map[string]string{"f": "other"})
	r.build(t, "FROM base\nCOPY --from=lib f /f\n", nil, func(req *Request) {
		req.Start.Spec.AdditionalContexts = map[string]string{"lib": "./lib", "base": "docker-image://example.test/base:1"}
		req.Contexts["lib"] = other
	})
	equal(t, "file", r.file(t, full(t), "f"), "other")
	wantFault(t, r.try(t, "FROM lib\n", nil, func(req *Request) {
		req.Start.Spec.AdditionalContexts = map[string]string{"lib": "oci-layout://x"}
	}).err, fault.Unsupported, "oci-layout")
}

func TestDockerfileFromElsewhere(t *testing.T) {
	r := sharedRig(t)
	r.build(t, "FROM nowhere:1", map[string]string{"a": "1", "docker/Prod": "FROM busybox\nCOPY a /a2\n"}, func(req *Request) { req.Start.Spec.Dockerfile = "docker/Prod" })
	equal(t, "file in a directory", r.file(t, full(t), "a2"), "1")
	r.build(t, "FROM nowhere:1", map[string]string{"a": "1"}, func(req *Request) {
		req.Start.Spec.DockerfileInline = "FROM busybox\nCOPY a /a3\n"
	})
	equal(t, "inline", r.file(t, full(t), "a3"), "1")
	out := r.run(t, Request{Start: &gantryv1.BuildStart{Dockerfile: []byte("FROM busybox\nRUN echo 4 > /a4\n"), Offline: true}})
	if out.err != nil || !strings.HasPrefix(out.image.References[0], danglingPrefix+"@sha256:") {
		t.Errorf("without context and tag: %v %v", out.image, out.err)
	}
	wantFault(t, r.try(t, "", nil, func(req *Request) { req.Start.Spec.Dockerfile = "nothing" }).err, fault.NotFound, "nothing")
	wantFault(t, r.try(t, "", nil, func(req *Request) { req.Start.Spec.Dockerfile = "../../etc/passwd" }).err, fault.Invalid, "outside")
}

func TestNetworkModesAndHosts(t *testing.T) {
	r := sharedRig(t)
	r.build(t, `FROM busybox
RUN --network=none test "$(ls /sys/class/net 2>/dev/null | grep -v -e lo -e bonding_masters | wc -l)" = 0
RUN grep -q '10.1.2.3.*db' /etc/hosts
RUN cat /etc/resolv.conf > /resolv
`, nil, func(req *Request) {
		req.Start.Spec.ExtraHosts = []string{"db:10.1.2.3", "six=[::1]", "gw=host-gateway"}
	})
	want, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // without one there are no name servers to be told of
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(want), "\n") {
		if strings.HasPrefix(line, "nameserver") && !strings.Contains(r.file(t, full(t), "resolv"), line) {
			t.Errorf("the step's resolv.conf lacks %q", line)
		}
	}
}

// emptyNetworks gives each step a network with nothing in it.
type emptyNetworks struct{ t *testing.T }

func (n emptyNetworks) Namespace(context.Context) (path string, release func() error, err error) {
	path = filepath.Join(n.t.TempDir(), "net")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return "", nil, err
	}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine, as its network is not that of the others
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- err
			return
		}
		made <- unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
	}()
	return path, func() error { return unix.Unmount(path, 0) }, <-made
}

func TestTheMachinesNetworkNeedsLeave(t *testing.T) {
	requirements(t)
	r, err := openRig(t.TempDir(), Options{Network: emptyNetworks{t}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.stop()
	if err := r.busybox(); err != nil {
		t.Fatal(err)
	}
	machine, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	const own, host = "FROM busybox\nRUN readlink /proc/self/ns/net > /ns\n", "FROM busybox\nRUN --network=host readlink /proc/self/ns/net > /ns\n"
	leave := func(q *Request) { q.Start.HostNetwork = true }
	for n, c := range []struct {
		text   string
		change []func(*Request)
		host   bool
	}{{own, nil, false}, {own, []func(*Request){leave}, false}, {host, []func(*Request){leave}, true}} {
		r.build(t, c.text, nil, c.change...)
		if got := strings.TrimSpace(r.file(t, full(t), "ns")); (got == machine) != c.host {
			t.Errorf("build %d ran in %s, the machine's own is %s", n, got, machine)
		}
	}
	wantFault(t, r.try(t, host+"RUN true\n", nil).err, fault.Denied, "network.host is not allowed")
	wantFault(t, r.try(t, "FROM busybox\nRUN true\n", nil, func(q *Request) { q.Start.Spec.Network = "host" }).err, fault.Denied, "not allowed here")
}

func TestRefusals(t *testing.T) {
	r := sharedRig(t)
	for _, c := range []struct {
		name   string
		kind   fault.Kind
		change func(*Request)
		text   string
		says   string
	}{
		{"platform", fault.Unsupported, func(q *Request) { q.Start.Spec.Platforms = []string{"linux/s390x"} }, "FROM busybox\n", "linux/s390x"},
		{"network", fault.Unsupported, func(q *Request) { q.Start.Spec.Network = "front" }, "FROM busybox\n", "front"},
		{"cache type", fault.Unsupported, func(q *Request) { q.Start.Spec.CacheTo = []string{"type=gha"} }, "FROM busybox\n", "gha"},
		{"local cache", fault.Unsupported, func(q *Request) { q.Start.Spec.CacheFrom = []string{"type=local,src=/etc"} }, "FROM busybox\n", "local"},
		{"privileged", fault.Denied, func(q *Request) { q.Start.Spec.Privileged = true }, "FROM busybox\n", "privileged"},
		{"insecure step", fault.Denied, nil, "FROM busybox\nRUN --security=insecure true\n", "insecure"},
		{"frontend", fault.Denied, nil, "# syntax=evil.test/frontend:1\nFROM busybox\n", "evil.test/frontend"},
		{"frontend argument", fault.Denied, func(q *Request) { q.Start.Spec.Args = map[string]string{"BUILDKIT_SYNTAX": "evil.test/f"} }, "FROM busybox\n", "evil.test/f"},
		{"frontend that looks built in", fault.Denied, nil, "# syntax=evil.test/docker/dockerfile:1\nFROM busybox\n", "evil.test"},
		{"unknown image", fault.NotFound, nil, "FROM busybox\nCOPY --from=nowhere.test/x:1 /a /b\n", "nowhere.test/x:1"},
		{"bad instruction", fault.Invalid, nil, "FROM busybox\n\nFRUM x\n", "Dockerfile:3"},
		{"empty", fault.Invalid, nil, "\n", ""},
		{"missing file", fault.Invalid, nil, "FROM busybox\nCOPY nothing /\n", "nothing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := r.try(t, c.text, nil, func(q *Request) {
				if c.change != nil {
					c.change(q)
				}
			})
			wantFault(t, out.err, c.kind, c.says)
		})
	}
}

func TestBuiltInSyntaxLine(t *testing.T) {
	r := sharedRig(t)
	r.build(t, "# syntax=docker/dockerfile:1.7\nFROM busybox\nRUN echo ok > /ok\n", nil)
	equal(t, "file", r.file(t, full(t), "ok"), "ok\n")
}

func TestUnreachableRegistryIsExplained(t *testing.T) {
	r := sharedRig(t)
	out := r.try(t, "FROM localhost:1/x/y:1\n", nil, func(q *Request) { q.Start.Offline = false })
	wantFault(t, out.err, fault.Unavailable, "Dockerfile:1", "localhost:1/x/y:1")
	if !strings.Contains(fault.HintOf(out.err), "gantry image pull localhost:1/x/y:1") {
		t.Errorf("hint: %s", fault.HintOf(out.err))
	}
}

func TestLocalBaseNeedsNoRegistry(t *testing.T) {
	r := sharedRig(t)
	start := time.Now()
	r.build(t, "FROM example.test/base:1\nRUN echo "+t.Name()+" > /x\n", nil, func(q *Request) { q.Start.Offline = false })
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %s: a registry was asked first", d)
	}
}

func TestFailedStepTellsAll(t *testing.T) {
	r := sharedRig(t)
	out := r.try(t, "FROM busybox\nRUN true\nRUN echo first; echo why >&2; exit 3\n", nil)
	wantFault(t, out.err, fault.Invalid, "Dockerfile:3", "RUN echo first; echo why >&2; exit 3", "exit code 3", "\n    first", "\n    why")
	out = r.try(t, "FROM busybox\nRUN nosuchcommand\n", nil)
	wantFault(t, out.err, fault.Invalid, "exit code 127", "nosuchcommand")
	if !strings.Contains(fault.HintOf(out.err), "not found") {
		t.Errorf("hint: %s", fault.HintOf(out.err))
	}
}

func TestWarnings(t *testing.T) {
	r := sharedRig(t)
	out := r.build(t, "FROM busybox\nrun true\nCMD a b\n", nil)
	rules := map[string]int32{}
	for _, w := range out.warnings {
		rules[w.Rule] = w.Line
		if w.File != "Dockerfile" || w.Message == "" || strings.Contains(w.Message, "(line ") {
			t.Errorf("warning %v", w)
		}
	}
	for rule, line := range map[string]int32{"UnpinnedBase": 1, "JSONArgsRecommended": 3, "ConsistentInstructionCasing": 2} {
		if rules[rule] != line {
			t.Errorf("rule %s on line %d, want %d (all: %v)", rule, rules[rule], line, rules)
		}
	}
}

func TestCachedRebuildGivesTheSameImage(t *testing.T) {
	r := sharedRig(t)
	text, files := "FROM busybox\nCOPY a /a\nRUN cat /a /a > /b\nCOPY b /c\n", map[string]string{"a": "1", "b": "2"}
	const step = "[3/4] RUN cat /a /a > /b"
	cached := func(out outcome) bool { return out.vertices[step].GetCached() }
	first := r.build(t, text, files)
	second := r.build(t, text, files)
	equal(t, "digest", second.image.Digest, first.image.Digest)
	equal(t, "first is cached", cached(first), false)
	equal(t, "second is cached", cached(second), true)
	files["b"] = "3"
	equal(t, "cached after a later file changed", cached(r.build(t, text, files)), true)
	equal(t, "changed file", r.file(t, full(t), "c"), "3")
	equal(t, "cached with no_cache", cached(r.build(t, text, files, func(q *Request) { q.Start.Spec.NoCache = true })), false)
}

func TestCanceledBuildStops(t *testing.T) {
	r := sharedRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req := Request{Start: &gantryv1.BuildStart{Dockerfile: []byte("FROM busybox\nRUN echo started; sleep 1000\n"), Offline: true}}
	started := func(e *gantryv1.BuildEvent) bool { return strings.Contains(string(e.GetLog().GetData()), "started") }
	_, err := r.Build(ctx, req, func(e *gantryv1.BuildEvent) error {
		if started(e) {
			cancel()
		}
		return nil
	})
	equal(t, "kind", fault.KindOf(err), fault.Canceled)
	_, err = r.Build(t.Context(), req, func(e *gantryv1.BuildEvent) error {
		if started(e) {
			return io.ErrClosedPipe
		}
		return nil
	})
	equal(t, "kind when the client went away", fault.KindOf(err), fault.Canceled)
}

func TestUsageAndPrune(t *testing.T) {
	r := sharedRig(t)
	r.build(t, "FROM busybox\nRUN head -c 3000000 /dev/zero > /big\n", nil, func(q *Request) { q.Start.Tags = []string{"test/prune:1"} })
	bytes, records, err := r.Usage(t.Context())
	if err != nil || bytes < 3_000_000 || records == 0 {
		t.Fatalf("usage: %d bytes, %d records, %v", bytes, records, err)
	}
	freed, n, err := r.Prune(t.Context(), true, 0)
	if err != nil || freed == 0 || n == 0 {
		t.Fatalf("prune: %d bytes, %d records, %v", freed, n, err)
	}
	after, _, err := r.Usage(t.Context())
	if err != nil || after >= bytes {
		t.Errorf("%d bytes before, %d after, %v", bytes, after, err)
	}
	// The image outlives the cache that made it.
	r.files(t, "docker.io/test/prune:1", func(root string) {
		if fi, err := os.Stat(filepath.Join(root, "big")); err != nil || fi.Size() != 3_000_000 {
			t.Errorf("after pruning: %v %v", fi, err)
		}
	})
	r.build(t, "FROM busybox\nRUN echo again\n", nil)
}

// manyBuilds of bigBuild bytes each fill the cache of TestCacheIsBounded.
const manyBuilds, bigBuild = 6, 10_000_000

func bigDockerfile(n int) string {
	return fmt.Sprintf("FROM busybox\nRUN echo build %d; head -c %d /dev/zero > /big\n", n, bigBuild)
}

// TestCacheIsBounded fills the cache over its bound and has the collection that a start runs make room. A process of its own
// fills it: BuildKit remembers content for as long as its process lives.
func TestCacheIsBounded(t *testing.T) {
	requirements(t)
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), exe, childArg, dir, "many").Output(); err != nil || string(out) != "ended: <nil>\n" {
		t.Fatalf("the child: %s %v", out, err)
	}
	const bound = 3.5 * bigBuild
	r, err := openRig(dir, Options{CacheBytes: bound})
	if err != nil {
		t.Fatal(err)
	}
	defer r.stop()
	taken := r.cacheAlone(t)
	for end := time.Now().Add(time.Minute); taken > bound; taken = r.cacheAlone(t) {
		if time.Now().After(end) {
			t.Fatalf("the cache takes %d bytes, its bound is %d", taken, int64(bound))
		}
		<-time.After(50 * time.Millisecond)
	}
	if taken < bigBuild {
		t.Errorf("%d bytes are left: more went than had to", taken)
	}
	cached := func(n int) bool {
		for name, v := range r.build(t, bigDockerfile(n), nil).vertices {
			if strings.Contains(name, fmt.Sprintf("echo build %d", n)) {
				return v.GetCached()
			}
		}
		t.Fatalf("build %d has no step", n)
		return false
	}
	equal(t, "the newest build is cached", cached(manyBuilds-1), true)
	equal(t, "the oldest build is cached", cached(0), false)
}

// cacheAlone is what the cache takes beside what images hold anyway: the bound is on that.
func (r *rig) cacheAlone(t testing.TB) (bytes int64) {
	t.Helper()
	got, err := r.controller.DiskUsage(t.Context(), &controlapi.DiskUsageRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, record := range got.Record {
		if !record.Shared {
			bytes += record.Size
		}
	}
	return bytes
}
