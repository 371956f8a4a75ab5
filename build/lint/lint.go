// Package lint finds bad practice in Dockerfiles that BuildKit's own rules do not look for.
//
// Check is the whole interface; it is pure and safe in parallel. It does not report what BuildKit reports, and says
// nothing about a Dockerfile that does not parse.
package lint

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// The rules' names, as a Warning carries them.
const (
	UnpinnedBase       = "UnpinnedBase"       // a base image without a tag, or with "latest"
	PackageSteps       = "PackageSteps"       // one RUN that calls a package manager's install twice
	PackageLayers      = "PackageLayers"      // neighbouring RUNs that install packages, where one would do
	PackageUpdateAlone = "PackageUpdateAlone" // a RUN that refreshes the package lists and installs nothing
)

// Check returns what is wrong with a Dockerfile, in the order of lines. file is its name for the warnings, args are the
// build's arguments.
func Check(file string, text []byte, args map[string]string) []*gantryv1.BuildEvent_Warning {
	ast, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil
	}
	stages, meta, err := instructions.Parse(ast.AST, nil)
	if err != nil {
		return nil
	}
	c := &checker{file: file, lex: shell.NewLex(ast.EscapeToken), env: environment(meta, args), names: map[string]bool{"scratch": true}}
	for _, stage := range stages {
		c.stage(stage)
	}
	return c.found
}

type checker struct {
	file  string
	lex   *shell.Lex
	env   []string
	names map[string]bool // of stages: not images
	found []*gantryv1.BuildEvent_Warning
}

// environment is what FROM lines may refer to: arguments above the first stage.
func environment(meta []instructions.ArgCommand, args map[string]string) (env []string) {
	for _, cmd := range meta {
		for _, arg := range cmd.Args {
			if v, ok := args[arg.Key]; ok {
				env = append(env, arg.Key+"="+v)
			} else if arg.Value != nil {
				env = append(env, arg.Key+"="+*arg.Value)
			}
		}
	}
	return env
}

func (c *checker) add(rule string, where []parser.Range, format string, args ...any) {
	w := &gantryv1.BuildEvent_Warning{Rule: rule, Message: fmt.Sprintf(format, args...), File: c.file}
	if len(where) > 0 {
		w.Line = int32(where[0].Start.Line)
	}
	c.found = append(c.found, w)
}

func (c *checker) stage(s instructions.Stage) {
	c.image(s.BaseName, s.Location)
	previous := map[string]bool{} // managers that the RUNs before installed with, nothing else in between
	for _, cmd := range s.Commands {
		switch cmd := cmd.(type) {
		case *instructions.RunCommand:
			previous = c.run(cmd, previous)
			continue
		case *instructions.CopyCommand:
			c.image(cmd.From, cmd.Location())
		case *instructions.LabelCommand, *instructions.ExposeCommand, *instructions.CmdCommand, *instructions.EntrypointCommand, *instructions.HealthCheckCommand:
			continue // none of these separates two RUNs
		}
		previous = map[string]bool{}
	}
	if s.Name != "" {
		c.names[strings.ToLower(s.Name)] = true
	}
}

// image checks a reference in FROM or a "from".
func (c *checker) image(ref string, where []parser.Range) {
	ref, unmatched, err := c.lex.ProcessWord(ref, shell.EnvsFromSlice(c.env))
	if err != nil || ref == "" || len(unmatched) > 0 || c.names[strings.ToLower(ref)] || strings.Trim(ref, "0123456789") == "" {
		return
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return
	}
	if _, ok := named.(reference.Digested); ok {
		return
	}
	tagged, ok := named.(reference.Tagged)
	switch {
	case !ok:
		c.add(UnpinnedBase, where, "image %s has no tag: another build may get another image; name a version", ref)
	case tagged.Tag() == "latest":
		c.add(UnpinnedBase, where, "image %s: \"latest\" changes without notice; name a version", ref)
	}
}

// run checks a RUN and returns the managers it installed with.
func (c *checker) run(cmd *instructions.RunCommand, previous map[string]bool) map[string]bool {
	// Expansion is what makes the mounts readable.
	if cmd.Expand(func(word string) (string, error) { return word, nil }) == nil {
		for _, m := range instructions.GetMounts(cmd) {
			c.image(m.From, cmd.Location())
		}
	}
	installs, updates := map[string]int{}, map[string]int{}
	for _, call := range packageCalls(script(cmd)) {
		if call.installs {
			installs[call.manager]++
		} else {
			updates[call.manager]++
		}
	}
	with := map[string]bool{}
	for _, manager := range sorted(installs) {
		with[manager] = true
		if n := installs[manager]; n > 1 {
			c.add(PackageSteps, cmd.Location(), "%s installs %d times in one RUN: install everything with one call", manager, n)
		} else if previous[manager] {
			c.add(PackageLayers, cmd.Location(), "%s installs in this RUN and in the one before: one RUN makes one layer less", manager)
		}
	}
	for _, manager := range sorted(updates) {
		if installs[manager] == 0 {
			c.add(PackageUpdateAlone, cmd.Location(), "%s refreshes its lists in a RUN of its own: cached, they grow stale; install in the same RUN", manager)
		}
	}
	if len(with) == 0 {
		return previous
	}
	return with
}

// script returns the text of a RUN: its command and what its heredocs hold.
func script(cmd *instructions.RunCommand) string {
	text := strings.Join(cmd.CmdLine, " ")
	for _, f := range cmd.Files {
		text += "\n" + f.Data
	}
	return text
}
