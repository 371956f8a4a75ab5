// Package hostinit installs and starts gantryd on this machine: under systemd where it runs, else in the background.
//
// Run does it all and may be called any number of times: what is in place stays. It must run as root. It talks to the
// service manager and the user database through their own programs, and not to the daemon; the caller waits for that.
package hostinit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"

	"github.com/gantryd/gantry/fault"
)

// defaultGroup owns the daemon's socket beside root, as gantryd itself has it.
const defaultGroup = "gantry"

const unitName = "gantryd.service"

// Options of an installation. The zero value is the daemon's defaults.
type Options struct {
	// Root, Run and Listen as gantryd takes them; empty for its defaults.
	Root, Run, Listen string
	// Group owns the socket beside root; it is made if it is not there. Empty for the daemon's default.
	Group string
	// Extra is further arguments of gantryd.
	Extra []string
	// Daemon is the path of gantryd; empty to look beside this program and in PATH.
	Daemon string
	// UnitDir and Systemd are where units go and what exists while systemd runs; empty for the usual places.
	UnitDir, Systemd string
	// Say tells of each step.
	Say func(format string, args ...any)

	joins bool // see Join
}

func (o *Options) defaults() {
	if o.Root == "" {
		o.Root = "/var/lib/gantry"
	}
	if o.Run == "" {
		o.Run = "/run/gantry"
	}
	if o.Listen == "" {
		o.Listen = "unix://" + filepath.Join(o.Run, "gantry.sock")
	}
	if o.Group == "" {
		o.Group = defaultGroup
	}
	if o.UnitDir == "" {
		o.UnitDir = "/etc/systemd/system"
	}
	if o.Systemd == "" {
		o.Systemd = "/run/systemd/system"
	}
	if o.Say == nil {
		o.Say = func(string, ...any) {}
	}
}

func (o *Options) args() []string {
	args := []string{"--root", o.Root, "--run", o.Run, "--listen", o.Listen}
	if o.Group != defaultGroup {
		args = append(args, "--group", o.Group)
	}
	return append(args, o.Extra...)
}

// Result says where the daemon will answer and where it says what it does.
type Result struct {
	Listen, Log string
	Systemd     bool
	// Exited has an error when the daemon has ended and nobody starts it again; Failure says why.
	Exited <-chan error
	begun  int64 // where in the log this daemon begins
}

// Run installs and starts the daemon.
func Run(ctx context.Context, o Options) (*Result, error) {
	o.defaults()
	if os.Geteuid() != 0 {
		return nil, fault.New(fault.Denied, "init needs root").WithHint("sudo gantry init")
	}
	daemon, err := findDaemon(o.Daemon)
	if err != nil {
		return nil, err
	}
	if err := makeGroup(ctx, o); err != nil {
		return nil, err
	}
	if _, err := os.Stat(o.Systemd); err == nil {
		if err := underSystemd(ctx, o, daemon); err != nil {
			return nil, err
		}
		return &Result{Listen: o.Listen, Log: "journalctl -u gantryd", Systemd: true, Exited: watchUnit(ctx)}, nil
	}
	return inBackground(o, daemon)
}

// findDaemon looks where the programs are installed together.
func findDaemon(named string) (string, error) {
	var places []string
	if named != "" {
		places = []string{named}
	} else {
		if self, err := os.Executable(); err == nil {
			if real, err := filepath.EvalSymlinks(self); err == nil {
				self = real
			}
			places = append(places, filepath.Join(filepath.Dir(self), "gantryd"))
		}
		if path, err := exec.LookPath("gantryd"); err == nil {
			places = append(places, path)
		}
	}
	for _, p := range places {
		if abs, err := filepath.Abs(p); err == nil {
			if info, err := os.Stat(abs); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return abs, nil
			}
		}
	}
	return "", fault.New(fault.NotFound, "the program gantryd is not there").
		WithHint("put it beside gantry or into PATH, or name it with --daemon")
}

