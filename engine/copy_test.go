package engine_test

import (
	"archive/tar"
	"bytes"
	"io"
	"sort"
	"strings"
	"testing"

	"github.com/gantryd/gantry/engine/enginetest"
	"github.com/gantryd/gantry/fault"
)

func TestCopyAndDiff(t *testing.T) {
	e := enginetest.Open(t)
	image := enginetest.BusyboxImage(t, e)
	id := enginetest.Run(t, e, "c", enginetest.Spec(image, "rm /data/seed; echo changed >/etc/group; ln -s /etc /tmp/l; echo up; exec sleep 1000"))
	awaitLine(t, e, id, "up\n")
	for _, state := range []string{"running", "stopped"} {
		name := "from-" + state
		tarball := enginetest.Tar(t, []enginetest.Entry{enginetest.FileEntry(name, 0o600, 1000, 1000, "hello "+state)})
		// Through a link of the container's, which stays inside.
		if err := e.CopyTo(t.Context(), id, "/tmp/l", bytes.NewReader(tarball)); err != nil {
			t.Fatal(err)
		}
		r, err := e.CopyFrom(t.Context(), id, "/etc/"+name)
		if err != nil {
			t.Fatal(err)
		}
		tr := tar.NewReader(r)
		h, err := tr.Next()
		if err != nil || h.Name != name || h.Uid != 1000 {
			t.Fatalf("%v, %+v", err, h)
		}
		if b, err := io.ReadAll(tr); err != nil || string(b) != "hello "+state {
			t.Errorf("%v, %q", err, b)
		}
		_ = r.Close()
		if _, err := e.CopyFrom(t.Context(), id, "/no/such"); !fault.Is(err, fault.NotFound) {
			t.Errorf("missing path: %v", err)
		}
		if err := e.Stop(t.Context(), id, 0); err != nil {
			t.Fatal(err)
		}
	}
	diff, err := e.Diff(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range diff.Entries {
		got = append(got, d.Kind+" "+d.Path)
	}
	sort.Strings(got)
	want := "A /etc/from-running,A /etc/from-stopped,A /tmp/l,C /data,C /etc,C /etc/group,C /tmp,D /data/seed"
	if strings.Join(got, ",") != want {
		t.Errorf("diff %s, want %s", strings.Join(got, ","), want)
	}
}
