package compose

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/consts"
	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/gantryd/gantry/fault"
)

// inputs is what to read, after defaults.
type inputs struct {
	dir      string // absolute
	files    []string
	env      types.Mapping
	profiles []string
	// name is the app's; set by readSources if the files have a say.
	name         string
	nameExplicit bool
}

// stdinName stands for standard input, as the specification's tools have it.
const stdinName = "-"

const (
	maxFile = 10 << 20 // bytes of one Compose, .env or label file
	maxStep = 64       // parents searched for a Compose file
)

func findInputs(o Options) (*inputs, error) {
	in := &inputs{env: environ(o.Environ)}
	dir, err := projectDir(o)
	if err != nil {
		return nil, err
	}
	in.dir = dir
	if err := in.readDotEnv(o.EnvFiles); err != nil {
		return nil, err
	}
	if err := in.findFiles(o); err != nil {
		return nil, err
	}
	in.profiles = o.Profiles
	if len(in.profiles) == 0 {
		for p := range strings.SplitSeq(in.env[consts.ComposeProfiles], ",") {
			in.profiles = append(in.profiles, strings.TrimSpace(p))
		}
	}
	in.name, in.nameExplicit = o.ProjectName, o.ProjectName != ""
	if in.name == "" {
		in.name, in.nameExplicit = in.env[consts.ComposeProjectName], in.env[consts.ComposeProjectName] != ""
	}
	return in, nil
}

func environ(list []string) types.Mapping {
	m := types.Mapping{}
	for _, e := range list {
		if k, v, ok := strings.Cut(e, "="); ok && k != "" {
			m[k] = v
		}
	}
	return m
}

func projectDir(o Options) (string, error) {
	dir := o.ProjectDir
	if dir == "" && len(o.Files) > 0 && o.Files[0] != stdinName {
		dir = filepath.Dir(o.Files[0])
	}
	abs, err := filepath.Abs(dir) // "" is the current directory
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "cannot find the current directory")
	}
	if st, err := os.Stat(abs); err != nil || !st.IsDir() {
		return "", fault.New(fault.NotFound, "the project directory %q does not exist", abs).WithHint("choose one with --project-directory")
	}
	return abs, nil
}

// readDotEnv adds the variables of .env below those of the client's environment.
func (in *inputs) readDotEnv(files []string) error {
	if len(files) == 0 {
		def := filepath.Join(in.dir, ".env")
		off, _ := strconv.ParseBool(in.env[consts.ComposeDisableDefaultEnvFile])
		if _, err := os.Stat(def); err != nil || off {
			return nil
		}
		files = []string{def}
	}
	for _, f := range files {
		if err := checkRegular("the env file", f); err != nil {
			return err
		}
	}
	vars, err := dotenv.GetEnvFromFile(in.env, files)
	if err != nil {
		return fault.New(fault.Invalid, "%s", clean(err.Error())).WithHint("write one KEY=VALUE a line")
	}
	in.env.Merge(vars)
	return nil
}

func (in *inputs) findFiles(o Options) error {
	files := o.Files
	if list := in.env[consts.ComposeFilePath]; len(files) == 0 && list != "" {
		sep := in.env[consts.ComposePathSeparator]
		if sep == "" {
			sep = string(os.PathListSeparator)
		}
		files = strings.Split(list, sep)
	}
	if len(files) == 0 {
		return in.discover(o.ProjectDir == "" && len(o.EnvFiles) == 0)
	}
	for _, f := range files {
		if isRemote(f) {
			return fault.New(fault.Unsupported, "the Compose file %q is remote", f).WithHint("download it first and read it before running it")
		}
		if f != stdinName {
			abs, err := filepath.Abs(f)
			if err != nil {
				return fault.Wrap(fault.Invalid, err, "the Compose file %q cannot be found", f)
			}
			f = abs
		}
		in.files = append(in.files, f)
	}
	return nil
}

// discover looks for the default names here and in the parents.
func (in *inputs) discover(mayMove bool) error {
	dir := in.dir
	for range maxStep {
		if f := firstExisting(dir, "compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"); f != "" {
			in.files = []string{f}
			if f := firstExisting(dir, "compose.override.yml", "compose.override.yaml",
				"docker-compose.override.yml", "docker-compose.override.yaml"); f != "" {
				in.files = append(in.files, f)
			}
			if dir == in.dir {
				return nil
			}
			in.dir = dir
			return in.readDotEnv(nil)
		}
		parent := filepath.Dir(dir)
		if parent == dir || !mayMove {
			break
		}
		dir = parent
	}
	return fault.New(fault.NotFound, "there is no Compose file in %s", in.dir).
		WithHint("write a compose.yaml, or name a file with -f")
}

func firstExisting(dir string, names ...string) string {
	for _, n := range names {
		if _, err := os.Stat(filepath.Join(dir, n)); err == nil {
			return filepath.Join(dir, n)
		}
	}
	return ""
}

// isRemote says whether a reference to a file is an address.
func isRemote(ref string) bool {
	for _, p := range []string{"git@", "github.com/"} {
		if strings.HasPrefix(ref, p) {
			return true
		}
	}
	return strings.Contains(ref, "://") || strings.HasPrefix(ref, "oci:")
}

// checkRegular refuses what could be read for ever or is too large.
func checkRegular(what, path string) error {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.NotFound, "%s %q does not exist", what, path).WithHint("check the path; relative ones start from the project directory")
	case err != nil:
		return fault.Wrap(fault.Denied, err, "%s %q cannot be read", what, path)
	case st.IsDir():
		return fault.New(fault.Invalid, "%s %q is a directory", what, path).WithHint("name a file in it")
	case !st.Mode().IsRegular():
		return fault.New(fault.Invalid, "%s %q is not a regular file", what, path).WithHint("name a file on disk")
	case st.Size() > maxFile:
		return tooLarge(what, path)
	}
	return nil
}

func tooLarge(what, path string) error {
	return fault.New(fault.Invalid, "%s %q is larger than %d MiB", what, path, maxFile>>20).WithHint("split it with include")
}

func readRegular(what, path string) ([]byte, error) {
	if err := checkRegular(what, path); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Wrap(fault.Denied, err, "%s %q cannot be read", what, path)
	}
	return b, nil
}

func readStdin() ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(os.Stdin, maxFile+1))
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read the Compose file from standard input")
	}
	if len(b) > maxFile {
		return nil, tooLarge("the Compose file", "standard input")
	}
	return b, nil
}

// appName is the given name, else the files', else the directory's.
func (in *inputs) appName(fromFiles string) error {
	switch {
	case in.nameExplicit:
	case fromFiles != "":
		in.name = fromFiles
	default:
		in.name = loader.NormalizeProjectName(filepath.Base(in.dir))
	}
	if err := checkName("app", in.name); err != nil {
		return fmt.Errorf("in %s: %w", in.dir, err)
	}
	in.env[consts.ComposeProjectName] = in.name
	return nil
}
