package cluster

import (
	"net"
	"testing"
)

func TestRefuses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if refuses(t.Context(), l.Addr().String()) {
		t.Error("a listener that is there")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if !refuses(t.Context(), l.Addr().String()) {
		t.Error("a listener that is gone")
	}
	if refuses(t.Context(), "") || refuses(t.Context(), "127.0.0.1:none") {
		t.Error("what is no address")
	}
}
