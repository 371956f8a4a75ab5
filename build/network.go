package build

import (
	"context"

	"github.com/containerd/containerd/v2/pkg/oci"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/network"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Network gives build steps network namespaces of their own, for example on the daemon's bridge.
type Network interface {
	// Namespace returns the path of a network namespace that is ready for use, and what gives it back.
	Namespace(ctx context.Context) (path string, release func() error, err error)
}

// networks maps the modes of RUN --network to where their steps run.
func (b *Builder) networks() map[pb.NetMode]network.Provider {
	m := map[pb.NetMode]network.Provider{
		pb.NetMode_UNSET: network.NewHostProvider(),
		pb.NetMode_HOST:  network.NewHostProvider(),
		pb.NetMode_NONE:  network.NewNoneProvider(),
	}
	if b.opts.Network != nil {
		m[pb.NetMode_UNSET] = provider{b.opts.Network}
	}
	return m
}

type provider struct{ network Network }

// New takes a namespace from the Network.
func (p provider) New(ctx context.Context, _ string, _ network.NamespaceOptions) (network.Namespace, error) {
	path, release, err := p.network.Namespace(ctx)
	if err != nil {
		return nil, err
	}
	return &namespace{path: path, release: release}, nil
}

// Close leaves the Network to its owner.
func (p provider) Close() error { return nil }

type namespace struct {
	path    string
	release func() error
}

// Set puts the namespace's path into the step's specification.
func (n *namespace) Set(s *specs.Spec) error {
	return oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: n.path})(nil, nil, nil, s)
}

// Close gives the namespace back; BuildKit may call it twice.
func (n *namespace) Close() error {
	release := n.release
	n.release = nil
	if release == nil {
		return nil
	}
	return release()
}

// Sample has no figures to give.
func (n *namespace) Sample() (*resourcestypes.NetworkSample, error) { return nil, nil }
