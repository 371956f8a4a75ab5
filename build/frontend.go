package build

import (
	"context"
	"maps"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/fault"
)

const frontendName = "dockerfile.v0"

// keyOffline is a frontend option of ours: refuse images that are not in the store.
const keyOffline = "gantry-offline"

// dockerfile runs the built-in Dockerfile frontend under guard.
func (b *Builder) dockerfile(ctx context.Context, c client.Client) (*client.Result, error) {
	_, offline := c.BuildOpts().Opts[keyOffline]
	return builder.Build(ctx, &guard{Client: c, builder: b, offline: offline})
}

// guard stands between the Dockerfile frontend and the solver. It keeps the build in the built-in frontend whatever the
// Dockerfile's syntax line says, and from registries when offline.
type guard struct {
	client.Client
	builder *Builder
	offline bool
	opts    map[string]string // replaces the request's when set
}

// BuildOpts returns the request's options.
func (g *guard) BuildOpts() client.BuildOpts {
	o := g.Client.BuildOpts()
	if g.opts != nil {
		o.Opts = g.opts
	}
	return o
}

// Solve solves; a request for another frontend is answered by the built-in one if it means that, or refused.
func (g *guard) Solve(ctx context.Context, req client.SolveRequest) (*client.Result, error) {
	if req.Frontend == "" {
		return g.Client.Solve(ctx, req)
	}
	if source := req.FrontendOpt["source"]; !builtin(source) {
		return nil, fault.New(fault.Denied, "the Dockerfile asks for the frontend %q (syntax line or BUILDKIT_SYNTAX), which Gantry does not run", source).
			WithHint("remove the line `# syntax=%s`; Gantry's own frontend is docker/dockerfile:1", source)
	}
	// With "cmdline" set, the frontend does not look at the syntax line again.
	opts := maps.Clone(req.FrontendOpt)
	delete(opts, "source")
	return builder.Build(ctx, &guard{Client: g.Client, builder: g.builder, offline: g.offline, opts: opts})
}

// builtin reports whether a syntax line names the frontend that BuildKit carries in itself.
func builtin(source string) bool {
	named, err := reference.ParseNormalizedNamed(strings.TrimSpace(source))
	if err != nil {
		return false
	}
	switch named.Name() {
	case "docker.io/docker/dockerfile", "docker.io/docker/dockerfile-upstream":
		return true
	}
	return false
}

// ResolveImageConfig finds an image's digest and configuration.
func (g *guard) ResolveImageConfig(ctx context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	if err := g.bring(ctx, ref, opt); err != nil {
		return "", "", nil, err
	}
	if err := g.allowed(ctx, ref); err != nil {
		return "", "", nil, err
	}
	ref2, dgst, config, err := g.Client.ResolveImageConfig(ctx, ref, opt)
	if err != nil && fault.KindOf(err) == fault.Unknown && ctx.Err() == nil {
		err = fault.Wrap(fault.Unavailable, err, "image %s is not on this node and no registry gave it", ref).WithHint("%s", imageHint(ref))
	}
	return ref2, dgst, config, err
}

// bring fetches an image that other machines of the cluster have, unless the build is to ask the registry for it.
func (g *guard) bring(ctx context.Context, ref string, opt sourceresolver.Opt) error {
	if g.builder.opts.Bring == nil || opt.OCILayoutOpt != nil || opt.ImageOpt != nil && opt.ImageOpt.ResolveMode == pb.AttrImageResolveModeForcePull {
		return nil
	}
	platform := ""
	if opt.ImageOpt != nil && opt.ImageOpt.Platform != nil {
		platform = platforms.Format(*opt.ImageOpt.Platform)
	}
	return g.builder.opts.Bring(ctx, ref, platform)
}

func (g *guard) allowed(ctx context.Context, ref string) error {
	if !g.offline {
		return nil
	}
	name, err := storeName(ref)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "image reference %q", ref)
	}
	if _, err := g.builder.images.Get(ctx, name); err == nil {
		return nil
	} else if !errdefs.IsNotFound(err) {
		return fault.Wrap(fault.Unavailable, err, "look up image %s", ref)
	}
	return fault.New(fault.NotFound, "image %s is not on this node, and the build may not reach a registry", ref).WithHint("%s", imageHint(ref))
}

func imageHint(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "check the name in the FROM line"
	}
	short := reference.FamiliarString(named)
	if repo := reference.FamiliarName(named); repo == "debian" || repo == "ubuntu" {
		return "gantry image bootstrap " + short
	}
	return "gantry image pull " + short
}

// storeName is the name under which BuildKit looks for an image in containerd's store.
func storeName(ref string) (string, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", err
	}
	tag := "latest"
	if t, ok := named.(reference.Tagged); ok {
		tag = t.Tag()
	}
	return named.Name() + ":" + tag, nil
}
