// Package images is the verbs of `gantry image`, and what other verbs need of images: Pull and the credentials for it.
package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/dockerauth"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/cli/imagearchive"
	"github.com/gantryd/gantry/cli/progress"
	"github.com/gantryd/gantry/cli/table"
	"github.com/gantryd/gantry/cli/terminal"
	"github.com/gantryd/gantry/cli/verb"
	"github.com/gantryd/gantry/client"
	"github.com/gantryd/gantry/fault"
)

// verbs gives the verbs of this package what all share.
type verbs struct{ *verb.Session }

// Command is `gantry image`.
func Command(session *verb.Session) *cobra.Command {
	s := verbs{session}
	return verb.Group("image", "Images: pull, push, import, export, bootstrap, …",
		s.imageLs(), s.imagePull(), s.imagePush(), s.imageImport(), s.imageExport(), s.imageBootstrap(),
		s.imageTag(), s.imageRm(), s.imagePrune(), s.imageInspect(), s.imageHistory())
}

func (s verbs) imageLs() *cobra.Command {
	var quiet, digests bool
	var node string
	cmd := &cobra.Command{
		Use: "ls [NAME]", Short: "List images of all machines", Aliases: []string{"list"}, Args: verb.Between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			got, err := client.Call(cmd.Context(), c.Images.List, &gantryv1.ListImagesRequest{Filter: strings.Join(args, ""), Node: node})
			if err != nil {
				return err
			}
			err = verb.List(s.Session, got.GetImages(), func() error { return s.printImages(got.GetImages(), quiet, digests) })
			return errors.Join(err, s.Missing(got.GetFailures()))
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print digests only")
	cmd.Flags().BoolVar(&digests, "digests", false, "print whole digests")
	cmd.Flags().StringVar(&node, "node", "", "only what this machine has")
	return s.OutputFlag(cmd, "table")
}

func (s verbs) printImages(images []*gantryv1.Image, quiet, digests bool) error {
	columns := []string{"NAME", "TAG", "DIGEST", "PLATFORMS", "CREATED", "SIZE"}
	if slices.ContainsFunc(images, func(i *gantryv1.Image) bool { return len(i.GetNodes()) > 0 }) {
		columns = append(columns, "NODES")
	}
	tab := table.New(columns...)
	for _, image := range images {
		digest := image.GetDigest()
		if quiet {
			s.Put("%s", digest)
			continue
		}
		if !digests {
			digest = verb.Short(strings.TrimPrefix(digest, "sha256:"))
		}
		refs := image.GetReferences()
		if len(refs) == 0 {
			refs = []string{"-"}
		}
		sort.Strings(refs)
		for _, ref := range refs {
			name, tag := splitTag(verb.ShortImage(ref))
			row := []string{name, tag, digest, strings.Join(image.GetPlatforms(), ", "), verb.Ago(image.GetCreatedAt()), human.Size(image.GetSize()), nodes(image)}
			tab.Row(row[:len(columns)]...)
		}
	}
	if quiet {
		return nil
	}
	return tab.Write(s.Out)
}

// nodes names the machines that have an image, or counts them.
func nodes(image *gantryv1.Image) string {
	if all := image.GetNodes(); len(all) <= 3 {
		return verb.Line("%s", strings.Join(all, ", "))
	}
	return fmt.Sprintf("%d nodes", len(image.GetNodes()))
}

// splitTag takes the tag off a reference; a colon before a slash belongs to a port.
func splitTag(ref string) (name, tag string) {
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		return ref[:i], ref[i+1:]
	}
	return ref, "-"
}

func (s verbs) imagePull() *cobra.Command {
	var platform string
	var quiet bool
	cmd := &cobra.Command{
		Use: "pull IMAGE...", Short: "Pull images from their registries", Args: verb.Between(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var failed []error
			for _, image := range args {
				digest, err := Pull(cmd.Context(), s.Session, image, platform, gantryv1.PullPolicy_PULL_POLICY_ALWAYS, quiet)
				if err != nil {
					failed = append(failed, err)
					continue
				}
				s.Put("%s@%s", image, digest)
			}
			return s.Join(failed)
		},
	}
	cmd.Flags().StringVar(&platform, "platform", "", "platform to pull: linux/arm64")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}

