package compose

import (
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/go-units"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

func (c *converter) mounts(at []string, s *types.ServiceConfig) []*gantryv1.Mount {
	var out []*gantryv1.Mount
	for i, v := range s.Volumes {
		if m := c.mount(append(slices.Clone(at), "volumes", strconv.Itoa(i)), v); m != nil {
			out = append(out, m)
		}
	}
	for i, t := range s.Tmpfs {
		out = append(out, c.tmpfs(append(slices.Clone(at), "tmpfs", strconv.Itoa(i)), t))
	}
	return out
}

func (c *converter) mount(at []string, v types.ServiceVolumeConfig) *gantryv1.Mount {
	m := &gantryv1.Mount{Source: v.Source, Target: v.Target, ReadOnly: v.ReadOnly}
	if !path.IsAbs(v.Target) || path.Clean(v.Target) == "/" {
		c.report.invalid(at, "write an absolute path below /", "%q is not a place to mount at", shorten(v.Target))
	}
	switch v.Type {
	case types.VolumeTypeVolume:
		c.volumeMount(at, v, m)
	case types.VolumeTypeBind:
		m.Type = gantryv1.Mount_TYPE_BIND
		m.CreateHostPath = true
		if v.Bind != nil {
			m.Propagation, m.CreateHostPath = v.Bind.Propagation, bool(v.Bind.CreateHostPath)
		}
		if !path.IsAbs(v.Source) {
			c.report.invalid(append(at, "source"), "write an absolute path, or one that starts with ./", "%q is not a path", shorten(v.Source))
		}
	case types.VolumeTypeTmpfs:
		m.Type, m.Source = gantryv1.Mount_TYPE_TMPFS, ""
		if v.Tmpfs != nil {
			m.TmpfsSize, m.TmpfsMode = int64(v.Tmpfs.Size), v.Tmpfs.Mode
		}
	default:
		c.report.refuse(append(at, "type"), "a mount of the type "+shorten(v.Type)+"; use volume, bind or tmpfs")
		return nil
	}
	return m
}

func (c *converter) volumeMount(at []string, v types.ServiceVolumeConfig, m *gantryv1.Mount) {
	m.Type = gantryv1.Mount_TYPE_VOLUME
	if v.Source != "" {
		def := c.model.project.Volumes[v.Source]
		m.Source = c.key("volumes", v.Source, def.Name, bool(def.External))
	}
	if v.Volume == nil {
		return
	}
	m.NoCopy, m.Subpath = v.Volume.NoCopy, v.Volume.Subpath
	if m.Subpath != "" && !filepath.IsLocal(m.Subpath) {
		c.report.invalid(append(at, "volume", "subpath"), "write it relative to the volume's root, without \"..\"", "%q leaves the volume", shorten(m.Subpath))
	}
}

// tmpfs reads "PATH[:OPTION,…]".
func (c *converter) tmpfs(at []string, t string) *gantryv1.Mount {
	target, options, _ := strings.Cut(t, ":")
	m := &gantryv1.Mount{Type: gantryv1.Mount_TYPE_TMPFS, Target: path.Clean(target)}
	if !path.IsAbs(target) || m.Target == "/" {
		c.report.invalid(at, "write an absolute path below /", "%q is not a place to mount at", shorten(target))
	}
	for o := range strings.SplitSeq(options, ",") {
		k, v, _ := strings.Cut(o, "=")
		var err error
		switch k {
		case "":
		case "size":
			m.TmpfsSize, err = units.RAMInBytes(v)
		case "mode":
			var mode uint64
			mode, err = strconv.ParseUint(v, 8, 32)
			m.TmpfsMode = uint32(mode)
		case "ro":
			m.ReadOnly = true
		case "rw":
		default:
			m.Options = append(m.Options, o)
		}
		if err != nil {
			c.report.invalid(at, "write it like size=64m,mode=1777", "%q is not an option of a tmpfs", shorten(o))
		}
	}
	return m
}

func (c *converter) secretRefs(at []string, s *types.ServiceConfig) []*gantryv1.FileRef {
	var out []*gantryv1.FileRef
	for i, r := range s.Secrets {
		def := c.model.project.Secrets[r.Source]
		key := c.key("secrets", r.Source, def.Name, bool(def.External))
		out = append(out, c.fileRef(append(slices.Clone(at), "secrets", strconv.Itoa(i)), key, "/run/secrets", types.FileReferenceConfig(r)))
	}
	return out
}

func (c *converter) configRefs(at []string, s *types.ServiceConfig) []*gantryv1.FileRef {
	var out []*gantryv1.FileRef
	for i, r := range s.Configs {
		def := c.model.project.Configs[r.Source]
		key := c.key("configs", r.Source, def.Name, bool(def.External))
		out = append(out, c.fileRef(append(slices.Clone(at), "configs", strconv.Itoa(i)), key, "/", types.FileReferenceConfig(r)))
	}
	return out
}

// fileRef puts a relative target into dir, where programs look for it.
func (c *converter) fileRef(at []string, key, dir string, r types.FileReferenceConfig) *gantryv1.FileRef {
	out := &gantryv1.FileRef{Source: key, Target: r.Target, Uid: r.UID, Gid: r.GID}
	if out.Target == "" {
		out.Target = r.Source
	}
	if !path.IsAbs(out.Target) {
		if !filepath.IsLocal(out.Target) {
			c.report.invalid(append(at, "target"), "write an absolute path or a file name", "%q is not a place for a file", shorten(out.Target))
		}
		out.Target = path.Join(dir, out.Target)
	}
	if r.Mode != nil {
		if *r.Mode < 0 || *r.Mode > 0o7777 {
			c.report.invalid(append(at, "mode"), "write it like 0440", "%o is not a file mode", int64(*r.Mode))
		}
		out.Mode = uint32(*r.Mode)
	}
	return out
}

// onClient makes a path of the file absolute.
func (c *converter) onClient(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(c.in.dir, p)
}
