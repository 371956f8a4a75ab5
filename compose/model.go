package compose

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/sirupsen/logrus"

	"github.com/gantryd/gantry/fault"
)

// model is what the loader made of the files, and what it has no place for.
type model struct {
	project *types.Project
	report  *report
	// named are the networks, volumes, secrets and configs with a name of their own: "networks/front".
	named map[string]bool
	// dependsOn of every service. The loader's search for cycles takes exponential time on a hostile file.
	dependsOn map[string]map[string]types.ServiceDependency
}

func loadModel(ctx context.Context, in *inputs, src *sources) (*model, error) {
	m := &model{report: &report{src: src}, named: map[string]bool{}, dependsOn: map[string]map[string]types.ServiceDependency{}}
	if err := m.load(ctx, in, src); err != nil {
		return nil, loaderFault(err, src)
	}
	m.warnVersion(src)
	return m, nil
}

func (m *model) load(ctx context.Context, in *inputs, src *sources) error {
	details := types.ConfigDetails{WorkingDir: in.dir, Environment: in.env}
	for _, path := range in.files {
		details.ConfigFiles = append(details.ConfigFiles, types.ConfigFile{Filename: path, Content: src.byPath[path].content})
	}
	set := []func(*loader.Options){
		func(o *loader.Options) {
			o.SetProjectName(in.name, true)
			o.MaxNodeVisits = maxNodes
			o.SkipNormalization = true // done below, after the checks
		},
		loader.WithProfiles(in.profiles),
	}
	var dict map[string]any
	err := guard(func() (err error) {
		dict, err = loader.LoadModelWithContext(ctx, details, set...)
		return err
	})
	if err != nil {
		return err
	}
	if err := m.check(dict, in); err != nil {
		return err
	}
	dict["name"] = in.name
	err = guard(func() (err error) {
		if dict, err = loader.Normalize(dict, in.env); err != nil {
			return err
		}
		if err = m.takeDependencies(dict); err != nil {
			return err
		}
		m.project, err = loader.ModelToProject(dict, loader.ToOptions(&details, set), details)
		return err
	})
	if err != nil {
		return err
	}
	return m.checkDependencies()
}

// resolved is the project as Compose writes it, with what was taken out of it put back.
func (m *model) resolved(json bool) ([]byte, error) {
	p := *m.project
	p.Services = maps.Clone(p.Services)
	for name, s := range p.Services {
		s.DependsOn = m.dependsOn[name]
		p.Services[name] = s
	}
	text, err := p.MarshalYAML()
	if json {
		text, err = p.MarshalJSON()
	}
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "the Compose file cannot be written")
	}
	return text, nil
}

// guard makes an error of a panic: the loader trusts the shape of some values that a file can have otherwise.
func guard(do func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fault.New(fault.Invalid, "the Compose file has a value of a shape that no key has: %s", shortenMessage(clean(fmt.Sprint(r)))).
				WithHint("take out the keys that were added last")
		}
	}()
	return do()
}

// check stops before the loader reads any file that the model names.
func (m *model) check(dict map[string]any, in *inputs) error {
	services, _ := dict["services"].(map[string]any)
	for name := range services {
		if msg := checkLabel(name); msg != "" {
			m.report.invalid([]string{"services", name}, "rename the service, such as to web or my-app", "the service name %q cannot be used: %s", shorten(name), msg)
		}
	}
	for _, kind := range []string{"networks", "volumes", "secrets", "configs"} {
		section, _ := dict[kind].(map[string]any)
		for name, v := range section {
			if msg := checkResource(name); msg != "" {
				m.report.invalid([]string{kind, name}, "rename it", "the name %q cannot be used: %s", shorten(name), msg)
			}
			if fields, _ := v.(map[string]any); fields["name"] != nil {
				m.named[kind+"/"+name] = true
			}
		}
	}
	enabled := func(name string) bool { return enabledBy(services[name], in.profiles) }
	checkModel(dict, enabled, m.report)
	for name, s := range services {
		if fields, _ := s.(map[string]any); enabled(name) {
			m.checkNamedFiles(name, fields)
		}
	}
	return m.report.err()
}

func enabledBy(service any, profiles []string) bool {
	fields, _ := service.(map[string]any)
	own, _ := fields["profiles"].([]any)
	if len(own) == 0 || slices.Contains(profiles, "*") {
		return true
	}
	return slices.ContainsFunc(own, func(p any) bool { return slices.Contains(profiles, fmt.Sprint(p)) })
}

