package main

import (
	"log/slog"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/daemon"
	"github.com/gantryd/gantry/fault"
)

func command() *cobra.Command {
	var c daemon.Config
	var subnet, nodes, vips, level string
	cmd := &cobra.Command{
		Use: "gantryd", Short: "Run Gantry on this machine", Version: version,
		Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := complete(&c, subnet, nodes, vips, level); err != nil {
				return err
			}
			return daemon.Run(cmd.Context(), c)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Root, "root", "/var/lib/gantry", "directory of everything that must last")
	f.StringVar(&c.Run, "run", "/run/gantry", "directory of sockets and of what a reboot may lose")
	f.StringVar(&c.Listen, "listen", "unix:///run/gantry/gantry.sock", "where the API listens")
	f.StringVar(&c.Helpers, "helpers", "", "directory of runc and containerd-shim-runc-v2 (default beside gantryd)")
	f.StringVar(&c.Group, "group", "gantry", "group that may use the API, besides root")
	f.StringVar(&c.Advertise, "advertise", "", "address that other machines reach this one at (default none: it stands alone)")
	f.IntVar(&c.Port, "port", 7450, "first of four ports for other machines: API, state, and the overlays")
	f.StringVar(&c.Join, "join", "", "HOST:PORT of a server whose cluster to join at the first start")
	f.StringVar(&c.TokenFile, "token-file", "", "file with the join token")
	f.StringToStringVar(&c.Labels, "label", nil, "label of the node when it joins, KEY=VALUE")
	f.StringVar(&c.Overlay, "overlay", "vxlan", "how packets travel between nodes of a cluster founded here: vxlan or wireguard")
	f.StringVar(&c.Bridge, "bridge", "gantry0", "name of the bridge of this machine's instances")
	f.StringVar(&subnet, "subnet", "10.210.0.0/20", "addresses of this machine's instances, if it founds a cluster")
	f.StringVar(&nodes, "node-range", "10.192.0.0/11", "where the ranges of machines that join come from")
	f.StringVar(&vips, "virtual-ips", "10.224.0.0/16", "addresses of services")
	f.StringVar(&c.Registry, "registry", "127.0.0.1:5050", "where the embedded registry listens; empty for none")
	f.StringVar(&c.RegistryCertificate, "registry-certificate", "", "PEM file with the registry's certificate (default this machine's own, and no TLS on a loopback address)")
	f.StringVar(&c.RegistryKey, "registry-key", "", "PEM file with the key of that certificate")
	f.StringVar(&c.CgroupParent, "cgroup-parent", "", "cgroup of all instances (default one that hangs on the root)")
	f.StringToIntVar(&c.Devices, "device", nil, "named device that instances can reserve, with its number: gpu=2")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}

const maxDevices = 1 << 20 // of one name on one machine

func complete(c *daemon.Config, subnet, nodes, vips, level string) error {
	var err error
	if c.Subnet, err = netip.ParsePrefix(subnet); err != nil {
		return fault.Wrap(fault.Invalid, err, "--subnet %q is not a range of addresses", subnet)
	}
	if c.NodeRange, err = netip.ParsePrefix(nodes); err != nil {
		return fault.Wrap(fault.Invalid, err, "--node-range %q is not a range of addresses", nodes)
	}
	if c.Overlay != "vxlan" && c.Overlay != "wireguard" {
		return fault.New(fault.Invalid, "--overlay cannot be %q", c.Overlay).WithHint("vxlan or wireguard")
	}
	if c.VirtualIPs, err = netip.ParsePrefix(vips); err != nil {
		return fault.Wrap(fault.Invalid, err, "--virtual-ips %q is not a range of addresses", vips)
	}
	for name, n := range c.Devices {
		if name == "" || n < 0 || n > maxDevices {
			return fault.New(fault.Invalid, "--device %s=%d cannot be", name, n).WithHint("write a name and a number: gpu=2")
		}
	}
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return fault.Wrap(fault.Invalid, err, "--log-level %q is not a level", level)
	}
	if c.Helpers == "" {
		if c.Helpers, err = daemon.Helpers(); err != nil {
			return err
		}
	}
	c.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l}))
	c.Version = daemon.About(version, commit)
	return nil
}
