// Package boltcheck looks through a bbolt file before anybody uses it: what is damaged would end the program that opens it, at
// any later moment, with a panic.
//
// Call File while nobody else has the file open. It is for files of up to some hundred megabytes, which it reads in tenths of a
// second, and finds what breaks their structure; a value that was changed looks like any other to it, so that those who know
// more of the values pass a function that looks at each.
package boltcheck

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/gantryd/gantry/fault"
)

// MaxSize is the size in bytes from which on a file is believed unread.
const MaxSize = 256 << 20

// lockTimeout is how long another user of the file is waited for, as of a daemon that is just ending.
const lockTimeout = 10 * time.Second

// File returns a fault of kind Corrupt if the file is damaged, and nil if it is whole, empty, too large or not there. look may be
// nil; it is called with every key and value and the name of the bucket at the top, and an error of it means damage.
func File(path string, look func(bucket, key, value []byte) error) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && (info.Size() == 0 || info.Size() > MaxSize) {
		return nil
	}
	if err == nil {
		err = read(path, &walk{look: look, left: info.Size()})
	}
	if errors.Is(err, bolterrors.ErrTimeout) {
		return fault.Wrap(fault.Conflict, err, "another program has %s open", path).WithHint("is another gantryd running with the same --root?")
	}
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EMFILE) {
		return fault.Wrap(fault.Unavailable, err, "%s cannot be looked through", path)
	}
	if err != nil {
		return fault.Wrap(fault.Corrupt, err, "%s is damaged", path)
	}
	return nil
}

// read turns what damage does to bbolt into an error: panics, and faults of memory that is mapped past the file's end.
func read(path string, w *walk) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: lockTimeout})
	if err != nil {
		return err
	}
	defer db.Close() // after a panic: its lock must not stay
	err = db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error { return w.bucket(name, b) })
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	// The list of free pages comes second: where it is not in the file, bbolt makes it in a goroutine whose panics nobody can
	// catch, from the pages that are known to be whole now.
	if db, err = bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, PreLoadFreelist: true, Timeout: lockTimeout}); err != nil {
		return err
	}
	return db.Close()
}

// walk is a way through all buckets.
type walk struct {
	look func(bucket, key, value []byte) error
	left int64 // keys that the file can hold: damage may lead in a circle
}

func (w *walk) bucket(top []byte, b *bolt.Bucket) error {
	var before []byte
	return b.ForEach(func(key, value []byte) error {
		if w.left--; w.left < 0 || before != nil && bytes.Compare(before, key) >= 0 {
			return fmt.Errorf("keys of bucket %q are out of order", top)
		}
		before = bytes.Clone(key)
		if value == nil {
			return w.bucket(top, b.Bucket(key))
		}
		if w.look == nil {
			return nil
		}
		return w.look(top, key, value)
	})
}
