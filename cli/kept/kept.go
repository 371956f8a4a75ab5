// Package kept is the verbs for what is kept beside containers: volumes, networks, secrets, configs and releases.
package kept

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
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
)

// verbs gives the verbs of this package what all share.
type verbs struct{ *verb.Session }

// Volume is `gantry volume`.
func Volume(session *verb.Session) *cobra.Command {
	s := verbs{session}
	return verb.Group("volume", "Volumes", s.volumeLs(), s.volumeCreate(), s.volumeInspect(), s.volumeRm(), s.volumePrune())
}

func (s verbs) volumeLs() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use: "ls", Short: "List volumes", Aliases: []string{"list"}, Args: verb.Between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			got, err := client.Call(cmd.Context(), c.Volumes.List, &gantryv1.ListVolumesRequest{Environment: s.Environment})
			if err != nil {
				return err
			}
			return verb.List(s.Session, got.GetVolumes(), func() error {
				nodes := verb.Nodes(got.GetNodes())
				head := []string{"NAME", "DRIVER", "SIZE", "USED BY", "CREATED"}
				if nodes.Many() {
					head = append(head, "NODE")
				}
				tab := table.New(head...)
				for _, v := range got.GetVolumes() {
					name := s.InEnv(v.GetVolume().GetMeta().GetKey())
					if quiet {
						s.Put("%s", name)
						continue
					}
					row := []string{name, v.GetVolume().GetDriver(), human.Size(v.GetSize()), verb.Dash(strings.Join(v.GetUsedBy(), ", ")), verb.Ago(v.GetVolume().GetMeta().GetCreatedAt())}
					if nodes.Many() {
						row = append(row, nodes.Name(v.GetVolume().GetNode()))
					}
					tab.Row(row...)
				}
				if quiet {
					return nil
				}
				return tab.Write(s.Out)
			})
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print names only")
	return s.OutputFlag(cmd, "table")
}

func (s verbs) volumeCreate() *cobra.Command {
	var driver string
	var options, labels []string
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a volume", Args: verb.Between(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &gantryv1.CreateVolumeRequest{Environment: s.Environment, Name: args[0], Driver: driver}
			var err error
			if req.DriverOptions, err = runflags.KeyValues("option", options); err != nil {
				return err
			}
			if req.Labels, err = runflags.KeyValues("label", labels); err != nil {
				return err
			}
			c, err := s.Client()
			if err != nil {
				return err
			}
			v, err := client.Call(cmd.Context(), c.Volumes.Create, req)
			if err == nil {
				s.Put("%s", s.InEnv(v.GetMeta().GetKey()))
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&driver, "driver", "d", "", "directory (default) or pool")
	cmd.Flags().StringArrayVarP(&options, "opt", "o", nil, "option of the driver: NAME=VALUE")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "set a label: NAME=VALUE")
	return cmd
}

func (s verbs) volumeInspect() *cobra.Command {
	return s.OutputFlag(&cobra.Command{
		Use: "inspect NAME...", Short: "Print all that is known of volumes", Args: verb.Between(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			found, failed := verb.Gather(s.Session, args, func(name string) (*gantryv1.VolumeView, error) {
				return client.Call(cmd.Context(), c.Volumes.Inspect, &gantryv1.VolumeTarget{Environment: s.Environment, Name: name})
			})
			return errors.Join(verb.Inspect(s.Session, found), failed)
		},
	}, "json")
}

func (s verbs) volumeRm() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm NAME...", Short: "Remove volumes with all data in them", Aliases: []string{"remove"}, Args: verb.Between(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			return s.ForEach(args, func(name string) error {
				_, err := client.Call(cmd.Context(), c.Volumes.Remove, &gantryv1.VolumeTarget{Environment: s.Environment, Name: name, Force: force})
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "no error if it is not there; one whose node was removed is emptied although it is used")
	return cmd
}

func (s verbs) volumePrune() *cobra.Command {
	var all, force bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove anonymous volumes that nothing uses, with -a named ones too", Args: verb.Between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			what := "all anonymous volumes that nothing uses, with their data"
			if all {
				what = "all volumes that nothing uses, named ones too, with their data"
			}
			if err := s.Confirm(force, what); err != nil {
				return err
			}
			return PruneVolumes(cmd.Context(), s.Session, all)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also named ones that nothing uses")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	return cmd
}

