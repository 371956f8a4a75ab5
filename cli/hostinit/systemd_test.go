package hostinit_test

import (
	"context"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/cli/hostinit"
	"github.com/gantryd/gantry/fault"
)

// manager is a service manager that knows one unit and starts it once; what it is asked goes into the file calls.
const manager = `#!/bin/sh
cd DIR
echo "$@" >>calls
case "$1" in
start|restart)
	rm -f failed
	eval "$(sed -n 's/^ExecStart=//p' units/gantryd.service)" >journal 2>&1
	grep -qx "RestartPreventExitStatus=$?" units/gantryd.service && : >failed
	exit 0 ;;
is-failed) test -e failed ;;
show) echo 0123abcd ;;
esac
`

const journal = `#!/bin/sh
cd DIR
case "$*" in
*--sync*) ;;
*_SYSTEMD_INVOCATION_ID=0123abcd) cat journal ;;
*) exit 1 ;;
esac
`

// newcomer says what gantryd says whose token is refused, and ends as it does; or it joins.
const newcomer = `#!/bin/sh
while [ "$1" != --token-file ]; do shift; done
echo it checks the kernel
case "$(cat $2)" in
*-bad) printf 'gantryd: it starts anew\ngantryd: cannot join the cluster: the token\nis not valid\nhint: make a new one\n'; exit 78 ;;
*-later) echo 'gantryd: the server does not answer'; exit 1 ;;
*-crash) exit 78 ;;
esac
echo joined
`

// underManager gives what installs a daemon under such a manager.
func underManager(t *testing.T) (o hostinit.Options, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("installing needs root")
	}
	mine, err := user.LookupGroupId(strconv.Itoa(os.Getegid()))
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	for _, d := range []string{"units", "bin"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, script := range map[string]string{"systemctl": manager, "journalctl": journal, "gantryd": newcomer} {
		if err := os.WriteFile(filepath.Join(dir, "bin", name), []byte(strings.ReplaceAll(script, "DIR", dir)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))
	return hostinit.Options{
		Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run"), Daemon: filepath.Join(dir, "bin", "gantryd"),
		UnitDir: filepath.Join(dir, "units"), Systemd: dir, Group: mine.Name,
	}, dir
}

// join is `gantry join` with a token.
func join(t *testing.T, o hostinit.Options, token string) *hostinit.Result {
	t.Helper()
	if err := o.Join("192.0.2.1:7450", "192.0.2.2", "gantry-node-"+token, false, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	result, err := hostinit.Run(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// TestJoinUnderSystemd: a refusal is told as gantryd words it, and another token is used at once, though nothing else is new.
func TestJoinUnderSystemd(t *testing.T) {
	o, dir := underManager(t)
	result := join(t, o, "bad")
	<-result.Exited
	err := result.Failure(t.Context())
	if err.Error() != "gantryd ended: cannot join the cluster: the token\nis not valid" || fault.HintOf(err) != "make a new one" {
		t.Errorf("refused: %v; hint: %s", err, fault.HintOf(err))
	}
	result = join(t, o, "crash")
	<-result.Exited
	if err := result.Failure(t.Context()); err.Error() != "gantryd ended at once; its last words:\nit checks the kernel" || fault.HintOf(err) != "journalctl -u gantryd" {
		t.Errorf("it ends without a reason: %v; hint: %s", err, fault.HintOf(err))
	}
	join(t, o, "good")
	if said, err := os.ReadFile(filepath.Join(dir, "journal")); err != nil || !strings.HasSuffix(string(said), "\njoined\n") {
		t.Errorf("with a good token: %q, %v", said, err)
	}
}

// TestSystemdStartsItAgain waits on for a daemon that ends otherwise.
func TestSystemdStartsItAgain(t *testing.T) {
	o, dir := underManager(t)
	result := join(t, o, "later")
	for asked := 0; asked < 2; asked = strings.Count(calls(t, dir), "is-failed") {
		<-time.After(10 * time.Millisecond)
	}
	select {
	case <-result.Exited:
		t.Error("it is given up")
	default:
	}
	if got := result.LastWords(t.Context()); !strings.HasSuffix(got, "\ngantryd: the server does not answer") {
		t.Errorf("its last words are %q", got)
	}
}

func calls(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