// checkNamedFiles looks at env and label files before the loader reads them whole.
func (m *model) checkNamedFiles(service string, fields map[string]any) {
	look := func(key string, i int, path any, required bool) {
		p := fmt.Sprint(path)
		err := checkRegular("the file", p)
		if err == nil || !required && fault.Is(err, fault.NotFound) {
			return
		}
		m.report.add(fault.KindOf(err), []string{"services", service, key, fmt.Sprint(i)}, err.Error(), fault.HintOf(err))
	}
	envFiles, _ := fields["env_file"].([]any)
	for i, e := range envFiles {
		if f, ok := e.(map[string]any); ok {
			look("env_file", i, f["path"], f["required"] != false)
		}
	}
	labelFiles, _ := fields["label_file"].([]any)
	for i, e := range labelFiles {
		look("label_file", i, e, true)
	}
}

func (m *model) warnVersion(src *sources) {
	for _, f := range src.files {
		for _, d := range f.docs {
			if k, _ := mapEntry(root(d), "version"); k != nil {
				m.report.warnings = append(m.report.warnings, Warning{
					File: f.path, Line: k.Line, Key: "version", Message: newMatrixTree(Matrix()).step("version").entry.Note,
				})
			}
		}
	}
}

// logMu guards the one logger of the process while the loader uses it: the loader has no other way to warn.
var logMu sync.Mutex

type logHook func(*logrus.Entry)

func (logHook) Levels() []logrus.Level { return []logrus.Level{logrus.WarnLevel} }

func (h logHook) Fire(e *logrus.Entry) error {
	h(e)
	return nil
}

// withLogs runs do and hands every warning it logs to take, instead of to standard error.
func withLogs(do func() error, take func(message string)) error {
	logMu.Lock()
	defer logMu.Unlock()
	registerRaw()
	l := logrus.StandardLogger()
	out, hooks := l.Out, l.ReplaceHooks(logrus.LevelHooks{})
	defer func() {
		l.SetOutput(out)
		l.ReplaceHooks(hooks)
	}()
	l.SetOutput(io.Discard)
	l.AddHook(logHook(func(e *logrus.Entry) { take(e.Message) }))
	return do()
}

var (
	unsetVariable = regexp.MustCompile(`^The "([^"]*)" variable is not set`)
	keyInMessage  = regexp.MustCompile(`\b(services|networks|volumes|secrets|configs|include)(\.[^\s:,'"\[\]]+)+`)
	extraInError  = regexp.MustCompile(`additional properties '([^']*)'`)
	fileInError   = regexp.MustCompile(`^(validating|failed to parse) [^\n]*?: `)
)

// logged makes a warning of what the loader said.
func (r *report) logged(message string) {
	if strings.Contains(message, "attribute `version` is obsolete") {
		return // named with its line by warnVersion
	}
	w := Warning{Message: clean(message)}
	if v := unsetVariable.FindStringSubmatch(message); v != nil {
		at := r.src.variable(v[1])
		w = Warning{File: at.file, Line: at.line, Message: clean(fmt.Sprintf("the variable %q is not set; an empty string is used", v[1]))}
	}
	r.warnings = append(r.warnings, w)
}

// variable finds the first use of a variable.
func (s *sources) variable(name string) position {
	use := regexp.MustCompile(`(?:^|[^$])(?:\$\$)*\$\{?` + regexp.QuoteMeta(name) + `(?:[^A-Za-z0-9_]|$)`)
	for _, f := range s.files {
		line := 0
		for l := range strings.Lines(string(f.content)) {
			line++
			if use.MatchString(strings.TrimSuffix(l, "\n")) && !strings.HasPrefix(strings.TrimSpace(l), "#") {
				return position{f.path, line}
			}
		}
	}
	return position{}
}

// loaderFault gives an error of the loader a kind and, where it names a key, a line.
func loaderFault(err error, src *sources) error {
	if fault.KindOf(err) != fault.Unknown {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fault.Wrap(fault.Canceled, err, "loading the Compose file was stopped")
	}
	msg := clean(fileInError.ReplaceAllString(err.Error(), ""))
	if key := keyInMessage.FindString(msg); key != "" {
		path := strings.Split(strings.Trim(key, "."), ".")
		if x := extraInError.FindStringSubmatch(msg); x != nil {
			path = append(path, x[1])
			msg = keyName(path) + unknownKey
		} else if strings.HasSuffix(msg, " false schema") {
			msg = keyName(path) + unknownKey
		}
		if at := src.locate(path); at.line > 0 {
			return fault.New(fault.Invalid, "%s: %s", at, shortenMessage(msg)).WithHint("the keys are listed in doc/compose.md")
		}
	}
	return fault.New(fault.Invalid, "%s: %s", strings.Join(src.in.files, ", "), shortenMessage(msg)).WithHint("the keys are listed in doc/compose.md")
}

const unknownKey = ": this key does not exist in the Compose specification"

const maxMessage = 2000

func shortenMessage(s string) string {
	if len(s) > maxMessage {
		return strings.ToValidUTF8(s[:maxMessage], "") + "…"
	}
	return s
}
