// Command talk is the two ends of a connection, for containers of tests that look at every single one.
//
//	talk serve ADDRESS FILE          answers each line with its host name and the address of who asks. Told to end, it takes no
//	                                 more connections, waits for those it has, and ends
//	talk ask FILE ADDRESS            makes a short connection after the other
//	talk load FILE ADDRESS RATE      makes that many short connections a second, whether those before have ended or not; each is
//	                                 given up after a second
//	talk hold FILE ADDRESS           keeps one connection busy, and makes another when it breaks
//	talk names FILE NAME             looks a name up again and again
//	talk now                         prints the time
//
// What happens goes to FILE, a line each: when it was, in nanoseconds since 1970, what, and more about it. Package lab reads it.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	pause    = 10 * time.Millisecond // between two connections or questions
	patience = 10 * time.Second
	hurry    = time.Second // patience of load
)

func main() {
	if err := command(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "talk:", err)
		os.Exit(1)
	}
}

func command(args []string) error {
	if len(args) == 1 && args[0] == "now" {
		_, err := fmt.Println(time.Now().UnixNano())
		return err
	}
	want := 3
	if len(args) > 0 && args[0] == "load" {
		want = 4
	}
	if len(args) != want {
		return errors.New("usage: talk serve ADDRESS FILE | talk ask|hold FILE ADDRESS | talk load FILE ADDRESS RATE | talk names FILE NAME | talk now")
	}
	if args[0] == "serve" {
		b, err := open(args[2])
		if err != nil {
			return err
		}
		return serve(args[1], b)
	}
	b, err := open(args[1])
	if err != nil {
		return err
	}
	switch args[0] {
	case "ask":
		return ask(b, args[2])
	case "load":
		return load(b, args[2], args[3])
	case "hold":
		return hold(b, args[2])
	case "names":
		return names(b, args[2])
	}
	return fmt.Errorf("%q is nothing that talk does", args[0])
}

// book is where it is written what happens.
type book struct {
	mu   sync.Mutex
	file *os.File
}

func open(path string) (*book, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	return &book{file: f}, err
}

func (b *book) note(at time.Time, what string, more ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := fmt.Fprintln(b.file, append([]any{at.UnixNano(), what}, more...)...); err != nil {
		panic(err) // a test that misses a line believes that nothing happened
	}
}

func serve(address string, b *book) error {
	told, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	context.AfterFunc(told, func() {
		b.note(time.Now(), "told", name)
		_ = listener.Close()
	})
	b.note(time.Now(), "serves", name)
	var open sync.WaitGroup
	for {
		conn, err := listener.Accept()
		if err != nil {
			break
		}
		open.Go(func() { answer(conn, name) })
	}
	open.Wait()
	b.note(time.Now(), "ends", name)
	return nil
}

func answer(conn net.Conn, name string) {
	defer conn.Close()
	peer, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
	for in := bufio.NewScanner(conn); in.Scan(); {
		if _, err := fmt.Fprintln(conn, name, peer); err != nil {
			return
		}
	}
}

func dial(address string) (net.Conn, time.Time, error) {
	began := time.Now()
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return nil, began, err
	}
	return conn, time.Now(), conn.SetDeadline(time.Now().Add(patience))
}

// question asks once and returns the answer.
func question(conn net.Conn, in *bufio.Reader, until time.Time) (string, error) {
	if err := conn.SetDeadline(until); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(conn, "who?"); err != nil {
		return "", err
	}
	text, err := in.ReadString('\n')
	return strings.TrimSpace(text), err
}

func ask(b *book, address string) error {
	for ; ; time.Sleep(pause) {
		conn, at, err := dial(address)
		if err != nil {
			b.note(at, "failed", err)
			continue
		}
		text, err := question(conn, bufio.NewReader(conn), time.Now().Add(patience))
		_ = conn.Close()
		if err != nil {
			b.note(at, "failed", conn.LocalAddr(), "after it was connected:", err)
			continue
		}
		b.note(at, "answer", text)
	}
}

// load notes failures when they are known, and how long they took.
func load(b *book, address, rate string) error {
	each, err := strconv.Atoi(rate)
	if err != nil || each < 1 {
		return fmt.Errorf("%q is no rate", rate)
	}
	for range time.Tick(time.Second / time.Duration(each)) {
		go func() {
			began := time.Now()
			text, err := once(address, began.Add(hurry))
			if err != nil {
				b.note(time.Now(), "failed", "after", time.Since(began).Round(time.Millisecond), err)
				return
			}
			b.note(began, "answer", text)
		}()
	}
	return nil
}

// once asks once over a connection of its own.
func once(address string, until time.Time) (string, error) {
	dialer := net.Dialer{Deadline: until}
	conn, err := dialer.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return question(conn, bufio.NewReader(conn), until)
}

func hold(b *book, address string) error {
	for ; ; time.Sleep(pause) {
		conn, at, err := dial(address)
		if err != nil {
			b.note(at, "failed", err)
			continue
		}
		in, last := bufio.NewReader(conn), ""
		for ; ; time.Sleep(50 * time.Millisecond) {
			text, err := question(conn, in, time.Now().Add(patience))
			if err != nil {
				b.note(time.Now(), "broken", last, err)
				break
			}
			if last == "" {
				b.note(at, "held", text)
			}
			last = text
		}
		_ = conn.Close()
	}
}

func names(b *book, name string) error {
	for ; ; time.Sleep(pause) {
		at := time.Now()
		found, err := net.DefaultResolver.LookupHost(context.Background(), name)
		if err != nil {
			b.note(at, "unknown", err)
			continue
		}
		slices.Sort(found)
		b.note(at, "names", strings.Join(found, " "))
	}
}
