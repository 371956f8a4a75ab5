package cluster

import (
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"

	"github.com/gantryd/gantry/fault"
)

func TestOnlyAFullDiskIsCalledFull(t *testing.T) {
	for _, c := range []struct {
		err  error
		want fault.Kind
	}{
		{nil, fault.Exhausted}, // too little is left
		{errFull, fault.Exhausted},
		{fmt.Errorf("allocate: %w", syscall.ENOSPC), fault.Exhausted},
		{syscall.EDQUOT, fault.Exhausted},
		{syscall.EROFS, fault.Unavailable},
		{errors.Join(syscall.EIO, io.ErrUnexpectedEOF), fault.Unavailable},
	} {
		if err := full("/d", c.err); !fault.Is(err, c.want) || fault.HintOf(err) == "" {
			t.Errorf("%v: %v", c.err, err)
		}
	}
}

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
