package hostinit_test

import (
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/gantryd/gantry/cli/hostinit"
	"github.com/gantryd/gantry/fault"
)

func TestUnitQuotesWhatSystemdWouldRead(t *testing.T) {
	unit := hostinit.Unit("/opt/my programs/gantryd", hostinit.Options{Root: "/srv/100%/$x", Run: "/run/g"})
	want := `ExecStart="/opt/my programs/gantryd" --root /srv/100%%/$$x --run /run/g --listen unix:///run/g/gantry.sock` + "\n"
	if !strings.Contains(unit, want) || !strings.Contains(unit, "\nKillMode=process\n") {
		t.Errorf("no %q in:\n%s", want, unit)
	}
}

// TestUnitGivesUpOnDamage names the exit code of a gantryd that refuses what is damaged, or that is refused: another start would
// say the same. On nothing else it gives up.
func TestUnitGivesUpOnDamage(t *testing.T) {
	unit := hostinit.Unit("/usr/bin/gantryd", hostinit.Options{})
	if !strings.Contains(unit, "\nRestartPreventExitStatus=78\n") || !strings.Contains(unit, "\nStartLimitIntervalSec=0\n") {
		t.Errorf("unit:\n%s", unit)
	}
}

// A daemon made of a shell script shows how one is started without systemd.
func TestInBackground(t *testing.T) {
	if os.Geteuid() != 0 {
		if _, err := hostinit.Run(t.Context(), hostinit.Options{}); !fault.Is(err, fault.Denied) {
			t.Errorf("without root: %v", err)
		}
		t.Skip("installing needs root")
	}
	mine, err := user.LookupGroupId(strconv.Itoa(os.Getegid())) // one that is there: a test makes none
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	daemon := filepath.Join(dir, "gantryd")
	if err := os.WriteFile(daemon, []byte("#!/bin/sh\necho \"$@\"\necho gantryd: no luck >&2\necho hint: try >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	result, err := hostinit.Run(t.Context(), hostinit.Options{
		Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run"), Daemon: daemon, Systemd: filepath.Join(dir, "none"),
		Group: mine.Name,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-result.Exited; err == nil {
		t.Error("the exit of the daemon is not told")
	}
	if err := result.Failure(t.Context()); err.Error() != "gantryd ended: no luck" || fault.HintOf(err) != "try" {
		t.Errorf("failure: %v; hint: %s", err, fault.HintOf(err))
	}
	log, err := os.ReadFile(result.Log)
	if err != nil || !strings.Contains(string(log), "--root "+dir+"/root --run "+dir+"/run --listen unix://"+dir+"/run/gantry.sock --group "+mine.Name+"\ngantryd: no luck\nhint: try\n") {
		t.Errorf("log %q, %v", log, err)
	}
}

func TestNoDaemonSaysWhereToPutIt(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("installing needs root")
	}
	_, err := hostinit.Run(t.Context(), hostinit.Options{Daemon: "/nonexistent/gantryd"})
	if !fault.Is(err, fault.NotFound) || !strings.Contains(fault.HintOf(err), "--daemon") {
		t.Errorf("got %v", err)
	}
}
