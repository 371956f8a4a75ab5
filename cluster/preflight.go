package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/boltcheck"
)

// Begun reports whether a member has begun under o.Root: then it has a log.
func (o Options) Begun() (bool, error) {
	files, err := os.ReadDir(filepath.Join(o.Root, "member", "wal"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, fault.Wrap(fault.Unavailable, err, "the state in %s cannot be read", o.Root).WithHint("look at the disk: dmesg; mount")
	}
	return slices.ContainsFunc(files, func(f os.DirEntry) bool { return filepath.Ext(f.Name()) == ".wal" }), nil
}

// lost is a fault if a member has begun here and has nothing left. etcd would begin another cluster, which knows of nothing: all
// machines would remove what they run.
func (o Options) lost() error {
	begun, err := o.Begun()
	if err != nil || begun || !o.Existing || len(o.Initial) > 0 {
		return err
	}
	return fault.New(fault.Corrupt, "the state of this server in %s is gone; what runs goes on", o.Root).
		WithHint("is the disk that it is on mounted? stop gantryd and put it back, or: gantry cluster restore BACKUP, here")
}

// preflight looks whether what a member has on disk can be opened: etcd panics on some damage, and on other damage it waits
// for ever without a word.
func preflight(o Options) error {
	member := filepath.Join(o.Root, "member")
	applied := uint64(0)
	err := boltcheck.File(filepath.Join(member, "snap", "db"), func(bucket, key, value []byte) error {
		switch string(bucket) {
		case "meta":
			if string(key) == "consistent_index" && len(value) == 8 {
				applied = binary.BigEndian.Uint64(value)
			}
		case "key":
			return keyValue(key, value)
		}
		return nil
	})
	if err == nil {
		err = logged(filepath.Join(member, "wal"), applied)
	}
	if fault.Is(err, fault.Corrupt) {
		return damaged(o, err)
	}
	return err
}

// keyValue looks at an entry of etcd's table of revisions: its key repeats the revision that is in its value, but for those
// that record a removal, and those by which a restored backup leaves out revisions.
func keyValue(key, value []byte) error {
	kv := &mvccpb.KeyValue{}
	if len(key) < 8 {
		return fmt.Errorf("a revision has %d bytes", len(key))
	}
	if err := proto.Unmarshal(value, kv); err != nil {
		return err
	}
	const revision = 17 // bytes of a revision, before the mark of a removal
	if at := int64(binary.BigEndian.Uint64(key)); len(key) == revision && kv.ModRevision != at && kv.ModRevision != 0 {
		return fmt.Errorf("revision %d is recorded as %d", at, kv.ModRevision)
	}
	return nil
}

// logged looks whether the log reaches what is applied already. One that ends before has lost what it held: etcd takes the
// missing end for a write that a crash has cut, and gives out its numbers again.
func logged(dir string, applied uint64) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.wal")) // sorted, as they were written
	if err != nil || applied == 0 {
		return err
	}
	if len(files) == 0 {
		return fault.New(fault.Corrupt, "the log in %s is gone, while entry %d is applied already", dir, applied)
	}
	var readers []fileutil.FileReader
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return fault.Wrap(fault.Unavailable, err, "cannot read the log of the state")
		}
		defer f.Close()
		readers = append(readers, fileutil.NewFileReader(f))
	}
	if end, whole := lastEntry(wal.NewDecoder(readers...)); whole && end < applied {
		return fault.New(fault.Corrupt, "the log in %s ends at entry %d, while %d is applied already", dir, end, applied)
	}
	return nil
}

// lastEntry is the number of the last entry in a log. It is not known of a log that etcd refuses, and says why.
func lastEntry(d wal.Decoder) (end uint64, whole bool) {
	rec := &walpb.Record{}
	err := d.Decode(rec)
	for ; err == nil; err = d.Decode(rec) {
		switch rec.GetType() {
		case wal.EntryType:
			end = wal.MustUnmarshalEntry(rec.Data).GetIndex() // its sum is right, so it was written by etcd
		case wal.SnapshotType:
			var s walpb.Snapshot
			if proto.Unmarshal(rec.Data, &s) != nil {
				return 0, false
			}
			end = max(end, s.GetIndex())
		case wal.CrcType:
			if crc := d.LastCRC(); crc != 0 && rec.Validate(crc) != nil {
				return 0, false
			}
			d.UpdateCRC(rec.GetCrc())
		}
	}
	return end, errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
