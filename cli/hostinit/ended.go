package hostinit

import (
	"cmp"
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/gantryd/gantry/fault"
)

const (
	unitPoll = 250 * time.Millisecond
	// patience is how long a program of the service manager may take to say what it knows.
	patience = 10 * time.Second
	maxWords = 16 << 10 // bytes of the log that are read
	maxLines = 10       // of them in a message
)

// Hint names the command that shows what the daemon says.
func (r *Result) Hint() string {
	if r.Systemd {
		return r.Log
	}
	return "tail " + r.Log
}

// Failure is why the daemon has ended, in its own words and with its own hint.
func (r *Result) Failure(ctx context.Context) error {
	said := r.said(ctx)
	message, hint := verdict(said)
	if message == "" {
		return fault.New(fault.Unavailable, "gantryd ended at once%s", lastLines(said)).WithHint("%s", r.Hint())
	}
	return fault.New(fault.Unavailable, "gantryd ended: %s", message).WithHint("%s", cmp.Or(hint, r.Hint()))
}

// LastWords is the end of what the daemon has said, for a message that it follows; empty if it has said nothing.
func (r *Result) LastWords(ctx context.Context) string { return lastLines(r.said(ctx)) }

// verdict is the error that gantryd ends with, and its hint; see its main function.
func verdict(said string) (message, hint string) {
	const mark = "\ngantryd: "
	_, message, found := cutLast("\n"+said, mark)
	if !found {
		return "", ""
	}
	message, hint, _ = strings.Cut(message, "\nhint: ")
	return strings.TrimSpace(message), strings.TrimSpace(hint)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func lastLines(said string) string {
	if said == "" {
		return ""
	}
	lines := strings.Split(said, "\n")
	return "; its last words:\n" + strings.Join(lines[max(0, len(lines)-maxLines):], "\n")
}

// said is the end of what the daemon has said since it was started.
func (r *Result) said(ctx context.Context) string {
	if r.Systemd {
		return inJournal(ctx)
	}
	f, err := os.Open(r.Log)
	if err != nil {
		return ""
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	text := make([]byte, min(size-r.begun, maxWords))
	n, _ := f.ReadAt(text, size-int64(len(text)))
	return strings.TrimSpace(string(text[:n]))
}

// inJournal is the end of what the unit's last process has said.
func inJournal(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	_ = run(ctx, "journalctl", "--sync") // what is not there yet is missing below
	which := "_SYSTEMD_UNIT=" + unitName
	if id, err := exec.CommandContext(ctx, "systemctl", "show", "--property=InvocationID", "--value", unitName).Output(); err == nil && len(id) > 1 {
		which = "_SYSTEMD_INVOCATION_ID=" + strings.TrimSpace(string(id))
	}
	text, err := exec.CommandContext(ctx, "journalctl", "--no-pager", "--output=cat", "--lines=50", which).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// watchUnit tells when the unit has ended and systemd will not start it again. It looks until ctx ends.
func watchUnit(ctx context.Context) <-chan error {
	exited := make(chan error, 1)
	go func() {
		for {
			if run(ctx, "systemctl", "is-failed", "--quiet", unitName) == nil {
				exited <- fault.New(fault.Unavailable, "%s has failed", unitName)
				return
			}
			select {
			case <-time.After(unitPoll):
			case <-ctx.Done():
				return
			}
		}
	}()
	return exited
}
