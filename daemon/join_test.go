package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/fault/wire"
)

// TestWhatEndsJoining: asking goes on while it may help, and ends for good where only somebody can.
func TestWhatEndsJoining(t *testing.T) {
	final := map[fault.Kind]bool{fault.Denied: true, fault.Invalid: true, fault.Conflict: true, fault.Exists: true, fault.Unsupported: true}
	for _, kind := range wire.Kinds() {
		if got := refuses(wire.Encode(fault.New(kind, "no"))); got != final[kind] {
			t.Errorf("a server says %q: final %v", kind, got)
		}
	}
	if refuses(errors.New("connection refused")) {
		t.Error("a server that is not reached is taken for a refusal")
	}
	c := Config{Join: "10.0.0.1:7450"}
	var refused NotAdmittedError
	err := c.notJoined(wire.Encode(fault.New(fault.Denied, "no").WithHint("do this")), true)
	if !errors.As(err, &refused) || err.Error() != "cannot join the cluster at 10.0.0.1:7450: no" || fault.HintOf(err) != "do this" || !fault.Is(err, fault.Denied) {
		t.Errorf("refused: %v; hint: %s", err, fault.HintOf(err))
	}
	err = c.notJoined(wire.Encode(fault.New(fault.Unavailable, "no")), false)
	if errors.As(err, &refused) || !strings.Contains(fault.HintOf(err), "does this machine reach 10.0.0.1:7450?") {
		t.Errorf("not reached: %v; hint: %s", err, fault.HintOf(err))
	}
}

// TestJoiningWithNothingToShow needs no server to know that it cannot be.
func TestJoiningWithNothingToShow(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	check(t, os.WriteFile(file, []byte("gantry-node-abc\n"), 0o600))
	good := filepath.Join(dir, "good")
	check(t, os.WriteFile(good, []byte("gantry-node-ab-cd-"+strings.Repeat("0", 64)+"\n"), 0o600))
	for what, c := range map[string]Config{
		"no token": {Advertise: "10.0.0.2"}, "no word of a token": {Advertise: "10.0.0.2", TokenFile: file}, "no address": {TokenFile: good},
	} {
		c.Root, c.Join = dir, "10.0.0.1:7450"
		var refused NotAdmittedError
		if _, _, err := askToJoin(t.Context(), c); !errors.As(err, &refused) || fault.HintOf(err) == "" {
			t.Errorf("%s: %v; hint: %s", what, err, fault.HintOf(err))
		}
	}
}
