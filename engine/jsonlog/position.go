package jsonlog

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// position says how far a log has come: the spools' offsets, and which json file was how long at the time.
type position struct {
	offsets [2]int64
	inode   uint64
	size    int64
}

const positionSize = 36

func (p position) encode() []byte {
	b := make([]byte, 0, positionSize)
	b = binary.LittleEndian.AppendUint64(b, uint64(p.offsets[0]))
	b = binary.LittleEndian.AppendUint64(b, uint64(p.offsets[1]))
	b = binary.LittleEndian.AppendUint64(b, p.inode)
	b = binary.LittleEndian.AppendUint64(b, uint64(p.size))
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

func decodePosition(b []byte) (position, bool) {
	if len(b) != positionSize || crc32.ChecksumIEEE(b[:positionSize-4]) != binary.LittleEndian.Uint32(b[positionSize-4:]) {
		return position{}, false
	}
	return position{
		offsets: [2]int64{int64(binary.LittleEndian.Uint64(b)), int64(binary.LittleEndian.Uint64(b[8:]))},
		inode:   binary.LittleEndian.Uint64(b[16:]),
		size:    int64(binary.LittleEndian.Uint64(b[24:])),
	}, true
}

// readPosition reads the recorded position. There is none in a new log, nor in one whose record was torn by a power loss.
func readPosition(f *os.File) (position, bool) {
	b := make([]byte, positionSize)
	if _, err := f.ReadAt(b, 0); err != nil {
		return position{}, false
	}
	return decodePosition(b)
}

// record writes the position with one write, which a killed process does or does not, but never in part.
func (l *Log) record() error {
	p := position{inode: inode(l.json), size: l.size}
	for i, s := range l.spools {
		p.offsets[i] = s.offset
	}
	_, err := l.pos.WriteAt(p.encode(), 0)
	return err
}

// free gives the blocks of a taken-over part of a spool back to the file system. The spool keeps its length, so the
// shim's appends go on undisturbed. A file system that cannot do it keeps the blocks until the next run.
func free(f *os.File, from, to int64) {
	const block = 4096
	from, to = from/block*block, to/block*block
	if to > from {
		_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from)
	}
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
