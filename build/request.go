package build

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/util/entitlements"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// danglingPrefix names images that were built without a tag.
const danglingPrefix = "gantry.local/untagged"

// remote matches contexts that BuildKit fetches itself.
var remote = regexp.MustCompile(`^(https?://|git://|ssh://|git@)`)

// solveRequest turns a checked request into BuildKit's. It decides everything and touches nothing.
func (b *Builder) solveRequest(start *gantryv1.BuildStart, src sources) (*controlapi.SolveRequest, error) {
	tags, err := imageNames(start)
	if err != nil {
		return nil, err
	}
	attrs, err := b.frontendAttrs(start, src)
	if err != nil {
		return nil, err
	}
	cache, err := cacheOptions(start.GetSpec(), start.GetOffline())
	if err != nil {
		return nil, err
	}
	if err := setImports(cache, attrs); err != nil {
		return nil, err
	}
	granted, err := b.granted(start)
	if err != nil {
		return nil, err
	}
	return &controlapi.SolveRequest{
		Ref:           identity.NewID(),
		Frontend:      frontendName,
		FrontendAttrs: attrs,
		Exporters:     []*controlapi.Exporter{{Type: "image", Attrs: exporterAttrs(tags)}},
		Cache:         cache,
		Entitlements:  granted,
		// No record of the build in BuildKit's history: a caller that wants one keeps the events.
		Internal: true,
	}, nil
}

func exporterAttrs(tags []string) map[string]string {
	return map[string]string{
		string(exptypes.OptKeyName):              strings.Join(tags, ","),
		string(exptypes.OptKeyDanglingPrefix):    danglingPrefix,
		string(exptypes.OptKeyDanglingEmptyOnly): "true",
		string(exptypes.OptKeyOCITypes):          "true",
		string(exptypes.OptKeyUnpack):            "true",
		// What stays on the machine is not worth compressing; a push compresses.
		string(exptypes.OptKeyLayerCompression): "uncompressed",
	}
}

// imageNames returns the full names of the result.
func imageNames(start *gantryv1.BuildStart) ([]string, error) {
	var names []string
	for _, tag := range slices.Concat(start.GetTags(), start.GetSpec().GetTags()) {
		named, err := reference.ParseNormalizedNamed(tag)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "image name %q", tag)
		}
		if _, ok := named.(reference.Digested); ok {
			return nil, fault.New(fault.Invalid, "image name %q: a result cannot be named by digest", tag)
		}
		if name := reference.TagNameOnly(named).String(); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, nil
}

func (b *Builder) frontendAttrs(start *gantryv1.BuildStart, src sources) (map[string]string, error) {
	spec := start.GetSpec()
	attrs := map[string]string{
		"filename":           src.dockerfile,
		"target":             spec.GetTarget(),
		"image-resolve-mode": resolveMode(spec),
	}
	for k, v := range spec.GetArgs() {
		attrs["build-arg:"+k] = v
	}
	for k, v := range spec.GetLabels() {
		attrs["label:"+k] = v
	}
	if spec.GetNoCache() {
		attrs["no-cache"] = ""
	}
	if spec.GetShmSize() > 0 {
		attrs["shm-size"] = fmt.Sprint(spec.GetShmSize())
	}
	if start.GetOffline() {
		attrs[keyOffline] = ""
	}
	if src.url != "" {
		attrs["context"] = src.url
	}
	steps := []func(*gantryv1.BuildSpec, map[string]string) error{b.setNetwork, setPlatform, b.setHosts}
	for _, set := range steps {
		if err := set(spec, attrs); err != nil {
			return nil, err
		}
	}
	return attrs, setContexts(start, src, attrs)
}

// resolveMode prefers images of the node's store, so that a build whose bases are here needs no registry.
func resolveMode(spec *gantryv1.BuildSpec) string {
	if spec.GetPull() {
		return "pull"
	}
	return "local"
}

func (b *Builder) setNetwork(spec *gantryv1.BuildSpec, attrs map[string]string) error {
	switch mode := spec.GetNetwork(); mode {
	case "", "default", "bridge":
		if b.opts.Network == nil {
			// Said aloud, so that the step gets the machine's resolv.conf as it is, loopback resolvers included.
			attrs["force-network-mode"] = "host"
		}
	case "host", "none":
		attrs["force-network-mode"] = mode
	default:
		return fault.New(fault.Unsupported, "build network %q: a build can use default, host or none", mode).
			WithHint("remove build.network, or set it to one of these")
	}
	return nil
}

func setPlatform(spec *gantryv1.BuildSpec, attrs map[string]string) error {
	own := platforms.DefaultSpec()
	for _, name := range spec.GetPlatforms() {
		p, err := platforms.Parse(name)
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "platform %q", name)
		}
		if !platforms.OnlyStrict(own).Match(p) {
			return fault.New(fault.Unsupported, "platform %s: this node builds for %s only", name, platforms.Format(own)).
				WithHint("build on a machine of that platform, or remove it from build.platforms")
		}
		attrs["platform"] = platforms.Format(platforms.Normalize(p))
	}
	return nil
}

