package engine

import (
	"bytes"
	"slices"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantryd/gantry/fault"
)

// accounts are the contents of a root file system's /etc/passwd and /etc/group.
type accounts struct{ passwd, group []byte }

// resolve turns "user[:group]" and further groups, by name or number, into numbers.
func (a accounts) resolve(spec string, groups []string) (specs.User, error) {
	u, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, bytes.NewReader(a.passwd), bytes.NewReader(a.group))
	if err != nil {
		return specs.User{}, fault.Wrap(fault.Invalid, err, "user %q does not exist in the image", spec).
			WithHint("look into its /etc/passwd: gantry run --rm --user 0 IMAGE cat /etc/passwd; a number needs no entry")
	}
	extra, err := user.GetAdditionalGroups(groups, bytes.NewReader(a.group))
	if err != nil {
		return specs.User{}, fault.Wrap(fault.Invalid, err, "group_add %q: no such group in the image", groups).
			WithHint("a number needs no entry in /etc/group")
	}
	out := specs.User{UID: uint32(u.Uid), GID: uint32(u.Gid)}
	for _, gid := range slices.Concat([]int{u.Gid}, u.Sgids, extra) {
		if !slices.Contains(out.AdditionalGids, uint32(gid)) {
			out.AdditionalGids = append(out.AdditionalGids, uint32(gid))
		}
	}
	return out, nil
}
