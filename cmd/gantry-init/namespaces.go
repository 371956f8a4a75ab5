package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Verbs of this program that are no container's init.
const (
	namespacesVerb = "namespaces"       // serve: namespaces BASE SIZE
	probeVerb      = "namespaces-probe" // run inside of namespaces, by serve
)

// namespaces is called by gantryd, whose own image is too large to be copied for every user namespace. It reads requests,
// one a line, until its input ends: "net PATH" keeps a new network namespace, which belongs to a new user namespace, at
// PATH; "probe" tries what a container mounts. Each is answered with "ok" or what failed.
func namespaces(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: gantry-init namespaces BASE SIZE")
	}
	var ids syscall.SysProcIDMap
	var err error
	if ids.HostID, err = strconv.Atoi(args[0]); err != nil {
		return err
	}
	if ids.Size, err = strconv.Atoi(args[1]); err != nil {
		return err
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		answer := "ok"
		if err := serve(in.Text(), ids); err != nil {
			answer = strings.ReplaceAll(err.Error(), "\n", " ")
		}
		if _, err := fmt.Println(answer); err != nil {
			return err
		}
	}
	return nil
}

func serve(request string, ids syscall.SysProcIDMap) error {
	verb, path, _ := strings.Cut(request, " ")
	switch verb {
	case "net":
		return keepNetns(path, ids)
	case "probe":
		return probe(ids)
	}
	return fmt.Errorf("unknown request %q", request)
}

// inUserNamespace are the attributes of a process whose root is the first of ids.
func inUserNamespace(ids syscall.SysProcIDMap, flags uintptr) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | flags, Pdeathsig: syscall.SIGKILL,
		UidMappings: []syscall.SysProcIDMap{ids}, GidMappings: []syscall.SysProcIDMap{ids}, GidMappingsEnableSetgroups: true,
	}
}

// keepNetns makes the namespaces with a process that never runs: being traced, it stops before its first instruction.
func keepNetns(path string, ids syscall.SysProcIDMap) error {
	attr := inUserNamespace(ids, syscall.CLONE_NEWNET)
	attr.Ptrace = true
	p, err := os.StartProcess("/proc/self/exe", []string{"gantry-init"}, &os.ProcAttr{Sys: attr})
	if err != nil {
		return err
	}
	err = syscall.Mount(fmt.Sprintf("/proc/%d/ns/net", p.Pid), path, "", syscall.MS_BIND, "")
	_ = p.Kill()
	_, wait := p.Wait()
	return errors.Join(err, wait)
}

func probe(ids syscall.SysProcIDMap) error {
	attr := inUserNamespace(ids, syscall.CLONE_NEWNET|syscall.CLONE_NEWNS|syscall.CLONE_NEWPID|syscall.CLONE_NEWIPC)
	attr.Credential = &syscall.Credential{}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	p, err := os.StartProcess("/proc/self/exe", []string{"gantry-init", probeVerb}, &os.ProcAttr{Files: []*os.File{nil, nil, w}, Sys: attr})
	w.Close()
	if err != nil {
		return err
	}
	said, _ := bufio.NewReader(r).ReadString('\n')
	state, err := p.Wait()
	if err != nil || state.Success() {
		return err
	}
	return errors.New(strings.TrimSpace(said))
}

// probeInside mounts what the kernel gives a user namespace only where nothing of the machine's own is hidden.
func probeInside() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NOEXEC|syscall.MS_NODEV, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	if err := syscall.Mount("sysfs", "/sys", "sysfs", syscall.MS_NOSUID|syscall.MS_NOEXEC|syscall.MS_NODEV|syscall.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount sysfs: %w", err)
	}
	return nil
}
