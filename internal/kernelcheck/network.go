package kernelcheck

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// All of these are made in the network namespace of the thread.

func bridge(string) (string, error) {
	return "", netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "probe0"}})
}

func veth(string) (string, error) {
	return "", netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "probe1"}, PeerName: "probe2"})
}

func vxlan(string) (string, error) {
	return "", modprobe("vxlan", netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "probe3"}, VxlanId: 1, Port: 4789}))
}

func wireguard(string) (string, error) {
	return "", modprobe("wireguard", netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "probe4"}}))
}

func modprobe(module string, err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("the kernel does not have it (modprobe %s)", module)
	}
	return err
}

// nft makes what balancing and masquerading are made of.
func nft(string) (string, error) {
	c, err := nftables.New()
	if err != nil {
		return "", err
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "probe"})
	in := c.AddChain(&nftables.Chain{
		Name: "in", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	out := c.AddChain(&nftables.Chain{
		Name: "out", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	c.AddRule(&nftables.Rule{Table: t, Chain: in, Exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, &expr.Numgen{Register: 1, Modulus: 2, Type: unix.NFT_NG_INCREMENTAL},
	}})
	c.AddRule(&nftables.Rule{Table: t, Chain: out, Exprs: []expr.Any{&expr.Masq{}}})
	return "", c.Flush()
}

// forwarding writes the setting of the thread's own network namespace.
func forwarding(string) (string, error) {
	return "", os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
}

func tun(string) (string, error) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	req, err := unix.NewIfreq("probe5")
	if err != nil {
		return "", err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	return "", unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, req)
}
