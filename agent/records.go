package agent

import (
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/proto"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
)

// records are the files, one per instance, that let a node go on without a server.
type records struct{ dir string }

func openRecords(root string) (*records, error) {
	dir := filepath.Join(root, "instances")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot make %s for the records of instances", dir)
	}
	return &records{dir: dir}, nil
}

const recordSuffix = ".record"

func (r *records) path(id string) string { return filepath.Join(r.dir, id+recordSuffix) }

// load reads all records. A damaged one is an error that names the file: guessing could start a container twice.
func (r *records) load() ([]*gantryv1.InstanceRecord, error) {
	if err := atomicfile.Tidy(r.dir); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot remove half written records of instances")
	}
	files, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read the records of instances")
	}
	var out []*gantryv1.InstanceRecord
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), recordSuffix) {
			continue
		}
		rec, err := r.read(filepath.Join(r.dir, f.Name()))
		if err != nil {
			return nil, err
		}
		out = append(out, rec)
	}
	return out, nil
}

func (r *records) read(path string) (*gantryv1.InstanceRecord, error) {
	data, err := atomicfile.Read(path)
	if err != nil && !fault.Is(err, fault.Corrupt) {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read the record %s", path)
	}
	rec := &gantryv1.InstanceRecord{}
	if err == nil {
		err = proto.Unmarshal(data, rec)
	}
	if err != nil || rec.GetAssignment().GetInstance().GetMeta().GetKey()+recordSuffix != filepath.Base(path) {
		return nil, fault.Wrap(fault.Corrupt, err, "the record %s is damaged", path).
			WithHint("remove the file: the server sends the instance again, and its container is made anew")
	}
	return rec, nil
}

// save writes a record, which must carry no secrets.
func (r *records) save(rec *gantryv1.InstanceRecord) error {
	data, err := proto.Marshal(rec)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "cannot encode the record of an instance")
	}
	id := rec.Assignment.Instance.Meta.Key
	if err := atomicfile.Write(r.path(id), data, 0o600); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot write the record of instance %s", id)
	}
	return nil
}

func (r *records) remove(id string) error {
	if err := os.Remove(r.path(id)); err != nil && !os.IsNotExist(err) {
		return fault.Wrap(fault.Unavailable, err, "cannot remove the record of instance %s", id)
	}
	return nil
}
