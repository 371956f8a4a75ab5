package overssh_test

import (
	"os/exec"
	"testing"

	"github.com/gantryd/gantry/cli/overssh"
	"github.com/gantryd/gantry/fault"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]overssh.Host{
		"ssh://root@192.0.2.7":        {User: "root", Name: "192.0.2.7"},
		"ssh://host.example:2222":     {Name: "host.example", Port: "2222"},
		"ssh://ann@[2001:db8::1]:222": {User: "ann", Name: "2001:db8::1", Port: "222"},
	} {
		if got, err := overssh.Parse(text); err != nil || got != want {
			t.Errorf("%s is %v, %v", text, got, err)
		}
	}
	for _, bad := range []string{
		"", "host", "root@host", "http://host", "ssh://", "ssh://host/path", "ssh://host?x", "ssh://root:secret@host",
		"ssh://-oProxyCommand=x", "ssh://-oX@host", "ssh://a%20b@host", "ssh://host:port", "ssh://a%24(x)@host",
	} {
		if got, err := overssh.Parse(bad); !fault.Is(err, fault.Invalid) || fault.HintOf(err) == "" {
			t.Errorf("%q is %v, %v", bad, got, err)
		}
	}
}

func TestQuote(t *testing.T) {
	for _, s := range []string{"", "plain", "it's", "a b$HOME`id`\n\"x\"", "''"} {
		if out, err := exec.Command("sh", "-c", "printf %s "+overssh.Quote(s)).Output(); err != nil || string(out) != s {
			t.Errorf("%q became %q, %v", s, out, err)
		}
	}
}

func TestParseSocket(t *testing.T) {
	for text, want := range map[string]string{
		"ssh://root@host": "/default", "ssh://root@host:22/": "/default", "ssh://root@host/run/x/s": "/run/x/s",
	} {
		h, socket, err := overssh.ParseSocket(text, "/default")
		if err != nil || h.Name != "host" || h.User != "root" || socket != want {
			t.Errorf("%s: %v, %q, %v", text, h, socket, err)
		}
	}
	for _, bad := range []string{"ssh://", "host", "ssh://root:pw@host/s", "ssh://host/a:b", "ssh://host/a%25h", "ssh://host/$HOME", "ssh://host/a%20b", "ssh://-oX/s"} {
		if h, socket, err := overssh.ParseSocket(bad, "/default"); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v, %q, %v", bad, h, socket, err)
		}
	}
}
