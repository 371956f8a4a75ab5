package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/cli/runflags"
	"github.com/gantryd/gantry/cli/table"
	"github.com/gantryd/gantry/cli/terminal"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
)

func (s *session) volumeCommand() *cobra.Command {
	return group("volume", "Volumes", s.volumeLs(), s.volumeCreate(), s.volumeInspect(), s.volumeRm(), s.volumePrune())
}

// inEnv leaves the environment out of a key.
func (s *session) inEnv(key string) string { return strings.TrimPrefix(key, s.environment+"/") }

func (s *session) volumeLs() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use: "ls", Short: "List volumes", Aliases: []string{"list"}, Args: between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			got, err := client.Call(cmd.Context(), c.Volumes.List, &gantryv1.ListVolumesRequest{Environment: s.environment})
			if err != nil {
				return err
			}
			return list(s, got.GetVolumes(), func() error {
				tab := table.New("NAME", "DRIVER", "SIZE", "USED BY", "CREATED")
				for _, v := range got.GetVolumes() {
					name := s.inEnv(v.GetVolume().GetMeta().GetKey())
					if quiet {
						s.put("%s", name)
						continue
					}
					tab.Row(name, v.GetVolume().GetDriver(), human.Size(v.GetSize()), dash(strings.Join(v.GetUsedBy(), ", ")), ago(v.GetVolume().GetMeta().GetCreatedAt()))
				}
				if quiet {
					return nil
				}
				return tab.Write(s.out)
			})
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print names only")
	return s.outputFlag(cmd, "table")
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (s *session) volumeCreate() *cobra.Command {
	var driver string
	var options, labels []string
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a volume", Args: between(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &gantryv1.CreateVolumeRequest{Environment: s.environment, Name: args[0], Driver: driver}
			var err error
			if req.DriverOptions, err = runflags.KeyValues("option", options); err != nil {
				return err
			}
			if req.Labels, err = runflags.KeyValues("label", labels); err != nil {
				return err
			}
			c, err := s.client()
			if err != nil {
				return err
			}
			v, err := client.Call(cmd.Context(), c.Volumes.Create, req)
			if err == nil {
				s.put("%s", s.inEnv(v.GetMeta().GetKey()))
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&driver, "driver", "d", "", "directory (default) or pool")
	cmd.Flags().StringArrayVarP(&options, "opt", "o", nil, "option of the driver: NAME=VALUE")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "set a label: NAME=VALUE")
	return cmd
}

func (s *session) volumeInspect() *cobra.Command {
	return s.outputFlag(&cobra.Command{
		Use: "inspect NAME...", Short: "Print all that is known of volumes", Args: between(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			found, failed := gather(s, args, func(name string) (*gantryv1.VolumeView, error) {
				return client.Call(cmd.Context(), c.Volumes.Inspect, &gantryv1.VolumeTarget{Environment: s.environment, Name: name})
			})
			return errors.Join(inspect(s, found), failed)
		},
	}, "json")
}

// gather reads what each name stands for; failures are joined.
func gather[M any](s *session, names []string, read func(string) (M, error)) ([]M, error) {
	var found []M
	var failed []error
	for _, name := range names {
		m, err := read(name)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		found = append(found, m)
	}
	return found, s.join(failed)
}

func (s *session) volumeRm() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm NAME...", Short: "Remove volumes with all data in them", Aliases: []string{"remove"}, Args: between(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			return s.forEach(args, func(name string) error {
				_, err := client.Call(cmd.Context(), c.Volumes.Remove, &gantryv1.VolumeTarget{Environment: s.environment, Name: name, Force: force})
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "no error if it is not there")
	return cmd
}

func (s *session) volumePrune() *cobra.Command {
	var all, force bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove anonymous volumes that nothing uses, with -a named ones too", Args: between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			what := "all anonymous volumes that nothing uses, with their data"
			if all {
				what = "all volumes that nothing uses, named ones too, with their data"
			}
			if err := s.confirm(force, what); err != nil {
				return err
			}
			return s.pruneVolumes(cmd.Context(), all)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also named ones that nothing uses")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	return cmd
}

func (s *session) pruneVolumes(ctx context.Context, all bool) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	got, err := client.Call(ctx, c.Volumes.Prune, &gantryv1.PruneVolumesRequest{Environment: s.environment, All: all})
	if err != nil {
		return err
	}
	for _, name := range got.GetRemoved() {
		s.put("%s", s.inEnv(name))
	}
	s.say("%s removed, %s reclaimed", count(len(got.GetRemoved()), "volume"), human.Size(got.GetReclaimed()))
	return nil
}