// PruneVolumes removes volumes that nothing uses, with all named ones too.
func PruneVolumes(ctx context.Context, s *verb.Session, all bool) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	got, err := client.Call(ctx, c.Volumes.Prune, &gantryv1.PruneVolumesRequest{Environment: s.Environment, All: all})
	if err != nil {
		return err
	}
	for _, name := range got.GetRemoved() {
		s.Put("%s", s.InEnv(name))
	}
	s.Say("%s removed, %s reclaimed", verb.Count(len(got.GetRemoved()), "volume"), human.Size(got.GetReclaimed()))
	if !all {
		s.Say("anonymous volumes go with their instances; gantry volume prune -a removes named ones that nothing uses")
	}
	return s.Missing(got.GetFailures())
}

// Network is `gantry network`.
func Network(session *verb.Session) *cobra.Command {
	s := verbs{session}
	ls := &cobra.Command{
		Use: "ls", Short: "List networks", Aliases: []string{"list"}, Args: verb.Between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			got, err := client.Call(cmd.Context(), c.Networks.List, &gantryv1.ListNetworksRequest{Environment: s.Environment})
			if err != nil {
				return err
			}
			return verb.List(s.Session, got.GetNetworks(), func() error {
				tab := table.New("NAME", "KIND", "MEMBERS", "CREATED")
				for _, n := range got.GetNetworks() {
					kind := "open"
					if n.GetNetwork().GetInternal() {
						kind = "internal"
					}
					tab.Row(s.InEnv(n.GetNetwork().GetMeta().GetKey()), kind, fmt.Sprint(len(n.GetMembers())), verb.Ago(n.GetNetwork().GetMeta().GetCreatedAt()))
				}
				return tab.Write(s.Out)
			})
		},
	}
	show := &cobra.Command{
		Use: "inspect NAME...", Short: "Print all that is known of networks", Args: verb.Between(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			found, failed := verb.Gather(s.Session, args, func(name string) (*gantryv1.NetworkView, error) {
				return client.Call(cmd.Context(), c.Networks.Inspect, &gantryv1.NetworkTarget{Environment: s.Environment, Name: name})
			})
			return errors.Join(verb.Inspect(s.Session, found), failed)
		},
	}
	return verb.Group("network", "Networks", s.OutputFlag(ls, "table"), s.OutputFlag(show, "json"))
}

// fileCalls is what secrets and configs have in common on the wire.
type fileCalls interface {
	List(context.Context, *connect.Request[gantryv1.ListFilesRequest]) (*connect.Response[gantryv1.ListFilesResponse], error)
	Create(context.Context, *connect.Request[gantryv1.CreateFileRequest]) (*connect.Response[gantryv1.FileInfo], error)
	Remove(context.Context, *connect.Request[gantryv1.FileTarget]) (*connect.Response[gantryv1.RemoveFileResponse], error)
}

// Secret is `gantry secret`.
func Secret(session *verb.Session) *cobra.Command {
	s := verbs{session}
	return s.fileCommand("secret", "Secrets: encrypted, never shown again", func() (fileCalls, error) {
		c, err := s.Client()
		if err != nil {
			return nil, err
		}
		return c.Secrets, nil
	})
}

// Config is `gantry config`.
func Config(session *verb.Session) *cobra.Command {
	s := verbs{session}
	return s.fileCommand("config", "Configs: plain files for containers", func() (fileCalls, error) {
		c, err := s.Client()
		if err != nil {
			return nil, err
		}
		return c.Configs, nil
	})
}

func (s verbs) fileCommand(noun, short string, calls func() (fileCalls, error)) *cobra.Command {
	return verb.Group(noun, short, s.fileLs(noun, calls), s.fileCreate(noun, calls), s.fileRm(noun, calls))
}

func (s verbs) fileLs(noun string, calls func() (fileCalls, error)) *cobra.Command {
	return s.OutputFlag(&cobra.Command{
		Use: "ls", Short: "List " + noun + "s", Aliases: []string{"list"}, Args: verb.Between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := calls()
			if err != nil {
				return err
			}
			got, err := client.Call(cmd.Context(), c.List, &gantryv1.ListFilesRequest{Environment: s.Environment})
			if err != nil {
				return err
			}
			return verb.List(s.Session, got.GetFiles(), func() error {
				tab := table.New("NAME", "VERSION", "SIZE", "USED BY", "CHANGED")
				for _, f := range got.GetFiles() {
					tab.Row(s.InEnv(f.GetMeta().GetKey()), fmt.Sprint(f.GetVersion()), human.Size(f.GetSize()), verb.Dash(strings.Join(f.GetUsedBy(), ", ")), verb.Ago(f.GetMeta().GetUpdatedAt()))
				}
				return tab.Write(s.Out)
			})
		},
	}, "table")
}

