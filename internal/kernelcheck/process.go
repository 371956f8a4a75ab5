package kernelcheck

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func unshare(flags int) func(string) (string, error) {
	return func(string) (string, error) { return "", unix.Unshare(flags) }
}

// The range that a user namespace of the probe maps root to.
const (
	mappedID  = 100000
	mappedLen = 65536
)

// withUserNamespace gives do a user namespace. A process holds it that is traced and so never runs.
func withUserNamespace(do func(ns *os.File) error) error {
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: mappedID, Size: mappedLen}}
	p, err := os.StartProcess("/proc/self/exe", []string{"kernelcheck"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, Ptrace: true, Pdeathsig: syscall.SIGKILL,
	}})
	if err != nil {
		return err
	}
	defer func() {
		_ = p.Kill()
		_, _ = p.Wait()
	}()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", p.Pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	return do(ns)
}

func userNamespaces(string) (string, error) {
	return "", withUserNamespace(func(*os.File) error { return nil })
}

const filteredErrno = unix.EXFULL // one that the call below cannot give by itself

// seccomp filters one system call on this thread and makes it.
func seccomp(string) (string, error) {
	const (
		loadWord  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jumpEqual = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret       = unix.BPF_RET | unix.BPF_K
		query     = 0xffffffff // personality(0xffffffff) only asks
	)
	filter := []unix.SockFilter{
		{Code: loadWord, K: 0}, // seccomp_data.nr
		{Code: jumpEqual, K: unix.SYS_PERSONALITY, Jt: 0, Jf: 1},
		{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(filteredErrno)},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return "", err
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return "", errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_PERSONALITY, query, 0, 0); errno != filteredErrno {
		return "", fmt.Errorf("a filter was taken and has no effect (%w)", errno)
	}
	return "", nil
}
