package verb

import (
	"context"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/gantryd/gantry/cli/appname"
	"github.com/gantryd/gantry/compose"
	"github.com/gantryd/gantry/fault"
)

// ComposeFlags say which Compose files make up the app, with Compose's own names.
type ComposeFlags struct {
	Files, EnvFiles, Profiles []string
	Project, Dir              string
}

// Register adds the flags; a command that uses -f or -p for something else keeps the long names only.
func (c *ComposeFlags) Register(fs *pflag.FlagSet, shortFile, shortProject string) {
	fs.StringArrayVarP(&c.Files, "file", shortFile, nil, "Compose file (several are merged)")
	fs.StringVarP(&c.Project, "project-name", shortProject, "", "name of the app")
	fs.StringVar(&c.Dir, "project-directory", "", "directory that paths in the file are relative to")
}

// RegisterLoading adds the flags that only matter where the whole file is read.
func (c *ComposeFlags) RegisterLoading(fs *pflag.FlagSet) {
	c.Register(fs, "f", "p")
	fs.StringArrayVar(&c.Profiles, "profile", nil, "enable a profile")
	fs.StringArrayVar(&c.EnvFiles, "env-file", nil, "read variables from this file instead of .env")
}

// Load reads the Compose files and shows their warnings.
func (s *Session) Load(ctx context.Context) (*compose.Project, error) {
	c := s.Compose
	p, err := compose.Load(ctx, compose.Options{
		Files: c.Paths(), EnvFiles: c.EnvFiles, ProjectDir: c.Dir, ProjectName: c.Project,
		Profiles: c.Profiles, Environ: os.Environ(), Environment: s.Environment,
	})
	if err != nil {
		return nil, err
	}
	for _, w := range p.Warnings {
		s.Warn("%s", w.String())
	}
	return p, nil
}

// Paths gives the files named by flags or the environment, none for the default names.
func (c *ComposeFlags) Paths() []string {
	if len(c.Files) > 0 {
		return c.Files
	}
	sep := EnvOr("COMPOSE_PATH_SEPARATOR", string(os.PathListSeparator))
	return SplitList(os.Getenv("COMPOSE_FILE"), sep)
}

func SplitList(s, sep string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(sep, r) })
}

// App names the app that a command works on; it must exist here.
func (s *Session) App(ctx context.Context) (string, error) {
	name, err := s.MaybeApp(ctx)
	if err == nil && name == "" {
		err = fault.New(fault.NotFound, "there is no Compose file here, so it is not clear which app is meant").
			WithHint("go to its folder, name the file with --file, or the app with --project-name")
	}
	return name, err
}

// MaybeApp names the app without reading more than it must, "" where there is none: listing must be quick, and must
// work when the file is broken in places that do not matter.
func (s *Session) MaybeApp(ctx context.Context) (string, error) {
	if s.Compose.Project != "" {
		return s.Compose.Project, nil
	}
	if name := os.Getenv("COMPOSE_PROJECT_NAME"); name != "" {
		return name, nil
	}
	files, dir, err := appname.Find(s.Compose.Paths(), s.Compose.Dir)
	if err != nil || len(files) == 0 {
		return "", err
	}
	name, plain, err := appname.Of(files, dir)
	if err != nil || plain {
		return name, err
	}
	project, err := s.Load(ctx)
	if err != nil {
		return "", err
	}
	return project.Name, nil
}

// HasFile says whether short names belong to an app here.
func (s *Session) HasFile() bool {
	files, _, err := appname.Find(s.Compose.Paths(), s.Compose.Dir)
	return err == nil && len(files) > 0
}
