package userns

import (
	"bufio"
	"encoding/json"
	"errors"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
)

// The ranges that are chosen from: above those of systemd-nspawn and of useradd, below those of systemd's foreign IDs and of
// groups that may ping (2147483647). They begin at multiples of Size.
const (
	firstBase = 0x70000000
	lastBase  = 0x7ffc0000
)

const rangeFile = "userns.json"

// record is what is kept of the range: the files of containers have owners in it.
type record struct {
	Base uint32 `json:"base"`
}

const putBack = "containers' files belong to the range; put back what was there, such as {\"base\":%d}"

// chooseRange returns the range that was chosen before, or chooses one that nobody on this machine uses.
func chooseRange(o Options) (uint32, error) {
	name := filepath.Join(o.Root, rangeFile)
	taken, err := takenRanges("/etc")
	if err != nil {
		return 0, err
	}
	var r record
	b, err := atomicfile.Read(name)
	switch {
	case fault.Is(err, fault.Corrupt):
		return 0, fault.Wrap(fault.Corrupt, err, "%s is damaged", name).WithHint(putBack, firstBase)
	case err == nil:
		if err := json.Unmarshal(b, &r); err != nil || !valid(r.Base) {
			return 0, fault.New(fault.Corrupt, "%s holds no range of user IDs", name).
				WithHint(putBack, firstBase)
		}
		if by := taken.overlaps(r.Base); by != "" {
			o.Logger.Warn("the user IDs of containers are also given to others of this machine", "base", r.Base, "in", by)
		}
		return r.Base, nil
	case !errors.Is(err, fs.ErrNotExist):
		return 0, fault.Wrap(fault.Unavailable, err, "range of user IDs")
	}
	if r.Base, err = taken.free(o.Root); err != nil {
		return 0, err
	}
	if b, err = json.Marshal(r); err != nil {
		return 0, err
	}
	if err := atomicfile.Write(name, b, 0o600); err != nil {
		return 0, fault.Wrap(fault.Unavailable, err, "range of user IDs")
	}
	return r.Base, nil
}

func valid(base uint32) bool { return base >= firstBase && base <= lastBase && base%Size == 0 }

// span is a range of IDs that something on the machine uses.
type span struct {
	first, count uint64
	file         string
}

type spans []span

// overlaps names the file that gives away an ID of the range, "" if none does.
func (s spans) overlaps(base uint32) string {
	for _, t := range s {
		if t.first < uint64(base)+Size && uint64(base) < t.first+t.count {
			return t.file
		}
	}
	return ""
}

// free chooses a range by the daemon's directory, so that two daemons seldom choose the same.
func (s spans) free(root string) (uint32, error) {
	const slots = (lastBase-firstBase)/Size + 1
	h := fnv.New32a()
	_, _ = h.Write([]byte(root))
	start := h.Sum32() % slots
	for i := range uint32(slots) {
		if base := firstBase + (start+i)%slots*Size; s.overlaps(base) == "" {
			return base, nil
		}
	}
	return 0, fault.New(fault.Exhausted, "every range of user IDs from %d to %d is taken", firstBase, lastBase+Size-1).
		WithHint("look into /etc/subuid and /etc/subgid")
}

// takenRanges reads who has which IDs: users, groups, and the ranges given to users.
func takenRanges(etc string) (spans, error) {
	var all spans
	for name, counted := range map[string]bool{"passwd": false, "group": false, "subuid": true, "subgid": true} {
		list, err := readSpans(filepath.Join(etc, name), counted)
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "user IDs of this machine")
		}
		all = append(all, list...)
	}
	return all, nil
}

// readSpans reads "name:first:count" lines, or "name:x:id:…" lines.
func readSpans(name string, counted bool) (spans, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list spans
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) < 3 {
			continue
		}
		t := span{count: 1, file: name}
		if counted {
			t.count, _ = strconv.ParseUint(fields[2], 10, 32)
			fields[2] = fields[1]
		}
		if t.first, err = strconv.ParseUint(fields[2], 10, 32); err == nil {
			list = append(list, t)
		}
	}
	return list, lines.Err()
}
