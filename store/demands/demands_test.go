package demands_test

import (
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store/demands"
)

func bind(source string) *gantryv1.ContainerSpec {
	return &gantryv1.ContainerSpec{Mounts: []*gantryv1.Mount{{Type: gantryv1.Mount_TYPE_BIND, Source: source, Target: "/x"}}}
}

func device(path string) *gantryv1.ContainerSpec {
	return &gantryv1.ContainerSpec{Devices: []*gantryv1.Device{{Source: path}}}
}

func TestPrivileged(t *testing.T) {
	type spec = gantryv1.ContainerSpec
	for want, c := range map[string]*spec{
		"privileged":                           {Privileged: true},
		"devices: /dev/sda":                    device("/dev/sda"),
		"devices: /dev/dri/../mem":             device("/dev/dri/../mem"),
		"device_cgroup_rules: b 8:* rmw":       {DeviceCgroupRules: []string{"b 8:* rmw"}},
		"cap_add: ALL":                         {CapAdd: []string{"NET_ADMIN", "ALL"}},
		"cap_add: cap_sys_admin":               {CapAdd: []string{"cap_sys_admin"}},
		"cap_add: DAC_READ_SEARCH":             {CapAdd: []string{"DAC_READ_SEARCH"}},
		"pid: host":                            {PidMode: "host"},
		"ipc: host":                            {IpcMode: "host"},
		"uts: host":                            {UtsMode: "host"},
		"cgroup: host":                         {CgroupMode: "host"},
		"security_opt: seccomp:unconfined":     {SecurityOpt: []string{"seccomp:unconfined"}},
		"security_opt: systempaths=unconfined": {SecurityOpt: []string{"systempaths=unconfined"}},
		"the root file system /":               {Rootfs: "//"},
		"a bind mount of /":                    bind("/srv/.."),
		"a bind mount of /proc/sys":            bind("/proc/sys"),
		"a bind mount of /dev":                 bind("/dev/"),
		"a bind mount of /var/lib":             bind("/var/lib"),
		"a bind mount of /var/lib/gantry/x":    bind("/var/lib/gantry/x"),
	} {
		if got := demands.Privileged(c, []string{"/var/lib/gantry"}); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestOrdinaryDemandsAreNotPrivileged(t *testing.T) {
	for name, c := range map[string]*gantryv1.ContainerSpec{
		"nothing":      nil,
		"ptrace":       {CapAdd: []string{"SYS_PTRACE", "NET_ADMIN"}},
		"host network": {Network: &gantryv1.NetworkMode{Kind: gantryv1.NetworkMode_KIND_HOST}},
		"graphics":     device("/dev/dri/card0"),
		"a folder":     bind("/srv/data"),
		"a neighbour":  bind("/var/lib/gantry-data"),
		"a log socket": bind("/dev/log"),
		"no new privs": {SecurityOpt: []string{"no-new-privileges:true"}},
		"a volume":     {Mounts: []*gantryv1.Mount{{Type: gantryv1.Mount_TYPE_VOLUME, Source: "/"}}},
		"a jail":       {Rootfs: "/srv/jail"},
	} {
		if got := demands.Privileged(c, []string{"/var/lib/gantry"}); got != "" {
			t.Errorf("%s: %q", name, got)
		}
	}
}
