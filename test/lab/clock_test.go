package lab

import (
	"bufio"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestClockChild is not a test: it tells its time, for TestClock.
func TestClockChild(t *testing.T) {
	if os.Getenv("LAB_CLOCK_CHILD") == "" {
		t.Skip("runs for TestClock only")
	}
	for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(time.Millisecond) {
		_, err := os.Stdout.WriteString("time " + strconv.FormatInt(time.Now().Unix(), 10) + " " + time.Since(began).String() + "\n")
		if err != nil {
			return
		}
	}
}

func TestClock(t *testing.T) {
	if runtime.GOARCH != "amd64" || os.Geteuid() != 0 {
		t.Skip("needs amd64 and root")
	}
	child := exec.Command("/proc/self/exe", "-test.run", "^TestClockChild$", "-test.v")
	child.Env = append(os.Environ(), "LAB_CLOCK_CHILD=1")
	out, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	t.Cleanup(func() { _ = child.Process.Kill(); _ = child.Wait() })
	lines := bufio.NewScanner(out)
	var last time.Duration
	// next returns what the clock of the child is wrong by.
	next := func() time.Duration {
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) != 3 || fields[0] != "time" {
				continue
			}
			unix, err := strconv.ParseInt(fields[1], 10, 64)
			must(t, err)
			since, err := time.ParseDuration(fields[2])
			must(t, err)
			if since < last || since > last+30*time.Second {
				t.Errorf("what measures durations went from %s to %s", last, since)
			}
			last = since
			return time.Until(time.Unix(unix, 0))
		}
		t.Fatalf("the child ended: %v", lines.Err())
		return 0
	}
	next()
	for _, offset := range []time.Duration{time.Hour, -24 * time.Hour, 0} {
		must(t, setClock(child.Process.Pid, offset))
		Eventually(t, 10*time.Second, offset.String(), func() error {
			if wrong := next(); (wrong - offset).Abs() > 10*time.Second {
				return errWrong(wrong)
			}
			return nil
		})
	}
}

type errWrong time.Duration

func (e errWrong) Error() string { return "wrong by " + time.Duration(e).String() }
