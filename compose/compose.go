// Package compose turns Compose files into the app spec that Gantry stores.
//
// Call Load. It reads the files as the Compose specification says (several files, .env, variables, profiles, extends,
// include, overrides), holds every key against the support matrix and converts what is left. A key that Gantry cannot
// do is an error with its name, file and line; one without effect is a Warning; none is ignored in silence. Load is
// safe in parallel, reads only local files, and is bounded in time and memory whatever it is given. It runs on the
// client and never talks to the daemon.
package compose

import (
	"context"
	"slices"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// Options says what to load. The zero value loads the Compose file of the current directory with an empty environment.
type Options struct {
	// Files in the order of merging, "-" for standard input. Empty: COMPOSE_FILE, else compose.yaml and its override
	// in the project directory or the nearest parent.
	Files []string
	// EnvFiles in place of .env in the project directory.
	EnvFiles []string
	// ProjectDir is what relative paths start from. Empty: the directory of the first file.
	ProjectDir string
	// ProjectName in place of the file's own name and the directory's.
	ProjectName string
	// Profiles to enable. Empty: COMPOSE_PROFILES.
	Profiles []string
	// Environ is the client's environment, "KEY=VALUE".
	Environ []string
	// Environment of Gantry that the app goes to. Empty: "production".
	Environment string
}

// DefaultEnvironment is where an app goes if nobody says otherwise.
const DefaultEnvironment = "production"

// Project is one loaded app.
type Project struct {
	// Name of the app.
	Name string
	// Dir is the absolute project directory.
	Dir string
	// Files that were read, in the order of merging, without included and extended ones.
	Files []string
	Spec  *gantryv1.AppSpec
	// Warnings by file and line.
	Warnings []Warning
	// DisabledServices are left out because none of their profiles is enabled.
	DisabledServices []string
	// Resolved gives the file as YAML, or as JSON, with everything merged and filled in, in Compose's own words. It may hold
	// secrets that came from variables.
	Resolved func(json bool) ([]byte, error)
}

// BuiltImage is what Compose calls the result of a build without a name of its own.
func BuiltImage(app, service string) string { return app + "-" + service }

// Warning is something in the files that has no effect.
type Warning struct {
	File string
	// Line is 0 where it is not known.
	Line int
	// Key is the path of the key, "services.web.attach"; empty for a warning about no single key.
	Key     string
	Message string
}

// String is the warning on one line.
func (w Warning) String() string {
	p := position{file: w.File, line: w.Line}.String()
	if p != "" {
		p += ": "
	}
	if w.Key != "" {
		p += w.Key + ": "
	}
	return p + w.Message
}

// Load reads, checks and converts an app.
func Load(ctx context.Context, o Options) (*Project, error) {
	if o.Environment == "" {
		o.Environment = DefaultEnvironment
	}
	if err := checkName("environment", o.Environment); err != nil {
		return nil, err
	}
	var said []string
	var c *converter
	err := withLogs(func() (err error) {
		c, err = read(ctx, o)
		return err
	}, func(message string) { said = append(said, message) })
	if err != nil {
		return nil, err
	}
	for _, message := range said {
		c.report.logged(message)
	}
	spec := c.convert()
	if err := c.report.err(); err != nil {
		return nil, err
	}
	return &Project{
		Name: c.app, Dir: c.in.dir, Files: c.in.files, Spec: spec, Warnings: c.report.sortedWarnings(),
		DisabledServices: slices.Sorted(slices.Values(c.model.project.DisabledServiceNames())),
		Resolved:         c.model.resolved,
	}, nil
}

func read(ctx context.Context, o Options) (*converter, error) {
	in, err := findInputs(o)
	if err != nil {
		return nil, err
	}
	src, err := readSources(in)
	if err != nil {
		return nil, err
	}
	m, err := loadModel(ctx, in, src)
	if err != nil {
		return nil, err
	}
	return &converter{env: o.Environment, app: in.name, in: in, src: src, model: m, report: m.report}, nil
}
