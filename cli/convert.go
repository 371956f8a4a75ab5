package cli

import (
	"maps"
	"slices"

	"github.com/spf13/cobra"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/appwait"
	"github.com/gantryd/gantry/cli/table"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/compose"
)

// convertCommand is Compose's `config`, by its other name: configs are something else here.
func (s *session) convertCommand() *cobra.Command {
	var services, images, volumes, quiet bool
	var output string
	cmd := &cobra.Command{
		Use: "convert", Short: "Check the Compose files and print what they come to", Args: verb.Between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "yaml" && output != "json" {
				return verb.Usage(cmd, "output %q is neither yaml nor json", output)
			}
			p, err := s.Load(cmd.Context())
			if err != nil || quiet {
				return err
			}
			var names []string
			switch {
			case services:
				names = slices.Sorted(maps.Keys(p.Spec.GetServices()))
			case volumes:
				names = slices.Sorted(maps.Keys(p.Spec.GetVolumes()))
			case images:
				names = imagesOf(p)
			default:
				text, err := p.Resolved(output == "json")
				if err == nil {
					_, err = s.Out.Write(append(text, '\n'))
				}
				return err
			}
			for _, name := range names {
				s.Put("%s", name)
			}
			return nil
		},
	}
	s.Compose.RegisterLoading(cmd.Flags())
	cmd.Flags().BoolVar(&services, "services", false, "print the names of the services only")
	cmd.Flags().BoolVar(&images, "images", false, "print the images only")
	cmd.Flags().BoolVar(&volumes, "volumes", false, "print the names of the volumes only")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing; the exit code says whether it can be used")
	cmd.Flags().StringVarP(&output, "output", "o", "yaml", "yaml or json")
	return cmd
}

func imagesOf(p *compose.Project) []string {
	var out []string
	for _, svc := range p.Spec.GetServices() {
		if image := svc.GetContainer().GetImage(); image != "" {
			out = append(out, image)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (s *session) lsCommand() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use: "ls", Short: "List the apps of the environment", Args: verb.Between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			got, err := client.Call(cmd.Context(), c.Apps.List, &gantryv1.ListAppsRequest{Environment: s.Environment})
			if err != nil {
				return err
			}
			return verb.List(s.Session, got.GetApps(), func() error { return s.printApps(got.GetApps(), quiet) })
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print names only")
	return s.OutputFlag(cmd, "table")
}

func (s *session) printApps(apps []*gantryv1.AppView, quiet bool) error {
	tab := table.New("APP", "SERVICES", "READY", "STATUS", "CREATED")
	for _, a := range apps {
		if quiet {
			s.Put("%s", a.GetApp().GetName())
			continue
		}
		ready, wanted := int32(0), int32(0)
		for _, v := range a.GetServices() {
			ready, wanted = ready+v.GetReady(), wanted+v.GetWanted()
		}
		tab.Row(a.GetApp().GetName(), verb.Line("%d", len(a.GetServices())), verb.Line("%d/%d", ready, wanted), appState(a), verb.Ago(a.GetApp().GetMeta().GetCreatedAt()))
	}
	if quiet {
		return nil
	}
	return tab.Write(s.Out)
}

// appState is how the worst of an app's services is.
func appState(a *gantryv1.AppView) string {
	stopped, ready, state := 0, int32(0), "up"
	for _, v := range a.GetServices() {
		ready += v.GetReady()
		switch {
		case v.GetService().GetStopped() && appwait.Stopped([]*gantryv1.ServiceView{v}):
			stopped++
		case v.GetFailure() != "":
			return "failed: " + v.GetService().GetName()
		case !v.GetConverged():
			state = "on its way"
		}
	}
	if stopped > 0 && stopped == len(a.GetServices()) {
		return "stopped"
	}
	if state == "up" && ready == 0 {
		return "ended"
	}
	return state
}
