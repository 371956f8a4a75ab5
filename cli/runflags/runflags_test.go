package runflags_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/cli/runflags"
	"github.com/gantryd/gantry/fault"
)

// same compares a message to its text form, which is shorter to read than the struct.
func same[M proto.Message](t *testing.T, in string, got M, err error, want string) {
	t.Helper()
	expected := got.ProtoReflect().New().Interface()
	if perr := prototext.Unmarshal([]byte(want), expected); perr != nil {
		t.Fatal(perr)
	}
	if err != nil || !proto.Equal(got, expected) {
		t.Errorf("%q:\n got %v, %v\nwant %v", in, got, err, expected)
	}
}

func TestPorts(t *testing.T) {
	for in, want := range map[string]string{
		"80":                `container_port:80 protocol:"tcp"`,
		"8080:80":           `host_port:8080 container_port:80 protocol:"tcp"`,
		"127.0.0.1:8080:80": `host_ip:"127.0.0.1" host_port:8080 container_port:80 protocol:"tcp"`,
		"127.0.0.1::80":     `host_ip:"127.0.0.1" container_port:80 protocol:"tcp"`,
		"[::1]:53:53/udp":   `host_ip:"::1" host_port:53 container_port:53 protocol:"udp"`,
		"0.0.0.0:1-1:65535": `host_ip:"0.0.0.0" host_port:1 container_port:65535 protocol:"tcp"`,
		"[::]:80":           `host_ip:"::" container_port:80 protocol:"tcp"`,
	} {
		got, err := runflags.Ports(in)
		if len(got) != 1 {
			t.Errorf("%q: %v, %v", in, got, err)
			continue
		}
		same(t, in, got[0], err, want)
	}
	got, err := runflags.Ports("8000-8002:9000-9002/udp")
	if err != nil || len(got) != 3 || got[2].GetHostPort() != 8002 || got[2].GetContainerPort() != 9002 {
		t.Errorf("range: %v, %v", got, err)
	}
	for _, in := range []string{"", "x", "0", "70000", "80:", "1-3:1-2", "5-4:5-4", "80/sctp", "300.1.1.1:80:80", "1:2:3:4", "-1", "[::1:80:80"} {
		if got, err := runflags.Ports(in); !fault.Is(err, fault.Invalid) || fault.HintOf(err) == "" {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
}

func TestVolumes(t *testing.T) {
	for in, want := range map[string]string{
		"/data":                  `type:TYPE_VOLUME target:"/data"`,
		"data:/data":             `type:TYPE_VOLUME source:"data" target:"/data"`,
		"data:/data:ro,nocopy,z": `type:TYPE_VOLUME source:"data" target:"/data" read_only:true no_copy:true`,
		"/a/../b:/c":             `type:TYPE_BIND source:"/b" target:"/c" create_host_path:true`,
		"./a:/c:rshared":         `type:TYPE_BIND source:"/here/a" target:"/c" create_host_path:true propagation:"rshared"`,
		"..:/c":                  `type:TYPE_BIND source:"/" target:"/c" create_host_path:true`,
	} {
		got, err := runflags.Volume(in, "/here")
		same(t, in, got, err, want)
	}
	for _, in := range []string{"", "data", ":/x", "a:b", "a:/b:what", "a:/b:ro:rw"} {
		if got, err := runflags.Volume(in, "/here"); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
}

func TestMounts(t *testing.T) {
	for in, want := range map[string]string{
		"type=bind,src=./a,dst=/b,readonly":                             `type:TYPE_BIND source:"/here/a" target:"/b" read_only:true`,
		"source=v,target=/b,volume-subpath=x,volume-nocopy":             `type:TYPE_VOLUME source:"v" target:"/b" subpath:"x" no_copy:true`,
		"type=tmpfs,dst=/t,tmpfs-size=64m,tmpfs-mode=1770":              `type:TYPE_TMPFS target:"/t" tmpfs_size:67108864 tmpfs_mode:1016`,
		"type=bind,src=/a,dst=/b,readonly=false,bind-propagation=slave": `type:TYPE_BIND source:"/a" target:"/b" propagation:"slave"`,
	} {
		got, err := runflags.Mount(in, "/here")
		same(t, in, got, err, want)
	}
	for _, in := range []string{"", "type=bind,dst=/b", "type=x,dst=/b", "dst=b", "type=tmpfs,src=a,dst=/b", "dst=/b,colour=red", "src=/a,dst=/b", "type=tmpfs,dst=/b,tmpfs-size=x"} {
		if got, err := runflags.Mount(in, "/here"); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	got, err := runflags.Tmpfs("/run:size=1m,mode=755,exec,uid=5")
	same(t, "tmpfs", got, err, `type:TYPE_TMPFS target:"/run" tmpfs_size:1048576 tmpfs_mode:493 options:"exec" options:"uid=5"`)
}

func TestSmallParsers(t *testing.T) {
	u, err := runflags.Ulimit("nofile=1024:-1")
	same(t, "ulimit", u, err, `name:"nofile" soft:1024 hard:-1`)
	d, err := runflags.Device("/dev/a:/dev/b:r")
	same(t, "device", d, err, `source:"/dev/a" target:"/dev/b" permissions:"r"`)
	r, err := runflags.Restart("on-failure:3")
	same(t, "restart", r, err, `condition:CONDITION_ON_FAILURE max_attempts:3`)
	n, err := runflags.Network([]string{"front", "voting/back"}, "production")
	same(t, "network", n, err, `kind:KIND_BRIDGE attachments:{network:"production/front"} attachments:{network:"production/voting/back"}`)
	n, err = runflags.Network([]string{"container:abc"}, "production")
	same(t, "network", n, err, `kind:KIND_CONTAINER target:"abc"`)
	if c, err := runflags.Cpus("1.5"); err != nil || c != 1_500_000_000 {
		t.Errorf("cpus: %d, %v", c, err)
	}
	for name, err := range map[string]error{
		"ulimit":   second(runflags.Ulimit("nofile=5:2")),
		"ulimit 2": second(runflags.Ulimit("nofile")),
		"device":   second(runflags.Device("sda")),
		"restart":  second(runflags.Restart("always:3")),
		"network":  second(runflags.Network([]string{"host", "front"}, "e")),
		"network2": second(runflags.Network([]string{"container:"}, "e")),
		"cpus":     second(runflags.Cpus("-1")),
	} {
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestEnvFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "env")
	content := "\ufeff# comment\n\nA=1\n  B=two words # not a comment\nC=\"quoted\"\nPASSED\nMISSING\nD=\n"
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	lookup := func(k string) (string, bool) { return "on", k == "PASSED" }
	got, err := runflags.EnvFile(path, lookup)
	want := []string{"A=1", "B=two words # not a comment", `C="quoted"`, "PASSED=on", "D="}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
	if err := os.WriteFile(path, []byte("A=1\n=2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := runflags.EnvFile(path, lookup); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("bad line: %v", err)
	}
}

func TestSpecFromFlags(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "seccomp.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	var f runflags.Flags
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.Register(fs)
	args := strings.Fields(`-it -p 8080:80 -v data:/d --tmpfs /t -e A=1 -e HOME --memory 64m --memory-swap -1 --cpus .5
		--pids-limit 20 --hostname h --ip 10.1.2.3 --entrypoint= --security-opt seccomp=seccomp.json --add-host db=[::1]
		--health-cmd true --health-interval 3s --stop-timeout 5 -l x=y --pull never --log-opt max-size=1m --read-only`)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	got, err := f.Spec("debian", []string{"ls"}, runflags.Place{Dir: dir, Environment: "e", Lookup: func(string) (string, bool) { return "/h", true }})
	same(t, "flags", got, err, `image:"debian" tty:true stdin_open:true hostname:"h" read_only:true entrypoint:{} command:{values:"ls"}
		pull_policy:PULL_POLICY_NEVER env:"A=1" env:"HOME=/h" labels:{key:"x" value:"y"} stop_grace_period:{seconds:5}
		mounts:{type:TYPE_VOLUME source:"e/data" target:"/d"} mounts:{type:TYPE_TMPFS target:"/t"}
		network:{kind:KIND_BRIDGE address:"10.1.2.3"} ports:{host_port:8080 container_port:80 protocol:"tcp"}
		extra_hosts:"db:::1" resources:{memory:67108864 memory_swap:-1 nano_cpus:500000000 pids:20}
		security_opt:"seccomp={}" healthcheck:{test:"CMD-SHELL" test:"true" interval:{seconds:3}}
		logging:{options:{key:"max-size" value:"1m"}}`)
	if got.GetEntrypoint() == nil {
		t.Error("an empty entrypoint must be set, it removes the image's")
	}
}

func FuzzPorts(f *testing.F) {
	f.Add("127.0.0.1:8080-8081:80-81/tcp")
	f.Fuzz(func(t *testing.T, s string) {
		ports, err := runflags.Ports(s)
		for _, p := range ports {
			if err != nil || p.GetContainerPort() == 0 || p.GetContainerPort() > 65535 || p.GetHostPort() > 65535 {
				t.Errorf("%q: %v %v", s, p, err)
			}
		}
	})
}
