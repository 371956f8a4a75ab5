package userns

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestARangeOverlapsNobodys(t *testing.T) {
	etc := t.TempDir()
	for name, content := range map[string]string{
		"passwd": "root:x:0:0::/:/bin/sh\n# a comment\nlast:x:1879048192:5::/:\n",
		"group":  "root:x:0:\nbig:x:2147287039:\n",
		"subuid": "app:100000:65536\nhuge:1879113728:131072\n",
		"subgid": "app:nonsense:65536\n",
	} {
		must(t, os.WriteFile(filepath.Join(etc, name), []byte(content), 0o644))
	}
	taken, err := takenRanges(etc)
	must(t, err)
	for base, want := range map[uint32]string{
		firstBase: "passwd", firstBase + Size: "subuid", firstBase + 4*Size: "", lastBase: "group", lastBase - Size: "",
	} {
		if by := taken.overlaps(base); (by == "") != (want == "") || !strings.HasSuffix(by, want) {
			t.Errorf("%d is taken by %q, want %q", base, by, want)
		}
	}
	for _, root := range []string{"/a", "/b", "/var/lib/gantry"} {
		base, err := taken.free(root)
		if err != nil || !valid(base) || taken.overlaps(base) != "" {
			t.Errorf("%s: %d, %v", root, base, err)
		}
	}
	all := spans{{first: 0, count: 1 << 32, file: "subuid"}}
	if _, err := all.free("/a"); !fault.Is(err, fault.Exhausted) {
		t.Errorf("nothing is free: %v", err)
	}
}

func TestTheRangeIsKept(t *testing.T) {
	o := Options{Root: t.TempDir()}
	first, err := chooseRange(o)
	must(t, err)
	if again, err := chooseRange(o); err != nil || again != first {
		t.Errorf("%d, then %d, %v", first, again, err)
	}
	other := uint32(firstBase)
	if other == first {
		other += Size
	}
	b, err := json.Marshal(record{Base: other})
	must(t, err)
	must(t, atomicfile.Write(filepath.Join(o.Root, rangeFile), b, 0o600))
	if again, err := chooseRange(o); err != nil || again != other {
		t.Errorf("what is written down counts: %d, %v", again, err)
	}
	for _, bad := range []string{"", "{}", `{"base":0}`, `{"base":1000}`, `{"base":1879048193}`} {
		must(t, atomicfile.Write(filepath.Join(o.Root, rangeFile), []byte(bad), 0o600))
		if _, err := chooseRange(o); !fault.Is(err, fault.Corrupt) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestAHelperThatIsNoneIsNoHang(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("user namespaces of others need root")
	}
	for _, program := range []string{"/bin/false", "/no/such", "/bin/cat"} {
		_, err := Open(Options{Root: t.TempDir(), Run: t.TempDir(), Helper: program})
		if !fault.Is(err, fault.Unsupported) {
			t.Errorf("%s: %v", program, err)
		}
	}
}
