package build

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/gantryd/gantry/fault"
)

// keptContexts is how many contexts are kept between builds, those used last.
const keptContexts = 32

// ContextDir returns a directory for UnpackContext, and what gives it back. The directory of a key is kept, so that the
// next build of the same place writes changed files only; while one build has it, another gets one that is removed
// afterwards. A good key names the client, its directory and the context's name.
func (b *Builder) ContextDir(key string) (dir string, release func(), err error) {
	sum := sha256.Sum256([]byte(key))
	id := hex.EncodeToString(sum[:])
	parent := b.path("contexts")
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return "", nil, fault.Wrap(fault.Unavailable, err, "make a directory for a build context")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.inUse[id] {
		return b.passingDir()
	}
	dir = filepath.Join(parent, id)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", nil, fault.Wrap(fault.Unavailable, err, "make a directory for a build context")
	}
	b.inUse[id] = true
	return dir, func() { b.giveBack(id) }, nil
}

func (b *Builder) passingDir() (string, func(), error) {
	dir, err := os.MkdirTemp(b.opts.Run, "context-")
	if err != nil {
		return "", nil, fault.Wrap(fault.Unavailable, err, "make a directory for a build context")
	}
	return dir, func() { os.RemoveAll(dir) }, nil
}

// giveBack dates the directory and drops the ones beyond keptContexts.
func (b *Builder) giveBack(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.inUse, id)
	now := time.Now()
	os.Chtimes(filepath.Join(b.path("contexts"), id), now, now)
	entries, err := os.ReadDir(b.path("contexts"))
	if err != nil || len(entries) <= keptContexts {
		return
	}
	slices.SortFunc(entries, func(x, y os.DirEntry) int { return cmp.Compare(used(y), used(x)) })
	for _, e := range entries[keptContexts:] {
		if !b.inUse[e.Name()] {
			os.RemoveAll(filepath.Join(b.path("contexts"), e.Name()))
		}
	}
}

func used(e os.DirEntry) int64 {
	fi, err := e.Info()
	if err != nil {
		return 0
	}
	return fi.ModTime().UnixNano()
}
