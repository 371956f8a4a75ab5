package lab

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// SetClock makes the daemon see a wall clock that is wrong by offset, to the second, from now on and from its next starts on;
// 0 puts it right. What measures durations stays right, as on a machine whose clock is set. Containers, and the other programs
// of the machine, keep the host's time: the kernel has no wall clock of a namespace's own.
func (n *Node) SetClock(t testing.TB, offset time.Duration) {
	t.Helper()
	n.clock = offset
	if n.daemon != nil {
		must(t, setClock(n.DaemonPID(t), offset))
	}
}

// skewClock gives a daemon that has just started the wrong clock that was asked for.
func (n *Node) skewClock() error {
	if n.clock == 0 {
		return nil
	}
	pid, err := onlyChild(n.daemon.Process.Pid)
	if err != nil {
		return err
	}
	return setClock(pid, n.clock)
}

// setClock replaces the function of the process's vDSO that tells the time, where Go programs ask for it.
func setClock(pid int, offset time.Duration) error {
	if runtime.GOARCH != "amd64" {
		return errors.New("lab: a skewed clock needs amd64")
	}
	begin, end, err := vdso(pid)
	if err != nil {
		return err
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	code := clockCode(int64(offset / time.Second))
	entry, err := clockEntry(mem, begin, end, len(code))
	if err != nil {
		return err
	}
	if err := stopOutside(pid, begin, end); err != nil {
		return err
	}
	_, err = mem.WriteAt(code, entry)
	return errors.Join(err, syscall.Kill(pid, syscall.SIGCONT))
}

// clockCode is clock_gettime(edi, rsi) that asks the kernel and adds seconds to the wall clock only.
func clockCode(seconds int64) []byte {
	code := []byte{
		0xb8, 228, 0, 0, 0, // mov eax, SYS_clock_gettime
		0x0f, 0x05, // syscall
		0x85, 0xc0, 0x75, 17, // test eax, eax; jnz ret
		0x85, 0xff, 0x75, 13, // test edi, edi; jnz ret: not CLOCK_REALTIME
		0x48, 0xb9, // mov rcx, seconds
	}
	code = binary.LittleEndian.AppendUint64(code, uint64(seconds))
	return append(code, 0x48, 0x01, 0x0e, 0xc3) // add [rsi], rcx; ret
}

// vdso returns where the process has the kernel's own library.
func vdso(pid int) (begin, end int64, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	for _, line := range strings.Split(string(maps), "\n") {
		if strings.HasSuffix(line, "[vdso]") {
			_, err := fmt.Sscanf(line, "%x-%x", &begin, &end)
			return begin, end, err
		}
	}
	return 0, 0, fmt.Errorf("lab: process %d has no vDSO", pid)
}

// clockEntry finds __vdso_clock_gettime, which must have room for the new code.
func clockEntry(mem *os.File, begin, end int64, room int) (int64, error) {
	image := make([]byte, end-begin)
	if _, err := mem.ReadAt(image, begin); err != nil {
		return 0, err
	}
	file, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return 0, err
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		return 0, err
	}
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" && s.Size >= uint64(room) {
			return begin + int64(s.Value), nil
		}
	}
	return 0, errors.New("lab: the vDSO has no clock_gettime with room for another")
}

// stopOutside stops the process at a moment when none of its threads is in the given code.
func stopOutside(pid int, begin, end int64) error {
	for range 100 {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			return err
		}
		for range 100 {
			if state, err := threadsIn(pid, begin, end); err != nil || state == outsideOf {
				return err
			} else if state == insideOf {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("lab: process %d is always looking at the clock", pid)
}

type whereabouts int

const (
	outsideOf whereabouts = iota
	insideOf
	stillRunning
)

// threadsIn reads where each thread has stopped; the last field is its program counter.
func threadsIn(pid int, begin, end int64) (whereabouts, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	if err != nil || len(tasks) == 0 {
		return 0, fmt.Errorf("lab: process %d is gone: %v", pid, err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		fields := strings.Fields(string(text))
		if len(fields) < 3 {
			return stillRunning, nil
		}
		at, err := strconv.ParseInt(strings.TrimPrefix(fields[len(fields)-1], "0x"), 16, 64)
		if err != nil {
			return 0, err
		}
		if at >= begin && at < end {
			return insideOf, nil
		}
	}
	return outsideOf, nil
}
