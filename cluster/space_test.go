package cluster

import "testing"

func TestShort(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct {
		left   Left
		before bool
		want   bool
	}{
		{Left{Bytes: 500 * mb, Files: 1000}, false, false},
		{Left{Bytes: 500 * mb, Files: 1000}, true, false},
		{Left{Bytes: 127 * mb, Files: 1000}, false, true},
		{Left{Bytes: 140 * mb, Files: 1000}, false, false},
		{Left{Bytes: 140 * mb, Files: 1000}, true, true},
		{Left{Bytes: 500 * mb, Files: 10}, false, true},
		{Left{Bytes: 500 * mb, Files: 100}, true, true},
	} {
		if got := c.left.short(c.before); got != c.want {
			t.Errorf("%d MB and %d files, short before %v: %v", c.left.Bytes/mb, c.left.Files, c.before, got)
		}
	}
}
