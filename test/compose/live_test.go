package compose_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/test/lab"
)

// live is a command line that runs while the test goes on. What it prints, on a terminal or not, is in one text.
type live struct {
	args []string
	cmd  *exec.Cmd
	in   *os.File // the terminal, else its standard input
	done chan struct{}

	mu   sync.Mutex
	text strings.Builder
}

// begin starts gantry in a folder.
func begin(t *testing.T, n *lab.Node, dir string, args ...string) *live {
	t.Helper()
	l := prepare(t, n, dir, args)
	out, inner, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	l.cmd.Stdin, l.cmd.Stdout, l.cmd.Stderr, l.in = stdin, inner, inner, in
	l.run(t, out, inner, stdin)
	return l
}

// beginOnTerminal starts gantry on a terminal of its own, of that many rows and columns.
func beginOnTerminal(t *testing.T, n *lab.Node, rows, columns uint16, args ...string) *live {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	l := prepare(t, n, "", args)
	l.cmd.Stdin, l.cmd.Stdout, l.cmd.Stderr, l.in = terminal, terminal, terminal, master
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	l.resize(t, rows, columns)
	l.run(t, master, terminal)
	return l
}

func prepare(t *testing.T, n *lab.Node, dir string, args []string) *live {
	t.Helper()
	l := &live{args: args, done: make(chan struct{}), cmd: exec.Command(filepath.Join(lab.Binaries(t), "gantry"), args...)}
	l.cmd.Dir = dir
	l.cmd.Env = append(os.Environ(), "GANTRY_HOST="+n.Host())
	return l
}

// run starts the command, closes what only it has to hold, and reads what it prints to its end.
func (l *live) run(t *testing.T, out *os.File, its ...*os.File) {
	t.Helper()
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, file := range its {
		_ = file.Close()
	}
	go func() {
		defer close(l.done)
		_, _ = io.Copy(l, out) // a terminal that nobody holds any more ends with an error
		_ = l.cmd.Wait()
		_ = out.Close()
	}()
	t.Cleanup(func() {
		_ = l.cmd.Process.Kill()
		<-l.done
		_ = l.in.Close()
	})
}

// Write takes what the command prints.
func (l *live) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *live) said() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await waits until it has printed that.
func (l *live) await(t *testing.T, want string) {
	t.Helper()
	lab.Eventually(t, time.Minute, "gantry "+strings.Join(l.args, " ")+" prints "+want, func() error {
		if said := l.said(); !strings.Contains(said, want) {
			return fmt.Errorf("%q", said)
		}
		return nil
	})
}

// awaitSize asks a shell for the size of its terminal until it is that.
func (l *live) awaitSize(t *testing.T, want string) {
	t.Helper()
	lab.Eventually(t, time.Minute, "the size "+want, func() error {
		l.put(t, "stty size\n")
		if said := l.said(); !strings.Contains(said, want) {
			return fmt.Errorf("%q", said)
		}
		return nil
	})
}

// put types a text.
func (l *live) put(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(l.in, text); err != nil {
		t.Fatal(err)
	}
}

func (l *live) resize(t *testing.T, rows, columns uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(l.in.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
		t.Fatal(err)
	}
}

// ends waits for its end, by itself, and wants that exit code.
func (l *live) ends(t *testing.T, code int) {
	t.Helper()
	select {
	case <-l.done:
	case <-time.After(time.Minute):
		t.Fatalf("gantry %s does not end; it says %q", strings.Join(l.args, " "), l.said())
	}
	if got := l.cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("gantry %s: exit %d, want %d; it says %q", strings.Join(l.args, " "), got, code, l.said())
	}
}

// interrupt is Ctrl-C where there is no terminal.
func (l *live) interrupt(t *testing.T) {
	t.Helper()
	if err := l.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
}