// Push pushes an image to its registry and returns its digest.
func Push(ctx context.Context, s *verb.Session, image string, all, quiet bool) (string, error) {
	return move(ctx, s, image, quiet, func(c *client.Client, key *gantryv1.RegistryAuth, each steps) error {
		return client.Each(ctx, c.Images.Push, &gantryv1.PushRequest{Image: image, Auth: key, AllPlatforms: all}, each)
	})
}

func (s verbs) imagePush() *cobra.Command {
	var all, quiet bool
	cmd := &cobra.Command{
		Use: "push IMAGE", Short: "Push an image to its registry", Args: verb.Between(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			digest, err := Push(cmd.Context(), s.Session, args[0], all, quiet)
			if err == nil {
				s.Put("%s@%s", args[0], digest)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&all, "all-platforms", false, "push every platform that is here")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}

func (s verbs) imageImport() *cobra.Command {
	var input string
	cmd := &cobra.Command{
		Use: "import [FILE|DIRECTORY|-] [NAME]", Short: "Read images from an OCI layout or an archive of docker save", Aliases: []string{"load"}, Args: verb.Between(0, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if input != "" {
				args = append([]string{input}, args...)
			}
			if len(args) == 0 {
				args = []string{"-"}
			}
			if args[0] == "-" && terminal.Is(s.In) {
				return verb.Usage(cmd, "import needs a file, or an archive on standard input")
			}
			reference := ""
			if len(args) == 2 {
				reference = args[1]
			}
			return s.importFrom(cmd.Context(), args[0], reference)
		},
	}
	cmd.Flags().StringVarP(&input, "input", "i", "", "file to read")
	return cmd
}

// importFrom loads an archive; an error about what is in it names it.
func (s verbs) importFrom(ctx context.Context, path, reference string) error {
	var from io.Reader = s.In
	if path != "-" {
		f, err := imagearchive.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		from = f
	}
	c, err := s.Client()
	if err != nil {
		return err
	}
	images, err := imagearchive.Send(c.Images.Import(ctx), from, reference)
	if err != nil && path != "-" {
		return fault.Wrap(fault.KindOf(err), err, "%s", path)
	}
	if err != nil {
		return err
	}
	for _, image := range images {
		names := image.GetReferences()
		if len(names) == 0 {
			names = []string{image.GetDigest()}
		}
		for _, name := range names {
			s.Put("%s", name)
		}
	}
	return nil
}

func (s verbs) imageExport() *cobra.Command {
	var output, platform string
	cmd := &cobra.Command{
		Use: "export IMAGE... -o FILE", Short: "Write images as an OCI layout that docker load reads too", Aliases: []string{"save"}, Args: verb.Between(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output == "" && terminal.Is(s.Out) {
				return verb.Usage(cmd, "an archive is not for terminals; name a file with -o")
			}
			return s.export(cmd.Context(), output, &gantryv1.ExportRequest{Images: args, Platform: platform})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "file to write in place of standard output")
	cmd.Flags().StringVar(&platform, "platform", "", "only this platform")
	return cmd
}

func (s verbs) export(ctx context.Context, output string, req *gantryv1.ExportRequest) (err error) {
	c, err := s.Client()
	if err != nil {
		return err
	}
	if output == "" || output == "-" {
		return client.Each(ctx, c.Images.Export, req, func(chunk *gantryv1.ExportChunk) error {
			_, err := s.Out.Write(chunk.GetData())
			return err
		})
	}
	// A broken export must not leave half an archive under the name.
	f, err := os.CreateTemp(filepath.Dir(output), ".gantry-export-*")
	if err != nil {
		return fault.Wrap(fault.Denied, err, "the archive cannot be written")
	}
	defer os.Remove(f.Name())
	err = client.Each(ctx, c.Images.Export, req, func(chunk *gantryv1.ExportChunk) error {
		_, err := f.Write(chunk.GetData())
		return err
	})
	if cerr := errors.Join(f.Chmod(0o644), f.Close()); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), output)
}

func (s verbs) imageBootstrap() *cobra.Command {
	req := &gantryv1.BootstrapRequest{}
	var quiet bool
	cmd := &cobra.Command{
		Use:   "bootstrap DISTRIBUTION:RELEASE",
		Short: "Make a base image from a distribution's signed packages, without a registry",
		Long: `Make a base image from a distribution's signed packages, from the mirrors that this machine is configured with:

  gantry image bootstrap debian:bookworm --include ca-certificates,python3`,
		Args: verb.Between(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			req.Image = args[0]
			digest, err := follow(s.Session, args[0], quiet, func(each steps) error {
				return client.Each(cmd.Context(), c.Images.Bootstrap, req, each)
			})
			if err == nil {
				s.Put("%s@%s", args[0], digest)
			}
			return err
		},
	}
	cmd.Flags().StringSliceVar(&req.Include, "include", nil, "packages to add")
	cmd.Flags().StringVar(&req.Variant, "variant", "", "minbase, essential, apt or standard")
	cmd.Flags().StringArrayVarP(&req.Tags, "tag", "t", nil, "further name of the result")
	cmd.Flags().BoolVar(&req.Force, "force", false, "make it again even if it is there")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}

func (s verbs) imageTag() *cobra.Command {
	return &cobra.Command{
		Use: "tag IMAGE NAME", Short: "Give an image another name", Args: verb.Between(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := s.Client()
			if err != nil {
				return err
			}
			_, err = client.Call(cmd.Context(), c.Images.Tag, &gantryv1.TagRequest{Source: args[0], Target: args[1]})
			return err
		},
	}
}

// Remove takes a name off an image on all machines, and the image with its last name.
func Remove(ctx context.Context, s *verb.Session, image string, force bool) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	got, err := client.Call(ctx, c.Images.Remove, &gantryv1.RemoveImageRequest{Image: image, Force: force})
	if err != nil {
		return err
	}
	for _, name := range got.GetUntagged() {
		s.Put("Untagged: %s", name)
	}
	for _, digest := range got.GetDeleted() {
		s.Put("Deleted: %s", digest)
	}
	return s.Missing(got.GetFailures())
}