// confirm asks before what cannot be undone; where nobody can answer it must be forced.
func (s *session) confirm(force bool, what string) error {
	if force {
		return nil
	}
	if !terminal.Is(s.in) {
		return fault.New(fault.Denied, "this removes %s, and nobody is there to confirm it", what).WithHint("add --force")
	}
	fmt.Fprintf(s.err, "This removes %s. Go on? [y/N] ", what)
	var answer string
	_, _ = fmt.Fscanln(s.in, &answer)
	if answer = strings.ToLower(answer); answer != "y" && answer != "yes" {
		return fault.New(fault.Canceled, "nothing was removed")
	}
	return nil
}

func (s *session) networkCommand() *cobra.Command {
	ls := &cobra.Command{
		Use: "ls", Short: "List networks", Aliases: []string{"list"}, Args: between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			got, err := client.Call(cmd.Context(), c.Networks.List, &gantryv1.ListNetworksRequest{Environment: s.environment})
			if err != nil {
				return err
			}
			return list(s, got.GetNetworks(), func() error {
				tab := table.New("NAME", "KIND", "MEMBERS", "CREATED")
				for _, n := range got.GetNetworks() {
					kind := "open"
					if n.GetNetwork().GetInternal() {
						kind = "internal"
					}
					tab.Row(s.inEnv(n.GetNetwork().GetMeta().GetKey()), kind, fmt.Sprint(len(n.GetMembers())), ago(n.GetNetwork().GetMeta().GetCreatedAt()))
				}
				return tab.Write(s.out)
			})
		},
	}
	show := &cobra.Command{
		Use: "inspect NAME...", Short: "Print all that is known of networks", Args: between(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.client()
			if err != nil {
				return err
			}
			found, failed := gather(s, args, func(name string) (*gantryv1.NetworkView, error) {
				return client.Call(cmd.Context(), c.Networks.Inspect, &gantryv1.NetworkTarget{Environment: s.environment, Name: name})
			})
			return errors.Join(inspect(s, found), failed)
		},
	}
	return group("network", "Networks", s.outputFlag(ls, "table"), s.outputFlag(show, "json"))
}

// fileCalls is what secrets and configs have in common on the wire.
type fileCalls interface {
	List(context.Context, *connect.Request[gantryv1.ListFilesRequest]) (*connect.Response[gantryv1.ListFilesResponse], error)
	Create(context.Context, *connect.Request[gantryv1.CreateFileRequest]) (*connect.Response[gantryv1.FileInfo], error)
	Remove(context.Context, *connect.Request[gantryv1.FileTarget]) (*connect.Response[gantryv1.RemoveFileResponse], error)
}

func (s *session) secretCommand() *cobra.Command {
	return s.fileCommand("secret", "Secrets: encrypted, never shown again", func() (fileCalls, error) {
		c, err := s.client()
		if err != nil {
			return nil, err
		}
		return c.Secrets, nil
	})
}

func (s *session) configCommand() *cobra.Command {
	return s.fileCommand("config", "Configs: plain files for containers", func() (fileCalls, error) {
		c, err := s.client()
		if err != nil {
			return nil, err
		}
		return c.Configs, nil
	})
}

func (s *session) fileCommand(noun, short string, calls func() (fileCalls, error)) *cobra.Command {
	return group(noun, short, s.fileLs(noun, calls), s.fileCreate(noun, calls), s.fileRm(noun, calls))
}

func (s *session) fileLs(noun string, calls func() (fileCalls, error)) *cobra.Command {
	return s.outputFlag(&cobra.Command{
		Use: "ls", Short: "List " + noun + "s", Aliases: []string{"list"}, Args: between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := calls()
			if err != nil {
				return err
			}
			got, err := client.Call(cmd.Context(), c.List, &gantryv1.ListFilesRequest{Environment: s.environment})
			if err != nil {
				return err
			}
			return list(s, got.GetFiles(), func() error {
				tab := table.New("NAME", "VERSION", "SIZE", "USED BY", "CHANGED")
				for _, f := range got.GetFiles() {
					tab.Row(s.inEnv(f.GetMeta().GetKey()), fmt.Sprint(f.GetVersion()), human.Size(f.GetSize()), dash(strings.Join(f.GetUsedBy(), ", ")), ago(f.GetMeta().GetUpdatedAt()))
				}
				return tab.Write(s.out)
			})
		},
	}, "table")
}

