package discovery

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	upstreamTimeout = 2 * time.Second
	upstreamRounds  = 2
	upstreamPending = 512 // questions asked upstream at a time; more are refused rather than kept
	resolvConfAge   = 5 * time.Second
)

// forwarder asks other name servers, normally the host's.
type forwarder struct {
	log   *slog.Logger
	fixed []string
	conf  string
	own   map[string]bool
	jobs  chan func(context.Context)

	mu     sync.Mutex
	read   time.Time
	latest []string
}

func newForwarder(o Options) *forwarder {
	f := &forwarder{log: o.Logger, conf: o.ResolvConf, own: map[string]bool{}, jobs: make(chan func(context.Context), upstreamPending)}
	if f.conf == "" {
		f.conf = "/etc/resolv.conf"
	}
	for _, a := range o.Listen {
		f.own[net.JoinHostPort(a.String(), strconv.Itoa(int(o.Port)))] = true
	}
	if o.Upstreams != nil {
		f.fixed = f.addresses(o.Upstreams)
	}
	return f
}

// addresses completes name servers with their port and leaves out ourselves, which would be asked forever.
func (f *forwarder) addresses(list []string) []string {
	out := []string{}
	for _, u := range list {
		if _, _, err := net.SplitHostPort(u); err != nil {
			u = net.JoinHostPort(u, "53")
		}
		if !f.own[u] {
			out = append(out, u)
		}
	}
	return out
}

// upstreams are the name servers of the moment: the host's may change while we run.
func (f *forwarder) upstreams() []string {
	if f.fixed != nil {
		return f.fixed
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.read) < resolvConfAge {
		return f.latest
	}
	f.read = time.Now()
	b, err := os.ReadFile(f.conf)
	if err != nil {
		f.log.Warn("the host's name servers cannot be read", "file", f.conf, "err", err)
		return f.latest
	}
	f.latest = f.addresses(nameservers(b))
	return f.latest
}

func nameservers(conf []byte) []string {
	var out []string
	for line := range strings.Lines(string(conf)) {
		if field := strings.Fields(line); len(field) > 1 && field[0] == "nameserver" {
			out = append(out, field[1])
		}
	}
	return out
}

// submit queues a job for run and reports whether there was room.
func (f *forwarder) submit(job func(context.Context)) bool {
	select {
	case f.jobs <- job:
		return true
	default:
		return false
	}
}

func (f *forwarder) run(ctx context.Context) error {
	var g errgroup.Group
	g.SetLimit(upstreamPending)
	for {
		select {
		case <-ctx.Done():
			return g.Wait()
		case job := <-f.jobs:
			g.Go(func() error { job(ctx); return nil })
		}
	}
}

// exchange asks each name server in turn and returns the first answer, or a failure.
func (f *forwarder) exchange(ctx context.Context, network string, query []byte, servers []string) []byte {
	for range upstreamRounds {
		for _, u := range servers {
			answer, err := f.ask(ctx, network, u, query)
			if err == nil {
				return answer
			}
			if ctx.Err() != nil {
				return failure(query, rcodeServFail)
			}
			f.log.Debug("a name server does not answer", "server", u, "err", err)
		}
	}
	return failure(query, rcodeServFail)
}

// ask puts the question to one name server, from a port and with a number that outsiders cannot guess.
func (f *forwarder) ask(ctx context.Context, network, server string, query []byte) ([]byte, error) {
	d := net.Dialer{Timeout: upstreamTimeout}
	c, err := d.DialContext(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	_ = c.SetDeadline(time.Now().Add(upstreamTimeout))
	q := append([]byte(nil), query...)
	rand.Read(q[:2])
	if network == "tcp" {
		err = writeMessage(c, q)
	} else {
		_, err = c.Write(q)
	}
	for err == nil {
		var answer []byte
		if answer, err = receive(c, network); err == nil && matches(q, answer) {
			copy(answer, query[:2])
			return answer, nil
		}
		if network == "tcp" && err == nil {
			err = errors.New("the answer is to another question")
		}
	}
	return nil, err
}

func receive(c net.Conn, network string) ([]byte, error) {
	if network == "tcp" {
		return readMessage(c)
	}
	buf := make([]byte, 64<<10)
	n, err := c.Read(buf)
	return buf[:n], err
}

// matches reports whether an answer has the number and the question of a query.
func matches(query, answer []byte) bool {
	var a, b [256]byte
	q, ok := parse(query, a[:])
	if !ok || len(answer) < headerSize || !bytes.Equal(query[:2], answer[:2]) || answer[2]&0x80 == 0 {
		return false
	}
	r, ok := parse(answer, b[:])
	return ok && bytes.Equal(q.name, r.name) && q.kind == r.kind && q.class == r.class
}
