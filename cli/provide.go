package cli

import (
	"context"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/builder"
	"github.com/gantryd/gantry/cli/dockerauth"
	"github.com/gantryd/gantry/cli/progress"
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
			digest, err := s.pull(ctx, container.GetImage(), container.GetPlatform(), container.GetPullPolicy(), false)
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

// pull makes an image be there by a policy and returns its digest. What is there already is not mentioned.
func (s *session) pull(ctx context.Context, image, platform string, policy gantryv1.PullPolicy, quiet bool) (string, error) {
	c, err := s.Client()
	if err != nil {
		return "", err
	}
	auth, err := s.auth(ctx, image)
	if err != nil {
		return "", err
	}
	show := s.transfer(image, quiet)
	var result *gantryv1.Image
	err = client.Each(ctx, c.Images.Pull, &gantryv1.PullRequest{Image: image, Platform: platform, Auth: auth, Policy: policy},
		func(e *gantryv1.Progress) error {
			if e.GetImage() != nil {
				result = e.GetImage()
			}
			show(e)
			return nil
		})
	if err == nil && result == nil {
		err = fault.New(fault.Internal, "the pull of %s ended without an image", image).WithHint("gantry image ls")
	}
	return result.GetDigest(), err
}

// transfer makes what shows the steps of moving an image. An image that was there says nothing.
func (s *session) transfer(title string, quiet bool) func(*gantryv1.Progress) {
	if quiet {
		return func(*gantryv1.Progress) {}
	}
	show := progress.NewPull(s.Err, title, s.Live())
	busy := false
	return func(e *gantryv1.Progress) {
		if e.GetImage() != nil && !busy {
			return
		}
		busy = true
		show.Event(e)
		if e.GetImage() != nil {
			show.Close()
		}
	}
}

func (s *session) auth(ctx context.Context, image string) (*gantryv1.RegistryAuth, error) {
	keys, err := dockerauth.Load()
	if err != nil {
		return nil, err
	}
	return keys.For(ctx, image)
}

// auths gives all credentials there are, for work that may reach any registry.
func (s *session) auths(ctx context.Context) ([]*gantryv1.RegistryAuth, error) {
	keys, err := dockerauth.Load()
	if err != nil {
		return nil, err
	}
	all, problems := keys.All(ctx)
	for _, p := range problems {
		s.Warn("%s", p)
	}
	return all, nil
}
