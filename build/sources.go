package build

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"

	"github.com/gantryd/gantry/fault"
)

// localDockerfile and localContext are the names under which BuildKit asks for them.
const (
	localDockerfile = "dockerfile"
	localContext    = "context"
)

// sources are the files a build reads: its directories by name, and where in them the Dockerfile is.
type sources struct {
	dirs       map[string]string
	dockerfile string
	// text is the Dockerfile's content, nil when it comes with a remote context.
	text []byte
	// url is set for a context that BuildKit fetches itself.
	url string
	// scratch is removed when the build is over.
	scratch string
}

func (s sources) has(name string) bool { return s.dirs[name] != "" }

func (s sources) close() {
	if s.scratch != "" {
		os.RemoveAll(s.scratch)
	}
}

// prepare finds the request's Dockerfile and contexts. Close the result.
func (b *Builder) prepare(req Request) (_ sources, err error) {
	s := sources{dirs: map[string]string{}}
	for name, dir := range req.Contexts {
		s.dirs[name] = dir
	}
	delete(s.dirs, localDockerfile)
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.scratch, err = b.scratch(); err != nil {
		return s, err
	}
	if err := s.findContext(req); err != nil {
		return s, err
	}
	return s, s.findDockerfile(req)
}

func (b *Builder) scratch() (string, error) {
	parent := filepath.Join(b.opts.Run, "dockerfiles")
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "make a directory for the build")
	}
	dir, err := os.MkdirTemp(parent, "")
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "make a directory for the build")
	}
	return dir, nil
}

func (s *sources) findContext(req Request) error {
	if s.has(localContext) {
		return nil
	}
	if where := req.Start.GetSpec().GetContext(); remote.MatchString(where) {
		if req.Start.GetOffline() {
			return fault.New(fault.Denied, "the context is at %s, and the build may not use the network", where)
		}
		s.url = where
		return nil
	}
	// A Dockerfile without COPY needs no context.
	s.dirs[localContext] = filepath.Join(s.scratch, "context")
	return os.Mkdir(s.dirs[localContext], 0o755)
}

func (s *sources) findDockerfile(req Request) error {
	spec := req.Start.GetSpec()
	path := or(spec.GetDockerfile(), "Dockerfile")
	text := req.Start.GetDockerfile()
	if text == nil && spec.GetDockerfileInline() != "" {
		text = []byte(spec.GetDockerfileInline())
	}
	switch {
	case text != nil:
		return s.writeDockerfile(filepath.Base(path), text)
	case s.url != "":
		s.dockerfile = path
		return nil
	}
	path = filepath.Clean(path)
	if !filepath.IsLocal(path) {
		return fault.New(fault.Invalid, "the Dockerfile %s is outside of the context, and its content was not sent", path).
			WithHint("give a path inside of the context, or send the file's content")
	}
	return s.readDockerfile(path)
}

func (s *sources) writeDockerfile(name string, text []byte) error {
	if !filepath.IsLocal(name) || name == "." {
		name = "Dockerfile"
	}
	dir := filepath.Join(s.scratch, "dockerfile")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	s.dirs[localDockerfile], s.dockerfile, s.text = dir, name, text
	return os.WriteFile(filepath.Join(dir, name), text, 0o600)
}

func (s *sources) readDockerfile(path string) error {
	root, err := os.OpenRoot(s.dirs[localContext])
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "open the build context")
	}
	defer root.Close()
	text, err := root.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && filepath.Base(path) == "Dockerfile" {
		// Docker takes the lower-case name too, and so does BuildKit.
		text, err = root.ReadFile(filepath.Join(filepath.Dir(path), "dockerfile"))
	}
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "there is no %s in the build context", path).
			WithHint("name the file with --file, or build.dockerfile in the Compose file")
	}
	s.dirs[localDockerfile], s.dockerfile, s.text = s.dirs[localContext], path, text
	return nil
}

// mounts opens the directories for BuildKit. Files belong to root in every build, whoever owns them here.
func (s sources) mounts() (filesync.StaticDirSource, error) {
	out := filesync.StaticDirSource{}
	for name, dir := range s.dirs {
		if strings.ContainsAny(name, "\n\x00") {
			return nil, fault.New(fault.Invalid, "context name %q", name)
		}
		tree, err := fsutil.NewFS(dir)
		if err != nil {
			return nil, fault.Wrap(fault.NotFound, err, "open the build context %q", name)
		}
		if out[name], err = fsutil.NewFilterFS(tree, &fsutil.FilterOpt{Map: ownedByRoot}); err != nil {
			return nil, fault.Wrap(fault.Internal, err, "open the build context %q", name)
		}
	}
	return out, nil
}

func ownedByRoot(_ string, st *fstypes.Stat) fsutil.MapResult {
	st.Uid, st.Gid = 0, 0
	return fsutil.MapResultKeep
}