func (s verbs) imageRm() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm IMAGE...", Short: "Remove images from all machines", Aliases: []string{"remove"}, Args: verb.Between(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var failed []error
			for _, image := range args {
				if err := Remove(cmd.Context(), s.Session, image, force); err != nil {
					failed = append(failed, err)
				}
			}
			return s.Join(failed)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "even if something uses it")
	return cmd
}

func (s verbs) imagePrune() *cobra.Command {
	var all, force bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove images without a name, with -a all that nothing uses", Args: verb.Between(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			what := "all images without a name"
			if all {
				what = "all images that no container and no kept release uses"
			}
			if err := s.Confirm(force, what); err != nil {
				return err
			}
			return Prune(cmd.Context(), s.Session, all)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also named ones that nothing uses")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	return cmd
}

// Prune removes images that nothing uses, with all named ones too.
func Prune(ctx context.Context, s *verb.Session, all bool) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	got, err := client.Call(ctx, c.Images.Prune, &gantryv1.PruneImagesRequest{All: all})
	if err != nil {
		return err
	}
	for _, name := range got.GetRemoved() {
		s.Put("%s", name)
	}
	s.Say("%s removed, %s reclaimed", verb.Count(len(got.GetRemoved()), "image"), human.Size(got.GetReclaimed()))
	return s.Missing(got.GetFailures())
}

func (s verbs) inspectImages(ctx context.Context, names []string, platform string) ([]*gantryv1.InspectImageResponse, error) {
	c, err := s.Client()
	if err != nil {
		return nil, err
	}
	var found []*gantryv1.InspectImageResponse
	var failed []error
	for _, name := range names {
		got, err := client.Call(ctx, c.Images.Inspect, &gantryv1.InspectImageRequest{Image: name, Platform: platform})
		if err != nil {
			failed = append(failed, err)
			continue
		}
		found = append(found, got)
	}
	return found, s.Join(failed)
}

