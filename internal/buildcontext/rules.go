package buildcontext

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/gantryd/gantry/fault"
)

const dotDockerignore = ".dockerignore"

// rules are the patterns of the ignore file, and the files that are sent regardless.
type rules struct {
	matcher *patternmatcher.PatternMatcher
	always  map[string]bool
	never   map[string]bool
}

// verdict is what the patterns say of a path; children need their parent's.
type verdict struct {
	excluded bool
	info     patternmatcher.MatchInfo
}

func readRules(dir, dockerfile string) (*rules, error) {
	if dockerfile == "" {
		dockerfile = "Dockerfile"
	}
	full := dockerfile
	if !filepath.IsAbs(full) {
		full = filepath.Join(dir, dockerfile)
	}
	r := &rules{always: map[string]bool{}, never: map[string]bool{}}
	file := full + dotDockerignore
	patterns, err := readPatterns(file)
	if errors.Is(err, fs.ErrNotExist) {
		file = filepath.Join(dir, dotDockerignore)
		patterns, err = readPatterns(file)
	} else if _, inside := relative(dir, full); !inside {
		// The builder does not see the ignore file beside a Dockerfile that lies elsewhere, and would apply this one.
		r.never[dotDockerignore] = true
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(fault.Invalid, err, "read %s", file)
	}
	for _, path := range []string{full, full + dotDockerignore, file} {
		if name, inside := relative(dir, path); inside {
			r.always[name] = true
		}
	}
	if r.matcher, err = patternmatcher.New(patterns); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "read %s", file)
	}
	return r, nil
}

func readPatterns(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ignorefile.ReadAll(f)
}

func relative(dir, path string) (string, bool) {
	rel, err := filepath.Rel(dir, path)
	if err != nil || !filepath.IsLocal(rel) {
		return "", false
	}
	return filepath.ToSlash(rel), true
}

func (r *rules) judge(name string, above verdict) (verdict, error) {
	excluded, info, err := r.matcher.MatchesUsingParentResults(filepath.FromSlash(name), above.info)
	v := verdict{excluded: (excluded || r.never[name]) && !r.always[name], info: info}
	return v, err
}

// mayInclude reports whether something below an excluded directory could be sent after all.
func (r *rules) mayInclude(dir string) bool {
	for name := range r.always {
		if strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	if !r.matcher.Exclusions() {
		return false
	}
	for _, p := range r.matcher.Patterns() {
		if p.Exclusion() && mayMatchBelow(p.String(), dir) {
			return true
		}
	}
	return false
}

// mayMatchBelow compares up to the first wildcard, where a literal comparison ends.
func mayMatchBelow(pattern, dir string) bool {
	pattern, dir = filepath.ToSlash(pattern), dir+"/"
	literal := pattern
	if i := strings.IndexAny(pattern, `*?[\`); i >= 0 {
		literal = pattern[:i]
	} else {
		literal += "/"
	}
	return strings.HasPrefix(literal, dir) || strings.HasPrefix(dir, literal)
}
