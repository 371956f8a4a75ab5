package engine_test

import (
	"net"
	"strings"
	"testing"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/engine"
	"github.com/gantryd/gantry/engine/enginetest"
	"github.com/gantryd/gantry/fault"
)

func TestLoggingDrivers(t *testing.T) {
	e := enginetest.Open(t)
	image := enginetest.BusyboxImage(t, e)
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	spec := enginetest.Spec(image, "echo to syslog")
	spec.Logging = &gantryv1.Logging{Driver: "syslog", Options: map[string]string{
		"syslog-address": "udp://" + server.LocalAddr().String(), "tag": "{{.Name}}/x", "syslog-facility": "local0",
	}}
	id := enginetest.Run(t, e, "sys", spec)
	if err := server.SetReadDeadline(time.Now().Add(enginetest.Wait)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1024)
	n, _, err := server.ReadFrom(buf)
	if msg := string(buf[:n]); err != nil || !strings.HasPrefix(msg, "<134>") || !strings.Contains(msg, " sys/x[") || !strings.Contains(msg, "]: to syslog") {
		t.Errorf("%v, message %q", err, msg)
	}
	err = e.Logs(t.Context(), id, engine.LogOptions{Tail: -1}, func(*gantryv1.LogEntry) error { return nil })
	if !fault.Is(err, fault.Unsupported) || fault.HintOf(err) == "" {
		t.Errorf("reading back: %v", err)
	}
	none := enginetest.Spec(image, "echo nowhere")
	none.Logging = &gantryv1.Logging{Driver: "none"}
	enginetest.AwaitExit(t, e, enginetest.Run(t, e, "none", none))
}
