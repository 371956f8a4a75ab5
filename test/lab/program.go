package lab

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"testing"
)

// Program lets the lab, which is made for tests, run in a program.
type Program struct {
	testing.TB // nil; only the methods below are called
	mu         sync.Mutex
	cleanups   []func()
	failed     bool
}

// Main runs fn as a program: failures are printed and end fn, everything is cleaned up at its end and after an interrupt, and
// the result is the exit code.
func Main(fn func(t testing.TB)) int {
	p := &Program{}
	done := make(chan struct{})
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() { defer close(done); fn(p) }()
	select {
	case <-done:
	case s := <-signals:
		p.Errorf("ended by %s", s)
	}
	p.cleanUp()
	if p.Failed() {
		return 1
	}
	return 0
}

// Helper is part of testing.TB.
func (p *Program) Helper() {}

// Failed is part of testing.TB.
func (p *Program) Failed() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.failed }

// Cleanup is part of testing.TB.
func (p *Program) Cleanup(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cleanups = append(p.cleanups, f)
}

// Log is part of testing.TB.
func (p *Program) Log(args ...any) { fmt.Fprintln(os.Stderr, args...) }

// Logf is part of testing.TB.
func (p *Program) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// Error is part of testing.TB.
func (p *Program) Error(args ...any) { p.fail(); p.Log(args...) }

// Errorf is part of testing.TB.
func (p *Program) Errorf(format string, args ...any) { p.fail(); p.Logf(format, args...) }

// Fatal is part of testing.TB. It ends the goroutine.
func (p *Program) Fatal(args ...any) { p.Error(args...); runtime.Goexit() }

// Fatalf is part of testing.TB. It ends the goroutine.
func (p *Program) Fatalf(format string, args ...any) { p.Errorf(format, args...); runtime.Goexit() }

// Skip is part of testing.TB. A program has nothing to skip: it fails.
func (p *Program) Skip(args ...any) { p.Fatal(args...) }

// Setenv is part of testing.TB. It lasts until the program ends.
func (p *Program) Setenv(key, value string) { must(p, os.Setenv(key, value)) }

// TempDir is part of testing.TB.
func (p *Program) TempDir() string {
	dir, err := os.MkdirTemp("", "glp")
	must(p, err)
	p.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (p *Program) fail() { p.mu.Lock(); defer p.mu.Unlock(); p.failed = true }

func (p *Program) cleanUp() {
	for {
		p.mu.Lock()
		if len(p.cleanups) == 0 {
			p.mu.Unlock()
			return
		}
		last := p.cleanups[len(p.cleanups)-1]
		p.cleanups = p.cleanups[:len(p.cleanups)-1]
		p.mu.Unlock()
		// A goroutine of its own, which a failure may end.
		done := make(chan struct{})
		go func() { defer close(done); last() }()
		<-done
	}
}
