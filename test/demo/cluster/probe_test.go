package main

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// TestFailuresAreCounted: what began before a moment and failed does not count as late, what began after it does.
func TestFailuresAreCounted(t *testing.T) {
	var broken atomic.Bool
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if broken.Load() {
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	defer s.Close()
	p := startProbe(s.URL)
	defer p.stop()
	began := time.Now()
	p.await(20)
	if n := p.failedAfter(began); n != 0 {
		t.Errorf("%d failed and all were answered", n)
	}
	broken.Store(true)
	p.await(20)
	broken.Store(false)
	p.await(20) // those that had begun have ended
	mended := time.Now()
	p.await(20)
	if n := p.failedAfter(began); n < 10 {
		t.Errorf("%d of 20 failures are counted", n)
	}
	if n := p.failedAfter(mended); n != 0 {
		t.Errorf("%d failures from before count as late", n)
	}
}
