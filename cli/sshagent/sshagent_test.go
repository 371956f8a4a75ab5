package sshagent_test

import (
	"bufio"
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/sshagent"
	"github.com/gantryd/gantry/fault"
)

// A made-up agent answers lines in upper case; two connections of a build must not mix.
func TestConnectionsReachTheAgent(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "agent")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					_, _ = conn.Write([]byte(strings.ToUpper(lines.Text()) + "\n"))
					if lines.Text() == "bye" {
						conn.Close()
					}
				}
			}()
		}
	}()
	sent := make(chan *gantryv1.SSHData, 8)
	a := sshagent.New(func(d *gantryv1.SSHData) error { sent <- d; return nil }, []string{"default=" + sock})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	for _, c := range []int64{1, 2} {
		for _, word := range []string{"one\n", "two\n"} {
			if err := a.Receive(ctx, &gantryv1.SSHData{Id: "default", Connection: c, Data: []byte(word)}); err != nil {
				t.Fatal(err)
			}
			if got := <-sent; got.GetConnection() != c || string(got.GetData()) != strings.ToUpper(word) {
				t.Errorf("connection %d answers %v", c, got)
			}
		}
	}
	if err := a.Receive(ctx, &gantryv1.SSHData{Id: "default", Connection: 1, Data: []byte("bye\n")}); err != nil {
		t.Fatal(err)
	}
	<-sent
	if got := <-sent; !got.GetClose() || got.GetConnection() != 1 {
		t.Errorf("the end of a connection is told as %v", got)
	}
	if err := a.Receive(ctx, &gantryv1.SSHData{Id: "other", Connection: 3}); !fault.Is(err, fault.NotFound) {
		t.Errorf("an agent that is not there: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