func (s verbs) imageInspect() *cobra.Command {
	var platform string
	cmd := &cobra.Command{
		Use: "inspect IMAGE...", Short: "Print all that is known of images", Args: verb.Between(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			found, failed := s.inspectImages(cmd.Context(), args, platform)
			return errors.Join(s.putImages(found), failed)
		},
	}
	cmd.Flags().StringVar(&platform, "platform", "", "platform to look at")
	return s.OutputFlag(cmd, "json")
}

func (s verbs) imageHistory() *cobra.Command {
	var noTrunc bool
	cmd := &cobra.Command{
		Use: "history IMAGE", Short: "Print how an image was made, newest step first", Args: verb.Between(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			found, err := s.inspectImages(cmd.Context(), args, "")
			if err != nil {
				return err
			}
			steps := found[0].GetHistory()
			return verb.List(s.Session, steps, func() error {
				tab := table.New("LAYER", "CREATED", "SIZE", "MADE BY", "COMMENT")
				for i := len(steps) - 1; i >= 0; i-- {
					h := steps[i]
					by, layer := h.GetCreatedBy(), verb.Short(strings.TrimPrefix(h.GetLayer(), "sha256:"))
					if r := []rune(by); len(r) > 60 && !noTrunc {
						by = string(r[:59]) + "…"
					}
					if h.GetEmpty() {
						layer = "-"
					}
					tab.Row(layer, verb.Ago(h.GetCreatedAt()), human.Size(h.GetSize()), by, h.GetComment())
				}
				return tab.Write(s.Out)
			})
		},
	}
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "print whole commands")
	return s.OutputFlag(cmd, "table")
}

// Pull makes an image be there by a policy and returns its digest. What is there already is not mentioned.
func Pull(ctx context.Context, s *verb.Session, image, platform string, policy gantryv1.PullPolicy, quiet bool) (string, error) {
	return move(ctx, s, image, quiet, func(c *client.Client, key *gantryv1.RegistryAuth, each steps) error {
		return client.Each(ctx, c.Images.Pull, &gantryv1.PullRequest{Image: image, Platform: platform, Auth: key, Policy: policy}, each)
	})
}

// steps takes what the daemon says while it works on an image.
type steps func(*gantryv1.Progress) error

// move has an image moved with the credentials for its registry, and returns its digest.
func move(ctx context.Context, s *verb.Session, image string, quiet bool, call func(*client.Client, *gantryv1.RegistryAuth, steps) error) (string, error) {
	c, err := s.Client()
	if err != nil {
		return "", err
	}
	key, err := auth(ctx, image)
	if err != nil {
		return "", err
	}
	return follow(s, image, quiet, func(each steps) error { return call(c, key, each) })
}

// follow shows the steps of a call and returns the digest of the image that it ends with.
func follow(s *verb.Session, image string, quiet bool, call func(steps) error) (digest string, err error) {
	show := transfer(s, image, quiet)
	err = call(func(e *gantryv1.Progress) error {
		if e.GetImage() != nil {
			digest = e.GetImage().GetDigest()
		}
		show(e)
		return nil
	})
	if err == nil && digest == "" {
		err = fault.New(fault.Internal, "the work on %s ended without an image", image).WithHint("gantry image ls")
	}
	return digest, err
}

// transfer makes what shows the steps of moving an image. An image that was there says nothing.
func transfer(s *verb.Session, title string, quiet bool) func(*gantryv1.Progress) {
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

func auth(ctx context.Context, image string) (*gantryv1.RegistryAuth, error) {
	keys, err := dockerauth.Load()
	if err != nil {
		return nil, err
	}
	return keys.For(ctx, image)
}

// Auths gives all credentials there are, for work that may reach any registry.
func Auths(ctx context.Context, s *verb.Session) ([]*gantryv1.RegistryAuth, error) {
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
