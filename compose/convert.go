package compose

import (
	"maps"
	"os"
	"slices"

	"github.com/compose-spec/compose-go/v2/types"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// converter makes the app spec. What a value keeps it from doing goes to the report, with the path of the key.
type converter struct {
	env, app string
	in       *inputs
	src      *sources
	model    *model
	report   *report
}

func (c *converter) convert() *gantryv1.AppSpec {
	p := c.model.project
	spec := &gantryv1.AppSpec{
		Services: map[string]*gantryv1.ServiceSpec{}, Networks: map[string]*gantryv1.NetworkSpec{},
		Volumes: map[string]*gantryv1.VolumeSpec{},
		Secrets: map[string]*gantryv1.FileSpec{}, Configs: map[string]*gantryv1.FileSpec{},
	}
	for _, name := range slices.Sorted(maps.Keys(p.Networks)) {
		spec.Networks[name] = c.network(name, p.Networks[name])
	}
	for _, name := range slices.Sorted(maps.Keys(p.Volumes)) {
		spec.Volumes[name] = c.volume(name, p.Volumes[name])
	}
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		spec.Services[name] = c.service(name, p.Services[name])
	}
	c.needDefaultNetwork(spec)
	c.links(spec)
	c.files(spec)
	return spec
}

// key is the full name of a network, volume, secret or config.
func (c *converter) key(kind, name, explicit string, external bool) string {
	if external || c.model.named[kind+"/"+name] {
		if msg := checkResource(explicit); msg != "" {
			c.report.invalid([]string{kind, name, "name"}, "choose another name", "the name %q cannot be used: %s", shorten(explicit), msg)
		}
		return c.env + "/" + explicit
	}
	return c.env + "/" + c.app + "/" + name
}

func (c *converter) network(name string, n types.NetworkConfig) *gantryv1.NetworkSpec {
	path := []string{"networks", name}
	switch n.Driver {
	case "", "bridge", "overlay", "default":
	default:
		c.report.refuse(append(path, "driver"), "the network driver "+n.Driver+"; leave driver out, or use network_mode: host or none in the services")
	}
	if n.EnableIPv4 != nil && !*n.EnableIPv4 {
		c.report.refuse(append(path, "enable_ipv4"), "a network without IPv4; remove the line")
	}
	if n.EnableIPv6 != nil && !*n.EnableIPv6 {
		c.report.warn(append(path, "enable_ipv6"), "instances have an IPv6 address wherever the node has IPv6")
	}
	if c.src.has(append(path, "attachable")) && !n.Attachable {
		c.report.warn(append(path, "attachable"), "gantry run can join every network")
	}
	return &gantryv1.NetworkSpec{
		Key: c.key("networks", name, n.Name, bool(n.External)), External: bool(n.External), Internal: n.Internal, Labels: n.Labels,
	}
}

func (c *converter) volume(name string, v types.VolumeConfig) *gantryv1.VolumeSpec {
	path := []string{"volumes", name}
	driver := v.Driver
	switch driver {
	case "", "local", "default":
		driver = "directory"
	case "directory", "pool":
	default:
		c.report.refuse(append(path, "driver"), "the volume driver "+driver+"; drivers are directory and pool")
	}
	for _, o := range slices.Sorted(maps.Keys(v.DriverOpts)) {
		if driver != "pool" || o != "size" {
			c.report.refuse(append(path, "driver_opts", o), "this option of a volume; bind mounts go into the services' volumes, a size needs driver: pool")
		}
	}
	return &gantryv1.VolumeSpec{
		Key: c.key("volumes", name, v.Name, bool(v.External)), External: bool(v.External), Driver: driver,
		DriverOptions: v.DriverOpts, Labels: v.Labels,
	}
}

// needDefaultNetwork adds the network of services that ask for network_mode: bridge.
func (c *converter) needDefaultNetwork(spec *gantryv1.AppSpec) {
	key := c.env + "/" + c.app + "/default"
	for _, s := range spec.Services {
		for _, a := range s.Container.GetNetwork().GetAttachments() {
			if a.Network == key && spec.Networks["default"] == nil {
				spec.Networks["default"] = &gantryv1.NetworkSpec{Key: key}
			}
		}
	}
}

// maxContent is the limit that Docker has for secrets and configs.
const maxContent = 500 << 10

// files reads the secrets and configs that some service mounts. The others need not exist.
func (c *converter) files(spec *gantryv1.AppSpec) {
	used := map[string]bool{}
	for _, s := range c.model.project.Services {
		for _, r := range s.Secrets {
			used["secrets/"+r.Source] = true
		}
		for _, r := range s.Configs {
			used["configs/"+r.Source] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.model.project.Secrets)) {
		if used["secrets/"+name] {
			spec.Secrets[name] = c.file("secrets", name, types.FileObjectConfig(c.model.project.Secrets[name]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.model.project.Configs)) {
		if used["configs/"+name] {
			spec.Configs[name] = c.file("configs", name, types.FileObjectConfig(c.model.project.Configs[name]))
		}
	}
}

func (c *converter) file(kind, name string, f types.FileObjectConfig) *gantryv1.FileSpec {
	path := []string{kind, name}
	out := &gantryv1.FileSpec{Key: c.key(kind, name, f.Name, bool(f.External)), External: bool(f.External), Labels: f.Labels}
	switch {
	case out.External:
	case f.File != "":
		out.Content = c.readSmall(append(path, "file"), f.File)
	case f.Environment != "":
		v, ok := c.in.env[f.Environment]
		if !ok {
			c.report.invalid(append(path, "environment"), "export it before the command, or write it into .env",
				"the variable %q is not set", f.Environment)
		}
		out.Content = []byte(v)
	default:
		out.Content = []byte(f.Content)
	}
	if len(out.Content) > maxContent {
		c.report.invalid(path, "mount a file of this size from a volume", "the content is larger than 500 KiB")
	}
	return out
}

// readSmall reads a file whose content goes into the spec.
func (c *converter) readSmall(path []string, file string) []byte {
	err := checkRegular("the file", file)
	if err == nil {
		if st, _ := os.Stat(file); st != nil && st.Size() > maxContent {
			c.report.invalid(path, "mount a file of this size from a volume", "the file %q is larger than 500 KiB", file)
			return nil
		}
		var b []byte
		if b, err = os.ReadFile(file); err == nil {
			return b
		}
	}
	c.report.invalid(path, "check the path; relative ones start from the project directory", "%s", err.Error())
	return nil
}
