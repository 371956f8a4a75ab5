package compose

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/types"
	"go.yaml.in/yaml/v4"

	"github.com/gantryd/gantry/fault"
)

// sources are all files that the loader will read, parsed beside it to know the lines and to refuse what could hurt.
type sources struct {
	in     *inputs
	files  []*sourceFile // the given ones in their order, then those that they lead to
	mains  int
	byPath map[string]*sourceFile
	edges  int
}

type sourceFile struct {
	path    string
	content []byte
	docs    []*yaml.Node
	// dir is what relative paths in extends and include start from.
	dir string
}

const (
	maxFiles = 1000
	// maxEdges bounds includes and extends together; the loader follows some of them more than once.
	maxEdges = 5000
	maxChain = 50
)

// readSources reads the files, and settles the app's name, which later ones may use in variables.
func readSources(in *inputs) (*sources, error) {
	s := &sources{in: in, byPath: map[string]*sourceFile{}}
	for _, path := range in.files {
		if _, err := s.read(path, in.dir, "the Compose file"); err != nil {
			return nil, err
		}
	}
	s.mains = len(s.files)
	if err := in.appName(s.projectName()); err != nil {
		return nil, err
	}
	for _, path := range in.files {
		if err := s.follow(s.byPath[path], in.env, []string{path}); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *sources) read(path, dir, what string) (*sourceFile, error) {
	if f := s.byPath[path]; f != nil {
		return f, nil
	}
	if len(s.files) == maxFiles {
		return nil, fault.New(fault.Invalid, "the app is made of more than %d files", maxFiles)
	}
	f := &sourceFile{path: path, dir: dir}
	var err error
	if path == stdinName {
		f.content, err = readStdin()
	} else {
		f.content, err = readRegular(what, path)
	}
	if err == nil {
		err = f.checkDensity()
	}
	if err == nil {
		err = f.parse()
	}
	if err == nil {
		err = f.checkNames()
	}
	if err == nil {
		err = f.checkPorts()
	}
	if err != nil {
		return nil, err
	}
	s.byPath[path] = f
	s.files = append(s.files, f)
	return f, nil
}

// maxMarks is more than maxNodes values can have, and keeps the parser from filling the memory first.
const maxMarks = 10 * maxNodes

func (f *sourceFile) checkDensity() error {
	marks := 0
	for _, c := range f.content {
		switch c {
		case ',', ':', '-', '[', '{', '\n':
			marks++
		}
	}
	if marks > maxMarks {
		return fault.New(fault.Invalid, "%s holds more than %d values", f.path, maxNodes).WithHint("split the app, or mount files instead of writing them out")
	}
	return nil
}

func (f *sourceFile) parse() error {
	d := yaml.NewDecoder(bytes.NewReader(f.content))
	for {
		var n yaml.Node
		err := d.Decode(&n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fault.New(fault.Invalid, "%s is not YAML: %s", f.path, shorten(clean(strings.TrimPrefix(err.Error(), "yaml: ")))).
				WithHint("mind the indentation: spaces only, the same number on each level")
		}
		if err := checkShape(f.path, &n); err != nil {
			return err
		}
		if r := root(&n); r.Kind != yaml.MappingNode && r.Tag != "!!null" || strings.HasPrefix(r.Tag, "!") && !strings.HasPrefix(r.Tag, "!!") {
			return fault.New(fault.Invalid, "%s:%d: the file is not a mapping of keys to values", f.path, r.Line).
				WithHint("start it with services:")
		}
		f.docs = append(f.docs, &n)
	}
}

// projectName is the last top-level name, with variables filled in.
func (s *sources) projectName() string {
	name := ""
	for _, f := range s.files {
		for _, d := range f.docs {
			if _, v := mapEntry(root(d), "name"); v != nil && v.Value != "" {
				if filled, err := template.Substitute(v.Value, s.in.env.Resolve); err == nil {
					name = filled
				}
			}
		}
	}
	return name
}

// follow reads what f includes and extends. The chain of files is for cycles.
func (s *sources) follow(f *sourceFile, env types.Mapping, chain []string) error {
	if len(chain) > maxChain {
		return s.refuseChain(f, nil, "more than 50 files include or extend one another in a row")
	}
	for _, d := range f.docs {
		if _, list := mapEntry(root(d), "include"); list != nil {
			for _, item := range items(list) {
				if err := s.followInclude(f, item, env, chain); err != nil {
					return err
				}
			}
		}
		for _, kind := range []string{"services", "jobs"} {
			_, services := mapEntry(root(d), kind)
			for _, svc := range values(services) {
				if err := s.followExtends(f, svc, env, chain); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (s *sources) followInclude(f *sourceFile, item *yaml.Node, env types.Mapping, chain []string) error {
	paths, dir := []*yaml.Node{item}, ""
	if item.Kind == yaml.MappingNode {
		_, p := mapEntry(item, "path")
		paths = items(p)
		if _, d := mapEntry(item, "project_directory"); d != nil {
			dir = fill(d.Value, env)
		}
	}
	var found []*sourceFile
	for i, p := range paths {
		path, err := s.localPath(f, p, env, "included")
		if err != nil {
			return err
		}
		if dir == "" && i == 0 {
			dir = filepath.Dir(path)
		}
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(f.dir, dir)
		}
		if err := s.countEdge(f, p, path, chain); err != nil {
			return err
		}
		inc, err := s.read(path, dir, fmt.Sprintf("%s:%d: the included file", f.path, p.Line))
		if err != nil {
			return err
		}
		found = append(found, inc)
	}
	inner, err := includeEnv(f, item, dir, env)
	if err != nil {
		return err
	}
	for _, inc := range found {
		if err := s.follow(inc, inner, append(chain, inc.path)); err != nil {
			return err
		}
	}
	return nil
}

// includeEnv is the environment of an included file: its own .env or env_file below the given one.
func includeEnv(f *sourceFile, item *yaml.Node, dir string, env types.Mapping) (types.Mapping, error) {
	files := []string{}
	if _, list := mapEntry(item, "env_file"); list != nil {
		for _, n := range items(list) {
			p := fill(n.Value, env)
			if p == "/dev/null" {
				continue
			}
			if !filepath.IsAbs(p) {
				p = filepath.Join(f.dir, p)
			}
			files = append(files, p)
		}
	} else if p := firstExisting(dir, ".env"); p != "" {
		files = append(files, p)
	}
	for _, p := range files {
		if err := checkRegular(fmt.Sprintf("%s:%d: the env file", f.path, item.Line), p); err != nil {
			return nil, err
		}
	}
	vars, err := dotenv.GetEnvFromFile(env, files)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s:%d: %s", f.path, item.Line, clean(err.Error())).WithHint("write one KEY=VALUE a line")
	}
	return env.Clone().Merge(vars), nil
}

func (s *sources) followExtends(f *sourceFile, service *yaml.Node, env types.Mapping, chain []string) error {
	_, e := mapEntry(service, "extends")
	_, file := mapEntry(e, "file")
	if file == nil {
		return nil
	}
	path, err := s.localPath(f, file, env, "extended")
	if err != nil {
		return err
	}
	if err := s.countEdge(f, file, "", chain); err != nil {
		return err
	}
	if path == f.path || s.byPath[path] != nil {
		return nil // services may extend one another across files; the loader finds their cycles
	}
	ext, err := s.read(path, filepath.Dir(path), fmt.Sprintf("%s:%d: the extended file", f.path, file.Line))
	if err != nil {
		return err
	}
	return s.follow(ext, env, append(chain, path))
}

func (s *sources) localPath(f *sourceFile, n *yaml.Node, env types.Mapping, what string) (string, error) {
	p := fill(n.Value, env)
	if isRemote(p) {
		return "", fault.New(fault.Unsupported, "%s:%d: the %s file %q is remote, which is not supported", f.path, n.Line, what, clean(shorten(p))).
			WithHint("download it beside the Compose file and read it before running it")
	}
	if !filepath.IsAbs(p) {
		p = filepath.Join(f.dir, p)
	}
	return filepath.Clean(p), nil
}

// countEdge refuses a cycle and bounds the number of files that refer to one another.
func (s *sources) countEdge(f *sourceFile, n *yaml.Node, path string, chain []string) error {
	for i, c := range chain {
		if c == path {
			return s.refuseChain(f, n, "files include one another in a cycle: "+strings.Join(append(chain[i:len(chain):len(chain)], path), " → "))
		}
	}
	if s.edges++; s.edges > maxEdges {
		return s.refuseChain(f, n, fmt.Sprintf("there are more than %d includes and extends", maxEdges))
	}
	return nil
}

func (s *sources) refuseChain(f *sourceFile, n *yaml.Node, msg string) error {
	at := position{file: f.path}
	if n != nil {
		at.line = n.Line
	}
	return fault.New(fault.Invalid, "%s: %s", at, clean(msg)).WithHint("move what is shared into one file that includes nothing")
}

func fill(s string, env types.Mapping) string {
	if out, err := template.SubstituteWithOptions(s, env.Resolve, template.WithoutLogging); err == nil {
		return out
	}
	return s
}
