// Package keep writes and reads what an engine keeps of a container as JSON.
//
// Finish makes a container's folder last and puts its configuration there; Config reads it again. State and ReadState are for
// what the next start of the engine can settle by itself. All are safe in parallel for different containers.
package keep

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
)

const configFile = "container.json"

// Finish puts all files of a folder on disk, and then the configuration: a folder that has one is whole.
func Finish(dir string, config any) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var all errgroup.Group
	for _, f := range files {
		if f.Type().IsRegular() {
			all.Go(func() error { return sync(filepath.Join(dir, f.Name())) })
		}
	}
	if err := all.Wait(); err != nil {
		return err
	}
	b, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, configFile), b, 0o600)
}

func sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Config reads the configuration in a folder. One that is not there is fs.ErrNotExist; one that is damaged, or that is refused
// by valid, is a fault of kind Corrupt.
func Config(dir string, config any, valid func() bool) error {
	path := filepath.Join(dir, configFile)
	b, err := atomicfile.Read(path)
	if err != nil && !fault.Is(err, fault.Corrupt) {
		return err
	}
	if err == nil {
		err = json.Unmarshal(b, config)
	}
	if err != nil || !valid() {
		return fault.Wrap(fault.Corrupt, err, "the configuration of container %s is damaged", filepath.Base(dir)).
			WithHint("put %s back from your backup and restart gantryd; or remove the container, with what it has written", path)
	}
	return nil
}

// Missing reports whether an error of Config means that the container was being made or removed.
func Missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// State replaces a file in one step. It does not sync.
func State(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, path)
}

// ReadState reads what State, or a shim, has written.
func ReadState(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fault.Wrap(fault.Corrupt, err, "file %s", path)
	}
	return nil
}
