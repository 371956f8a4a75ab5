// Package storetest gives tests a real store on a real, embedded etcd in a temporary directory.
//
// Call New. The store lives until the test ends.
package storetest

import (
	"context"
	"log/slog"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/gantryd/gantry/cluster"
	"github.com/gantryd/gantry/store"
)

// New starts a store of its own for the test.
func New(t testing.TB) *store.Store {
	t.Helper()
	s, stop := Open(t, t.TempDir())
	t.Cleanup(stop)
	return s
}

// Open starts a store on dir; stop ends it and leaves the files.
func Open(t testing.TB, dir string) (s *store.Store, stop func()) {
	t.Helper()
	return open(t, dir, func(*clientv3.Client) {})
}

func open(t testing.TB, dir string, change func(*clientv3.Client)) (s *store.Store, stop func()) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	m, err := cluster.Start(t.Context(), cluster.Options{Root: dir + "/etcd", Run: dir + "/run", Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	client := m.Client()
	change(client)
	s, err = store.New(ctx, client, log)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return s, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("store: %v", err)
		}
		m.Stop()
	}
}
