// Package groupmove makes the next move of a process into a control group of version 1 quick.
//
// The kernel lets forks and exits pass freely until somebody moves a process between groups; the first who does waits for
// an RCU grace period, 5 to 20 ms, and a start of a container waits with it. Whoever comes within about 10 ms of another
// move finds the way prepared. So Open, and Hold from when a container is about to be made until its process is in its
// groups: the waiting is then done beside other work. Nothing moves: the caller's own process is written into the group
// that it is in. Hosts with the unified hierarchy have no need of it, runc's processes are born in their groups there.
package groupmove

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// every is how often the way is prepared anew; it stays prepared for a grace period, which is longer.
const every = 7 * time.Millisecond

// Mover prepares moves for any number of callers at once. The zero value does nothing.
type Mover struct {
	root, controller string

	mu      sync.Mutex
	holders int
	running bool
}

// Open returns a Mover on the hierarchy of a controller below root, such as "freezer" in /sys/fs/cgroup.
func Open(root, controller string) *Mover { return &Mover{root: root, controller: controller} }

// Hold keeps moves quick until release is called, which may be done more than once. It does not wait.
func (m *Mover) Hold() (release func()) {
	if m.root == "" {
		return func() {}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.holders++
	if !m.running {
		m.running = true
		go m.run() // ends with the last holder
	}
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.holders--
	})
}

// run prepares until nobody holds any more, or it cannot: then moves are as slow as they are.
func (m *Mover) run() {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for err := m.Prepare(); m.wanted(err); err = m.Prepare() {
		<-tick.C
	}
}

// wanted says whether to go on after a try that ended with err.
func (m *Mover) wanted(err error) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running = err == nil && m.holders > 0
	return m.running
}

// Prepare does what a move does, without moving anything: it returns when the kernel lets moves pass.
func (m *Mover) Prepare() error {
	group, err := ownGroup(m.controller)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(m.root, m.controller, group, "cgroup.procs"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strconv.Itoa(os.Getpid()))
	return errors.Join(err, f.Close())
}

// ownGroup is the group of this process in a controller's hierarchy.
func ownGroup(controller string) (string, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		_, rest, _ := strings.Cut(lines.Text(), ":")
		if controllers, group, _ := strings.Cut(rest, ":"); controllers == controller {
			return group, nil
		}
	}
	return "", os.ErrNotExist
}