// setHosts accepts HOST:ADDRESS and HOST=ADDRESS, as Compose does.
func (b *Builder) setHosts(spec *gantryv1.BuildSpec, attrs map[string]string) error {
	var hosts []string
	for _, entry := range spec.GetExtraHosts() {
		host, address, ok := strings.Cut(entry, "=")
		if !ok {
			host, address, _ = strings.Cut(entry, ":")
		}
		address = strings.Trim(address, "[]")
		if address == "host-gateway" {
			if b.opts.HostGateway == "" {
				return fault.New(fault.Unsupported, "extra_hosts %q: the build network has no gateway address", entry)
			}
			address = b.opts.HostGateway
		}
		if _, err := netip.ParseAddr(address); err != nil || host == "" {
			return fault.New(fault.Invalid, "extra_hosts %q: want HOST:ADDRESS", entry)
		}
		hosts = append(hosts, host+"="+address)
	}
	if len(hosts) > 0 {
		attrs["add-hosts"] = strings.Join(hosts, ",")
	}
	return nil
}

// setContexts declares the additional contexts.
func setContexts(start *gantryv1.BuildStart, src sources, attrs map[string]string) error {
	for name, value := range start.GetSpec().GetAdditionalContexts() {
		key := "context:" + name
		switch {
		case strings.HasPrefix(value, "docker-image://"):
			attrs[key] = value
		case src.has(name):
			attrs[key] = "local:" + name
		case remote.MatchString(value):
			if start.GetOffline() {
				return fault.New(fault.Denied, "additional context %q is at %s, and the build may not use the network", name, value)
			}
			attrs[key] = value
		default:
			return fault.New(fault.Unsupported, "additional context %q: %q is neither a directory that was sent, docker-image://NAME, nor a URL", name, value).
				WithHint("correct build.additional_contexts")
		}
	}
	return nil
}

// granted lists what the build may do beyond the usual. The machine's own network reaches what listens on its loopback
// address; where steps have no other network there is nothing to refuse.
func (b *Builder) granted(start *gantryv1.BuildStart) ([]string, error) {
	var all []string
	switch {
	case start.GetHostNetwork() || b.opts.Network == nil:
		all = append(all, string(entitlements.EntitlementNetworkHost))
	case start.GetSpec().GetNetwork() == "host":
		return nil, fault.New(fault.Denied, "a build on the machine's own network is not allowed here").WithHint("%s", hostNetworkHint)
	}
	if !start.GetSpec().GetPrivileged() {
		return all, nil
	}
	if !b.opts.AllowInsecure {
		return nil, fault.New(fault.Denied, "a privileged build is not allowed on this node").
			WithHint("remove build.privileged")
	}
	return append(all, string(entitlements.EntitlementSecurityInsecure)), nil
}

const hostNetworkHint = "leave the network out (RUN --network=host, build.network), or permit it: gantry system set-environment NAME --allow-privileged"

func cacheOptions(spec *gantryv1.BuildSpec, offline bool) (*controlapi.CacheOptions, error) {
	var opts controlapi.CacheOptions
	for _, text := range spec.GetCacheFrom() {
		entry, err := cacheEntry("cache_from", text, offline)
		if err != nil {
			return nil, err
		}
		opts.Imports = append(opts.Imports, entry)
	}
	for _, text := range spec.GetCacheTo() {
		entry, err := cacheEntry("cache_to", text, offline)
		if err != nil {
			return nil, err
		}
		opts.Exports = append(opts.Exports, entry)
	}
	return &opts, nil
}

// setImports tells the frontend which caches there are: the solver passes those of the request on to no frontend.
func setImports(cache *controlapi.CacheOptions, attrs map[string]string) error {
	if len(cache.Imports) == 0 {
		return nil
	}
	text, err := json.Marshal(cache.Imports)
	attrs["cache-imports"] = string(text)
	return err
}

// cacheEntry parses "REF" or "type=registry,ref=REF,…".
func cacheEntry(key, text string, offline bool) (*controlapi.CacheOptionsEntry, error) {
	attrs, err := pairs(text)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "%s %q", key, text)
	}
	kind := or(attrs["type"], "registry")
	delete(attrs, "type")
	switch {
	case kind == "inline" && key == "cache_to":
	case kind == "registry" && offline:
		return nil, fault.New(fault.Denied, "%s %q needs a registry, and the build may not reach one", key, text)
	case kind == "registry":
		if _, err := reference.ParseNormalizedNamed(attrs["ref"]); err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "%s %q", key, text)
		}
	default:
		return nil, fault.New(fault.Unsupported, "%s %q: type=registry and, for cache_to, type=inline are there; not %q", key, text, kind).
			WithHint("remove it: the node keeps the cache of its own builds by itself")
	}
	return &controlapi.CacheOptionsEntry{Type: kind, Attrs: attrs}, nil
}

func pairs(text string) (map[string]string, error) {
	if !strings.Contains(text, "=") {
		return map[string]string{"ref": text}, nil
	}
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil && err != io.EOF {
		return nil, err
	}
	attrs := map[string]string{}
	for _, field := range fields {
		k, v, ok := strings.Cut(field, "=")
		if !ok {
			return nil, fmt.Errorf("%q is not KEY=VALUE", field)
		}
		attrs[strings.ToLower(strings.TrimSpace(k))] = v
	}
	return attrs, nil
}
