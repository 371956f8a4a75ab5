package cli

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/images"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/compose"
	"github.com/gantryd/gantry/fault"
)

// The images of an app, by its Compose file.

func (s *session) pullCommand() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use: "pull [SERVICE...]", Short: "Pull the images of the app's services, so that up need not", Args: verb.Between(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.eachImage(cmd.Context(), args, false, func(svc *gantryv1.ServiceSpec) error {
				c := svc.GetContainer()
				digest, err := images.Pull(cmd.Context(), s.Session, c.GetImage(), c.GetPlatform(), gantryv1.PullPolicy_PULL_POLICY_ALWAYS, quiet)
				if err == nil {
					s.Put("%s@%s", c.GetImage(), digest)
				}
				return err
			})
		},
	}
	s.Compose.RegisterLoading(cmd.Flags())
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}

func (s *session) pushCommand() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use: "push [SERVICE...]", Short: "Push the images that are built for the app's services", Args: verb.Between(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.eachImage(cmd.Context(), args, true, func(svc *gantryv1.ServiceSpec) error {
				name := svc.GetContainer().GetImage()
				digest, err := images.Push(cmd.Context(), s.Session, name, false, quiet)
				if err == nil {
					s.Put("%s@%s", name, digest)
				}
				return err
			})
		},
	}
	s.Compose.RegisterLoading(cmd.Flags())
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}

// eachImage acts once on each image of the services named, or of all: those that are built, or those that are not.
func (s *session) eachImage(ctx context.Context, names []string, built bool, act func(*gantryv1.ServiceSpec) error) error {
	p, err := s.Load(ctx)
	if err != nil {
		return notAnApp(err, names)
	}
	chosen, err := closure(p, nil)
	if len(names) > 0 {
		chosen = names
	}
	var done []string
	var failed []error
	for _, name := range chosen {
		svc := p.Spec.GetServices()[name]
		if svc == nil {
			return notAnApp(noService(p, name), names)
		}
		image := svc.GetContainer().GetImage()
		if image == "" || (svc.GetBuild() != nil) != built || slices.Contains(done, image) {
			continue
		}
		done = append(done, image)
		if err := act(svc); err != nil {
			failed = append(failed, err)
		}
	}
	if len(done) == 0 {
		s.Say("none of the services has an image to %s", map[bool]string{true: "push: nothing is built", false: "pull"}[built])
	}
	if err != nil {
		return err
	}
	return s.Join(failed)
}

// notAnApp adds what those want who have named an image.
func notAnApp(err error, names []string) error {
	if len(names) == 0 || !fault.Is(err, fault.NotFound) {
		return err
	}
	return fault.Wrap(fault.NotFound, err, "%s", names[0]).WithHint("pull and push take services of the Compose file; for an image: gantry image pull %s", names[0])
}

// imagesToRemove lists what down is to remove besides: the images that were built for the app and have no name of their own
// ("local"), or all of its file.
func (s *session) imagesToRemove(cmd *cobra.Command, which string) ([]string, error) {
	if which == "" {
		return nil, nil
	}
	if which != "local" && which != "all" {
		return nil, verb.Usage(cmd, "--rmi %s is neither local nor all", which)
	}
	p, err := s.Load(cmd.Context())
	if err != nil {
		return nil, err
	}
	var out []string
	for name, svc := range p.Spec.GetServices() {
		image := svc.GetContainer().GetImage()
		local := svc.GetBuild() != nil && image == compose.BuiltImage(p.Name, name)
		if image != "" && (local || which == "all") && !slices.Contains(out, image) {
			out = append(out, image)
		}
	}
	slices.Sort(out)
	return out, nil
}

// removeImages leaves out what is not there, and what something else uses.
func (s *session) removeImages(ctx context.Context, names []string) error {
	var failed []error
	for _, name := range names {
		err := images.Remove(ctx, s.Session, name, false)
		switch {
		case fault.Is(err, fault.NotFound):
		case fault.Is(err, fault.Conflict):
			s.Say("image %s stays: %s", name, err)
		case err != nil:
			failed = append(failed, err)
		}
	}
	return s.Join(failed)
}
