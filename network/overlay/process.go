package overlay

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// process is WireGuard in this process, behind a TUN device that goes when the process goes.
type process struct {
	device *device.Device
	index  int
}

func openProcess(links *netlink.Handle, o Options) (engine, error) {
	t, err := tun.CreateTUN(o.Device, o.MTU)
	if err != nil {
		return nil, err
	}
	log := &device.Logger{
		Verbosef: func(format string, args ...any) { o.Logger.Debug("wireguard: " + fmt.Sprintf(format, args...)) },
		Errorf:   func(format string, args ...any) { o.Logger.Warn("wireguard: " + fmt.Sprintf(format, args...)) },
	}
	link, err := links.LinkByName(o.Device)
	if err != nil {
		t.Close()
		return nil, err
	}
	return &process{device: device.NewDevice(t, conn.NewDefaultBind(), log), index: link.Attrs().Index}, nil
}

// configure also starts the device, which opens its socket.
func (p *process) configure(c wgtypes.Config) error {
	if err := p.device.IpcSet(encode(c)); err != nil {
		return err
	}
	return p.device.Up()
}

// encode writes a configuration in the words of WireGuard's cross-platform interface.
func encode(c wgtypes.Config) string {
	var b strings.Builder
	if c.PrivateKey != nil {
		fmt.Fprintf(&b, "private_key=%s\n", hex.EncodeToString(c.PrivateKey[:]))
	}
	if c.ListenPort != nil {
		fmt.Fprintf(&b, "listen_port=%d\n", *c.ListenPort)
	}
	for _, p := range c.Peers {
		fmt.Fprintf(&b, "public_key=%s\n", hex.EncodeToString(p.PublicKey[:]))
		if p.UpdateOnly {
			b.WriteString("update_only=true\n")
		}
		if p.Remove {
			b.WriteString("remove=true\n")
			continue
		}
		fmt.Fprintf(&b, "endpoint=%s\n", p.Endpoint)
		fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", int(p.PersistentKeepaliveInterval.Seconds()))
		b.WriteString("replace_allowed_ips=true\n")
		for _, n := range p.AllowedIPs {
			fmt.Fprintf(&b, "allowed_ip=%s\n", n.String())
		}
	}
	return b.String()
}

func (p *process) peers() (map[wgtypes.Key]bool, error) {
	text, err := p.device.IpcGet()
	if err != nil {
		return nil, err
	}
	return decode(text), nil
}

// decode reads the peers of a configuration, and whether they have ever answered.
func decode(text string) map[wgtypes.Key]bool {
	keys := map[wgtypes.Key]bool{}
	var last wgtypes.Key
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch name {
		case "public_key":
			if b, err := hex.DecodeString(value); err == nil && len(b) == len(last) {
				last = wgtypes.Key(b)
				keys[last] = false
			}
		case "last_handshake_time_sec":
			keys[last] = value != "0"
		}
	}
	return keys
}

// serves is false after somebody deleted the TUN device: the WireGuard behind it ends then.
func (p *process) serves(link netlink.Link) bool {
	select {
	case <-p.device.Wait():
		return false
	default:
		return link.Attrs().Index == p.index
	}
}

func (p *process) close() { p.device.Close() }
