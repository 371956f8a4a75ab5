package cli

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

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
	files, dir, err := s.compose.find()
	if err != nil || len(files) == 0 {
		return "", err
	}
	if name := dotEnv(filepath.Join(dir, ".env"), "COMPOSE_PROJECT_NAME"); name != "" {
		return name, nil
	}
	name := ""
	for _, file := range files {
		n, plain, err := nameIn(file)
		if err != nil {
			return "", err
		}
		if !plain {
			p, err := s.load(ctx)
			if err != nil {
				return "", err
			}
			return p.Name, nil
		}
		if n != "" {
			name = n
		}
	}
	if name == "" {
		name = projectName(filepath.Base(dir))
	}
	return name, nil
}

// find locates the Compose files: those named, else the nearest default one here or above.
func (c *composeFlags) find() (files []string, dir string, err error) {
	if files = c.paths(); len(files) > 0 {
		dir = c.dir
		if dir == "" {
			dir = filepath.Dir(files[0])
		}
		dir, err = filepath.Abs(dir)
		return files, dir, err
	}
	if dir, err = filepath.Abs(c.dir); err != nil {
		return nil, "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		for _, name := range []string{"compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"} {
			path := filepath.Join(at, name)
			if _, err := os.Stat(path); err == nil {
				return []string{path}, at, nil
			} else if !errors.Is(err, fs.ErrNotExist) {
				return nil, "", fault.Wrap(fault.Denied, err, "the Compose file cannot be read")
			}
		}
		if at == filepath.Dir(at) || c.dir != "" {
			return nil, "", nil
		}
	}
}

// nameIn finds the top-level name of a Compose file; plain is false if only the whole loader can tell.
func nameIn(path string) (name string, plain bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", false, fault.Wrap(fault.NotFound, err, "the Compose file cannot be read")
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "{") || strings.HasPrefix(line, `"`) || strings.HasPrefix(line, "'") || strings.HasPrefix(line, "?") {
			return "", false, nil
		}
		value, ok := strings.CutPrefix(line, "name:")
		if !ok {
			continue
		}
		value, _, _ = strings.Cut(value, " #")
		value = strings.TrimSpace(value)
		if strings.ContainsAny(value, "$&*!|>\\") {
			return "", false, nil
		}
		name = strings.Trim(value, `"'`)
	}
	return name, true, lines.Err()
}

// dotEnv reads one plain variable of a .env file.
func dotEnv(path, variable string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for _, line := range strings.Split(string(data), "\n") {
		key, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		if ok && strings.TrimSpace(key) == variable {
			return strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	return ""
}

// projectName makes a valid name of a directory's, by Compose's rule.
func projectName(dir string) string {
	keep := func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_' || r == '-' {
			return r
		}
		return -1
	}
	return strings.TrimLeft(strings.Map(keep, strings.ToLower(dir)), "_-")
}
