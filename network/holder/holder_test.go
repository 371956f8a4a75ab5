package holder

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
)

func TestAListenerIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	if who := Of("tcp", port); !strings.HasSuffix(who, fmt.Sprintf("(process %d)", os.Getpid())) {
		t.Errorf("it is %q", who)
	}
	if who := Of("udp", port); who != "" {
		t.Errorf("%q holds a port of UDP", who)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if who := Of("tcp", port); who != "" {
		t.Errorf("%q holds a port that is free", who)
	}
}
