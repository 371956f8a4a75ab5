package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// probe asks for a page all the time, each time over a new connection.
type probe struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	more   chan struct{} // one for each answer
	mu     sync.Mutex
	all    []answer
}

// answer is how one request ended.
type answer struct {
	began, ended time.Time
	err          error
}

func startProbe(address string) *probe {
	ctx, cancel := context.WithCancel(context.Background())
	p := &probe{cancel: cancel, more: make(chan struct{}, 1)}
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for range 4 {
		p.done.Go(func() { p.ask(ctx, client, address) })
	}
	return p
}

func (p *probe) ask(ctx context.Context, client *http.Client, address string) {
	for ctx.Err() == nil {
		a := answer{began: time.Now(), err: get(client, address)}
		a.ended = time.Now()
		p.mu.Lock()
		p.all = append(p.all, a)
		p.mu.Unlock()
		select {
		case p.more <- struct{}{}:
		default:
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func get(client *http.Client, address string) error {
	res, err := client.Get(address)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", res.Status)
	}
	return nil
}

// await waits for that many more answers.
func (p *probe) await(more int) {
	for want := len(p.answers()) + more; len(p.answers()) < want; {
		<-p.more
	}
}

func (p *probe) stop() { p.cancel(); p.done.Wait() }

func (p *probe) answers() []answer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]answer(nil), p.all...)
}

// failedAfter counts the requests that began after a moment and failed.
func (p *probe) failedAfter(moment time.Time) int {
	count := 0
	for _, a := range p.answers() {
		if a.err != nil && a.began.After(moment) {
			count++
		}
	}
	return count
}
