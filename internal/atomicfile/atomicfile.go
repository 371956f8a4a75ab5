// Package atomicfile replaces files so that a crash leaves the old content or the new one, never a part.
//
// Call Write and Remove. Both are safe in parallel for different paths; for one path the last caller wins.
package atomicfile

import (
	"errors"
	"os"
	"path/filepath"
)

// Write puts data at path. When it returns nil, the content and the name are on disk.
func Write(path string, data []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, TempPrefix+"*")
	if err != nil {
		return err
	}
	err = fill(f, data, mode)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	return SyncDir(dir)
}

// TempPrefix starts the names of files that a crash can leave behind; whoever owns the folder may delete them at start.
const TempPrefix = ".new-"

func fill(f *os.File, data []byte, mode os.FileMode) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Remove deletes path, which may be gone already, and makes that last.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in a directory last.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
