package build

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/fault"
)

// result describes the image that a solve exported.
func (b *Builder) result(ctx context.Context, solve *controlapi.SolveRequest, resp *controlapi.SolveResponse) (*gantryv1.Image, error) {
	ctx = namespaces.WithNamespace(ctx, b.opts.Namespace)
	desc, err := exported(resp)
	if err != nil {
		return nil, err
	}
	store := b.client.ContentStore()
	manifest, err := images.Manifest(ctx, store, desc, platforms.Default())
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "read the manifest of the built image")
	}
	config, err := readConfig(ctx, store, manifest.Config)
	if err != nil {
		return nil, err
	}
	image := &gantryv1.Image{
		Digest: desc.Digest.String(), ConfigDigest: manifest.Config.Digest.String(),
		Labels: config.Config.Labels, Platforms: []string{platforms.Format(config.Platform)},
		Size: manifest.Config.Size, References: names(resp),
	}
	for _, layer := range manifest.Layers {
		image.Size += layer.Size
	}
	if config.Created != nil {
		image.CreatedAt = timestamppb.New(*config.Created)
	}
	return image, nil
}

func names(resp *controlapi.SolveResponse) []string {
	all := strings.Split(resp.ExporterResponse[exptypes.ExporterImageNameKey], ",")
	return slices.DeleteFunc(all, func(s string) bool { return s == "" })
}

func exported(resp *controlapi.SolveResponse) (ocispecs.Descriptor, error) {
	var desc ocispecs.Descriptor
	text, err := base64.StdEncoding.DecodeString(resp.ExporterResponse[exptypes.ExporterImageDescriptorKey])
	if err == nil {
		err = json.Unmarshal(text, &desc)
	}
	if err != nil {
		return desc, fault.Wrap(fault.Internal, err, "read the descriptor of the built image")
	}
	return desc, nil
}

func readConfig(ctx context.Context, store content.Store, desc ocispecs.Descriptor) (*ocispecs.Image, error) {
	var config ocispecs.Image
	data, err := content.ReadBlob(ctx, store, desc)
	if err == nil {
		err = json.Unmarshal(data, &config)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "read the configuration of the built image")
	}
	return &config, nil
}