func makeGroup(ctx context.Context, o Options) error {
	if _, err := user.LookupGroup(o.Group); err == nil {
		return nil
	}
	if err := run(ctx, "groupadd", "--system", o.Group); err != nil {
		// BusyBox systems have the other program.
		if berr := run(ctx, "addgroup", "-S", o.Group); berr != nil {
			return fault.Wrap(fault.Internal, err, "group %s cannot be made", o.Group)
		}
	}
	o.Say("made group %s: its members may use gantry without sudo", o.Group)
	return nil
}

// Unit gives the text of the systemd unit.
func Unit(daemon string, o Options) string {
	o.defaults()
	args := append([]string{daemon}, o.args()...)
	for i, a := range args {
		args[i] = unitQuote(a)
	}
	// Containers outlive the daemon, so only its own process may be killed. What is raised or lowered here
	// is inherited by containers, so it holds limits that must not bind them and nothing that would favour them. When the
	// machine goes down the daemon stops the containers, which takes their grace periods, and before what they need is gone:
	// file systems and the network. It is started again however often it ends, as it may while an address or a disk is missing
	// (systemd gives up after five starts in ten seconds), unless it says by its exit status that no start can help.
	return `[Unit]
Description=Gantry: runs services from Compose files
After=network-online.target local-fs.target remote-fs.target nftables.service
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Type=simple
ExecStart=` + strings.Join(args, " ") + `
Restart=always
RestartSec=1
RestartPreventExitStatus=78
KillMode=process
TimeoutStopSec=3min
OOMPolicy=continue
Delegate=yes
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity

[Install]
WantedBy=multi-user.target
`
}

// unitQuote protects an argument from systemd's own reading of it.
func unitQuote(s string) string {
	s = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$", "\n", `\n`).Replace(s)
	if strings.ContainsAny(s, " \t;'\"\\") {
		return `"` + s + `"`
	}
	return s
}

func underSystemd(ctx context.Context, o Options, daemon string) error {
	path := filepath.Join(o.UnitDir, unitName)
	unit := []byte(Unit(daemon, o))
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.Denied, err, "the unit cannot be read")
	}
	changed := !bytes.Equal(old, unit)
	if changed {
		if err := os.WriteFile(path, unit, 0o644); err != nil {
			return fault.Wrap(fault.Denied, err, "the unit cannot be written")
		}
		if err := run(ctx, "systemctl", "daemon-reload"); err != nil {
			return err
		}
		o.Say("wrote %s", path)
	}
	if err := run(ctx, "systemctl", "enable", "gantryd"); err != nil {
		return err
	}
	verb := "start"
	if o.joins || changed && len(old) > 0 {
		verb = "restart" // one that runs has read another token, or other arguments; its containers stay
	}
	if err := run(ctx, "systemctl", verb, "gantryd"); err != nil {
		return fault.Wrap(fault.KindOf(err), err, "gantryd cannot be started").WithHint("journalctl -u gantryd")
	}
	return nil
}

// inBackground starts the daemon apart from this terminal and session.
func inBackground(o Options, daemon string) (*Result, error) {
	if err := os.MkdirAll(o.Root, 0o711); err != nil {
		return nil, fault.Wrap(fault.Denied, err, "the daemon's directory cannot be made")
	}
	log := filepath.Join(o.Root, "gantryd.log")
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fault.Wrap(fault.Denied, err, "the daemon's log cannot be opened")
	}
	defer out.Close()
	begun, err := out.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the daemon's log cannot be read")
	}
	cmd := exec.Command(daemon, o.args()...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, "/"
	detach(cmd)
	if err := cmd.Start(); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "gantryd cannot be started")
	}
	o.Say("started %s in the background, process %d; it logs to %s", daemon, cmd.Process.Pid, log)
	exited := make(chan error, 1)
	// The daemon outlives this program, so this wait normally ends with it and not before.
	go func() { exited <- cmd.Wait() }()
	return &Result{Listen: o.Listen, Log: log, Exited: exited, begun: begun}, nil
}

func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fault.Wrap(fault.Internal, err, "%s: %s", fmt.Sprintf("%s %s", name, strings.Join(args, " ")), strings.TrimSpace(string(out)))
	}
	return nil
}
