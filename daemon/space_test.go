package daemon

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/gantryd/gantry/cluster"
)

func TestFrees(t *testing.T) {
	for call, want := range map[string]bool{
		"AppService/Apply": false, "AppService/Scale": false, "AppService/Remove": true, "ConfigService/Create": false,
		"InstanceService/Stop": true, "NodeAdminService/Demote": true, "MachineService/AddMember": true, "JoinService/Join": false,
	} {
		if got := frees(call); got != want {
			t.Errorf("%s: %v", call, got)
		}
	}
}

func TestEnoughServers(t *testing.T) {
	for _, c := range []struct {
		voters, full int
		want         bool
	}{{1, 0, true}, {1, 1, false}, {2, 1, false}, {3, 1, true}, {3, 2, false}, {5, 2, true}, {5, 3, false}} {
		if got := enough(c.voters, c.full); got != c.want {
			t.Errorf("%d of %d servers are full: %v", c.full, c.voters, got)
		}
	}
}

// TestPutAside keeps room in a file of its own and in the databases that are there.
func TestPutAside(t *testing.T) {
	root := t.TempDir()
	d := &daemon{Config: Config{Root: root, Logger: slog.New(slog.DiscardHandler)}, space: cluster.NewSpace(root)}
	db := filepath.Join(d.Root, "build", "cache.db")
	if err := os.MkdirAll(filepath.Dir(db), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(db, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	spare := filepath.Join(d.Root, spareFile)
	for range 2 {
		if err := d.putAside(spare); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(spare); err != nil || info.Size() != spareSize {
		t.Errorf("the spare file: %v, %v", info, err)
	}
	if info, err := os.Stat(db); err != nil || info.Size() != 1 {
		t.Errorf("the database: %v, %v", info, err)
	}
	// There is space: a start leaves the spare room alone.
	if err := d.useSpare(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(spare); err != nil {
		t.Error(err)
	}
}
