package cli

import (
	"context"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/builder"
	"github.com/gantryd/gantry/cli/images"
	"github.com/gantryd/gantry/cli/runflags"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/compose"
	"github.com/gantryd/gantry/fault"
)

// provide builds or pulls the images of services and notes their digests in the spec, so that a release says exactly
// what runs.
func (s *session) provide(ctx context.Context, p *compose.Project, services []string, f upFlags) error {
	pulled := map[string]string{}
	for _, name := range services {
		svc := p.Spec.GetServices()[name]
		container := svc.GetContainer()
		if container.GetRootfs() != "" {
			continue
		}
		if f.pull != "" {
			policy, err := runflags.Pull(f.pull)
			if err != nil {
				return err
			}
			container.PullPolicy = policy
		}
		if svc.GetBuild() != nil {
			if err := s.provideBuilt(ctx, p, name, f); err != nil {
				return err
			}
			continue
		}
		// Services often share an image; one look is enough.
		id := container.GetPlatform() + " " + container.GetImage()
		if pulled[id] == "" {
			digest, err := images.Pull(ctx, s.Session, container.GetImage(), container.GetPlatform(), container.GetPullPolicy(), f.quietPull)
			if err != nil {
				return err
			}
			pulled[id] = digest
		}
		container.ImageDigest = pulled[id]
	}
	return nil
}

func (s *session) provideBuilt(ctx context.Context, p *compose.Project, name string, f upFlags) error {
	svc := p.Spec.GetServices()[name]
	container := svc.GetContainer()
	if !f.build && container.GetPullPolicy() != gantryv1.PullPolicy_PULL_POLICY_BUILD {
		if err := s.knownDigest(ctx, container); err != nil || container.GetImageDigest() != "" {
			return err
		}
	}
	if f.noBuild {
		return fault.New(fault.NotFound, "image %q of service %q is not there, and --no-build forbids to build it", container.GetImage(), name).
			WithHint("gantry build %s", name)
	}
	if f.noCache {
		svc.Build.NoCache = true
	}
	image, err := s.buildImage(ctx, svc.GetBuild(), builder.Job{
		Title: name, Tags: append([]string{container.GetImage()}, svc.GetBuild().GetTags()...), Dir: p.Dir,
	})
	if err != nil {
		return err
	}
	container.ImageDigest = image.GetDigest()
	return nil
}

// knownDigest notes the digest of an image that is there.
func (s *session) knownDigest(ctx context.Context, container *gantryv1.ContainerSpec) error {
	if container.GetImage() == "" || container.GetRootfs() != "" {
		return nil
	}
	c, err := s.Client()
	if err != nil {
		return err
	}
	got, err := client.Call(ctx, c.Images.Inspect, &gantryv1.InspectImageRequest{Image: container.GetImage(), Platform: container.GetPlatform()})
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	container.ImageDigest = got.GetImage().GetDigest()
	return err
}