func (s verbs) fileCreate(noun string, calls func() (fileCalls, error)) *cobra.Command {
	var labels []string
	var replace bool
	cmd := &cobra.Command{
		Use: "create NAME FILE|-", Short: "Store a " + noun + " from a file or standard input", Args: verb.Between(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			content, err := s.content(cmd, noun, append(args, "-")[1])
			if err != nil {
				return err
			}
			req := &gantryv1.CreateFileRequest{Environment: s.Environment, Name: args[0], Content: content, Replace: replace}
			if req.Labels, err = runflags.KeyValues("label", labels); err != nil {
				return err
			}
			c, err := calls()
			if err != nil {
				return err
			}
			info, err := client.Call(cmd.Context(), c.Create, req)
			if err == nil {
				s.Put("%s", s.InEnv(info.GetMeta().GetKey()))
			}
			return err
		},
	}
	cmd.Flags().StringArrayVarP(&labels, "label", "l", nil, "set a label: NAME=VALUE")
	cmd.Flags().BoolVar(&replace, "replace", false, "make a new version of one that exists")
	return cmd
}

// content reads a file or standard input, no more than can be stored.
func (s verbs) content(cmd *cobra.Command, noun, path string) ([]byte, error) {
	const most = 512 << 10
	from := s.In
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fault.Wrap(fault.NotFound, err, "the %s cannot be read", noun)
		}
		defer f.Close()
		from = f
	} else if terminal.Is(s.In) {
		return nil, verb.Usage(cmd, "name a file, or give the %s on standard input", noun)
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

func (s verbs) fileRm(noun string, calls func() (fileCalls, error)) *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME...", Short: "Remove " + noun + "s", Aliases: []string{"remove"}, Args: verb.Between(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := calls()
			if err != nil {
				return err
			}
			return s.ForEach(args, func(name string) error {
				_, err := client.Call(cmd.Context(), c.Remove, &gantryv1.FileTarget{Environment: s.Environment, Name: name})
				return err
			})
		},
	}
}

// Release is `gantry release`.
func Release(session *verb.Session) *cobra.Command {
	s := verbs{session}
	ls := &cobra.Command{
		Use: "ls [SERVICE]", Short: "List releases, newest first", Aliases: []string{"list"}, Args: verb.Between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			app, err := s.MaybeApp(cmd.Context())
			if err != nil {
				return err
			}
			c, err := s.Client()
			if err != nil {
				return err
			}
			got, err := client.Call(cmd.Context(), c.Apps.ListReleases, &gantryv1.ListReleasesRequest{Environment: s.Environment, App: app, Service: strings.Join(args, "")})
			if err != nil {
				return err
			}
			return verb.List(s.Session, got.GetReleases(), func() error { return s.printReleases(app, got.GetReleases()) })
		},
	}
	s.Compose.Register(ls.Flags(), "f", "p")
	return verb.Group("release", "Releases of services", s.OutputFlag(ls, "table"))
}

func (s verbs) printReleases(app string, releases []*gantryv1.ReleaseView) error {
	tab := table.New("SERVICE", "RELEASE", "VERSION", "IMAGE", "CREATED", "INSTANCES", "NOTE")
	for _, v := range releases {
		r := v.GetRelease()
		number := fmt.Sprint(r.GetNumber())
		if v.GetCurrent() {
			number += " (current)"
		}
		name := strings.TrimPrefix(s.InEnv(r.GetService()), app+"/")
		image := verb.ShortImage(verb.ImageOf(r.GetSpec().GetContainer()))
		if digest := r.GetSpec().GetContainer().GetImageDigest(); digest != "" {
			image += "@" + verb.Short(strings.TrimPrefix(digest, "sha256:"))
		}
		tab.Row(name, number, verb.Dash(r.GetSpec().GetVersion()), image, verb.Ago(r.GetMeta().GetCreatedAt()), fmt.Sprint(v.GetInstances()), r.GetNote())
	}
	return tab.Write(s.Out)
}
