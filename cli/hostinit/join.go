package hostinit

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/gantryd/gantry/fault"
)

// Socket is where the daemon will listen.
func (o *Options) Socket() string {
	if o.Listen != "" {
		return o.Listen
	}
	return "unix://" + o.Run + "/gantry.sock"
}

// AddressTowards is this machine's own address on the way to another; empty if there is no way. Nothing is sent.
func AddressTowards(address string) string {
	c, err := net.Dial("udp", address)
	if err != nil {
		return ""
	}
	defer c.Close()
	host, _, err := net.SplitHostPort(c.LocalAddr().String())
	if err != nil {
		return ""
	}
	return host
}

// Join makes the daemon join the cluster at the server's address. The token goes into a file, where the list of processes
// does not show it.
func (o *Options) Join(server, advertise, token string, asServer bool, labels []string) error {
	if _, _, err := net.SplitHostPort(server); err != nil {
		return fault.Wrap(fault.Invalid, err, "%q is not HOST:PORT", server).WithHint("gantry cluster token create prints the whole command")
	}
	if net.ParseIP(advertise) == nil {
		return fault.New(fault.Invalid, "no address of this machine leads to %s", server).WithHint("name it: --advertise ADDRESS")
	}
	if strings.HasPrefix(token, "gantry-server-") != asServer {
		return fault.New(fault.Invalid, "the token and --server do not agree on what this machine becomes").
			WithHint("gantry cluster token create --role server is for --server, --role node for the others")
	}
	if err := os.MkdirAll(o.Root, 0o711); err != nil {
		return fault.Wrap(fault.Denied, err, "cannot make the directory %s", o.Root).WithHint("run this as root")
	}
	file := filepath.Join(o.Root, "join-token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		return fault.Wrap(fault.Denied, err, "cannot write the token to %s", file).WithHint("run this as root")
	}
	o.joins = true
	o.Extra = append(o.Extra, "--advertise", advertise, "--join", server, "--token-file", file)
	for _, l := range labels {
		o.Extra = append(o.Extra, "--label", l)
	}
	return nil
}

// PlainNode reports whether this machine belongs to a cluster and is no server of it.
func (o *Options) PlainNode() bool {
	var record struct{ Node struct{ Role string } }
	text, err := os.ReadFile(filepath.Join(o.Root, "machine.json"))
	return err == nil && json.Unmarshal(text, &record) == nil && record.Node.Role == "node"
}
