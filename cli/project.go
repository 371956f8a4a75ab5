package cli

import (
	"context"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/gantryd/gantry/cli/appname"
	"github.com/gantryd/gantry/compose"
	"github.com/gantryd/gantry/fault"
)

// composeFlags say which Compose files make up the app, with Compose's own names.
type composeFlags struct {
	files, envFiles, profiles []string
	project, dir              string
}

// register adds the flags; a command that uses -f or -p for something else keeps the long names only.
func (c *composeFlags) register(fs *pflag.FlagSet, shortFile, shortProject string) {
	fs.StringArrayVarP(&c.files, "file", shortFile, nil, "Compose file (several are merged)")
	fs.StringVarP(&c.project, "project-name", shortProject, "", "name of the app")
	fs.StringVar(&c.dir, "project-directory", "", "directory that paths in the file are relative to")
}

// registerLoading adds the flags that only matter where the whole file is read.
func (c *composeFlags) registerLoading(fs *pflag.FlagSet) {
	c.register(fs, "f", "p")
	fs.StringArrayVar(&c.profiles, "profile", nil, "enable a profile")
	fs.StringArrayVar(&c.envFiles, "env-file", nil, "read variables from this file instead of .env")
}

// load reads the Compose files and shows their warnings.
func (s *session) load(ctx context.Context) (*compose.Project, error) {
	c := s.compose
	p, err := compose.Load(ctx, compose.Options{
		Files: c.paths(), EnvFiles: c.envFiles, ProjectDir: c.dir, ProjectName: c.project,
		Profiles: c.profiles, Environ: os.Environ(), Environment: s.environment,
	})
	if err != nil {
		return nil, err
	}
	for _, w := range p.Warnings {
		s.warn("%s", w.String())
	}
	return p, nil
}

// paths gives the files named by flags or the environment, none for the default names.
func (c *composeFlags) paths() []string {
	if len(c.files) > 0 {
		return c.files
	}
	sep := envOr("COMPOSE_PATH_SEPARATOR", string(os.PathListSeparator))
	return splitList(os.Getenv("COMPOSE_FILE"), sep)
}

func splitList(s, sep string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(sep, r) })
}

// app names the app that a command works on; it must exist here.
func (s *session) app(ctx context.Context) (string, error) {
	name, err := s.maybeApp(ctx)
	if err == nil && name == "" {
		err = fault.New(fault.NotFound, "there is no Compose file here, so it is not clear which app is meant").
			WithHint("go to its folder, name the file with --file, or the app with --project-name")
	}
	return name, err
}

// maybeApp names the app without reading more than it must, "" where there is none: listing must be quick, and must
// work when the file is broken in places that do not matter.
func (s *session) maybeApp(ctx context.Context) (string, error) {
	if s.compose.project != "" {
		return s.compose.project, nil
	}
	if name := os.Getenv("COMPOSE_PROJECT_NAME"); name != "" {
		return name, nil
	}
	files, dir, err := appname.Find(s.compose.paths(), s.compose.dir)
	if err != nil || len(files) == 0 {
		return "", err
	}
	name, plain, err := appname.Of(files, dir)
	if err != nil || plain {
		return name, err
	}
	project, err := s.load(ctx)
	if err != nil {
		return "", err
	}
	return project.Name, nil
}
