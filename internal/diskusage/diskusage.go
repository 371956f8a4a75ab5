// Package diskusage measures how much of a disk a directory tree takes, as du does.
//
// Call Of. It is safe in parallel and tolerates a tree that changes while it is read.
package diskusage

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"
)

type inode struct{ dev, ino uint64 }

// Of returns the bytes of blocks below root. A file with several names counts once; links are not followed.
func Of(ctx context.Context, root string) (int64, error) {
	var total int64
	seen := map[inode]bool{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return ignoreGone(path, root, err)
		}
		info, err := e.Info()
		if err != nil {
			return ignoreGone(path, root, err)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if id := (inode{uint64(st.Dev), st.Ino}); st.Nlink > 1 && !e.IsDir() {
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		total += st.Blocks * 512
		return nil
	})
	return total, err
}

// ignoreGone forgives what a running container deleted meanwhile.
func ignoreGone(path, root string, err error) error {
	if path != root && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