func (s *session) fileCreate(noun string, calls func() (fileCalls, error)) *cobra.Command {
	var labels []string
	var replace bool
	cmd := &cobra.Command{
		Use: "create NAME FILE|-", Short: "Store a " + noun + " from a file or standard input", Args: between(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			content, err := s.content(cmd, noun, append(args, "-")[1])
			if err != nil {
				return err
			}
			req := &gantryv1.CreateFileRequest{Environment: s.environment, Name: args[0], Content: content, Replace: replace}
			if req.Labels, err = runflags.KeyValues("label", labels); err != nil {
				return err
			}
			c, err := calls()
			if err != nil {
				return err
			}
			info, err := client.Call(cmd.Context(), c.Create, req)
			if err == nil {
				s.put("%s", s.inEnv(info.GetMeta().GetKey()))
			}
			return err
		},
	}
	cmd.Flags().StringArrayVarP(&labels, "label", "l", nil, "set a label: NAME=VALUE")
	cmd.Flags().BoolVar(&replace, "replace", false, "make a new version of one that exists")
	return cmd
}

// content reads a file or standard input, no more than can be stored.
func (s *session) content(cmd *cobra.Command, noun, path string) ([]byte, error) {
	const most = 512 << 10
	from := s.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fault.Wrap(fault.NotFound, err, "the %s cannot be read", noun)
		}
		defer f.Close()
		from = f
	} else if terminal.Is(s.in) {
		return nil, usage(cmd, "name a file, or give the %s on standard input", noun)
	}
	data, err := io.ReadAll(io.LimitReader(from, most+1))
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "the %s cannot be read", noun)
	}
	if len(data) > most {
		return nil, fault.New(fault.Invalid, "the %s is larger than %s", noun, human.Memory(most)).WithHint("put large files into a volume or an image")
	}
	return data, nil
}

func (s *session) fileRm(noun string, calls func() (fileCalls, error)) *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME...", Short: "Remove " + noun + "s", Aliases: []string{"remove"}, Args: between(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := calls()
			if err != nil {
				return err
			}
			return s.forEach(args, func(name string) error {
				_, err := client.Call(cmd.Context(), c.Remove, &gantryv1.FileTarget{Environment: s.environment, Name: name})
				return err
			})
		},
	}
}

func (s *session) releaseCommand() *cobra.Command {
	ls := &cobra.Command{
		Use: "ls [SERVICE]", Short: "List releases, newest first", Aliases: []string{"list"}, Args: between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			app, err := s.maybeApp(cmd.Context())
			if err != nil {
				return err
			}
			c, err := s.client()
			if err != nil {
				return err
			}
			got, err := client.Call(cmd.Context(), c.Apps.ListReleases, &gantryv1.ListReleasesRequest{Environment: s.environment, App: app, Service: strings.Join(args, "")})
			if err != nil {
				return err
			}
			return list(s, got.GetReleases(), func() error { return s.printReleases(app, got.GetReleases()) })
		},
	}
	s.compose.register(ls.Flags(), "f", "p")
	return group("release", "Releases of services", s.outputFlag(ls, "table"))
}

func (s *session) printReleases(app string, releases []*gantryv1.ReleaseView) error {
	tab := table.New("SERVICE", "RELEASE", "VERSION", "IMAGE", "CREATED", "INSTANCES", "NOTE")
	for _, v := range releases {
		r := v.GetRelease()
		number := fmt.Sprint(r.GetNumber())
		if v.GetCurrent() {
			number += " (current)"
		}
		name := strings.TrimPrefix(s.inEnv(r.GetService()), app+"/")
		image := shortImage(imageOf(r.GetSpec().GetContainer()))
		if digest := r.GetSpec().GetContainer().GetImageDigest(); digest != "" {
			image += "@" + short(strings.TrimPrefix(digest, "sha256:"))
		}
		tab.Row(name, number, dash(r.GetSpec().GetVersion()), image, ago(r.GetMeta().GetCreatedAt()), fmt.Sprint(v.GetInstances()), r.GetNote())
	}
	return tab.Write(s.out)
}
