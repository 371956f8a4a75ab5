// Package atomicfile replaces files so that a crash leaves the old content or the new one, never a part, and notices when a
// disk gives back something else than it was given.
//
// Call Write, Read and Remove. All are safe in parallel for different paths; for one path the last caller wins. The sum of the
// content is an extended attribute, so that the content stays what it was for those who know nothing of sums; where there is
// none, since the file system has no attributes or somebody else has written the file, Read believes what it reads.
package atomicfile

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/gantryd/gantry/fault"
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

// TempPrefix starts the names of files that a crash can leave behind; whoever owns the folder may delete them at start, with Tidy.
const TempPrefix = ".new-"

// Tidy deletes what calls of Write that did not return have left in a folder. It must not be called while others write there.
func Tidy(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), TempPrefix) {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

func fill(f *os.File, data []byte, mode os.FileMode) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = setSum(f, sum(data))
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Read returns what Write has put at path. Content that is not what was written is a fault of kind Corrupt.
func Read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	if want, err := getSum(f); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read the sum of %s", path)
	} else if want != "" && want != sum(data) {
		return nil, fault.New(fault.Corrupt, "%s is damaged: it does not hold what was written to it", path).
			WithHint("look at the disk: dmesg; put the file back from your backup; if you have changed it yourself: setfattr -x %s %s", Attribute, path)
	}
	return data, nil
}

// Attribute is the extended attribute with the SHA-256 of the content, in hexadecimal.
const Attribute = "user.gantry.sha256"

func sum(data []byte) string { return fmt.Sprintf("%x", sha256.Sum256(data)) }

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
