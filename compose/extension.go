package compose

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/Masterminds/semver/v3"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// extension is the key of a service that holds what Compose has no word for.
const extension = "x-gantry"

// extend reads x-gantry, whose keys are ours to refuse, into a service that has the rest already.
func (c *converter) extend(path []string, ext any, out *gantryv1.ServiceSpec) {
	x, ok := c.extra(append(slices.Clone(path), extension), ext)
	if !ok {
		return
	}
	x.only("job", "placement", "priority", "update", "version")
	out.Version = x.version()
	out.Priority = int32(x.number("priority", -maxPriority, maxPriority))
	if p, ok := x.below("placement"); ok {
		c.extendPlacement(p, out)
	}
	if u, ok := x.below("update"); ok {
		c.extendUpdate(u, out)
	}
	if j, ok := x.below("job"); ok {
		c.extendJob(j, out)
	}
}

const maxPriority = 1000

// version is the service's own.
func (x extra) version() string {
	if x.values["version"] == nil {
		return ""
	}
	v, ok := x.values["version"].(string)
	if _, err := semver.StrictNewVersion(strings.TrimPrefix(v, "v")); !ok || err != nil {
		x.bad("version", `write three numbers in quotes: "1.2.3"`, "%s is not a semantic version", shorten(fmt.Sprintf("%#v", x.values["version"])))
		return ""
	}
	return strings.TrimPrefix(v, "v")
}

// extra is a mapping below x-gantry.
type extra struct {
	c      *converter
	path   []string
	values map[string]any
}

// extra takes a value as a mapping; nothing is no mapping, and no error.
func (c *converter) extra(path []string, v any) (extra, bool) {
	values, ok := v.(map[string]any)
	if v != nil && !ok {
		c.report.invalid(path, "write it as a mapping: {KEY: VALUE}", "this is not a mapping")
	}
	return extra{c, path, values}, ok
}

func (x extra) below(key string) (extra, bool) { return x.c.extra(x.at(key), x.values[key]) }

func (x extra) at(key string) []string { return append(slices.Clone(x.path), key) }

func (x extra) bad(key, hint, format string, args ...any) {
	x.c.report.invalid(x.at(key), hint, format, args...)
}

// only refuses other keys.
func (x extra) only(known ...string) {
	for _, k := range slices.Sorted(maps.Keys(x.values)) {
		if !slices.Contains(known, k) {
			x.bad(k, "the keys are "+strings.Join(known, ", "), "there is no such key")
		}
	}
}

func (x extra) text(key string) string {
	s, ok := x.values[key].(string)
	if x.values[key] != nil && !ok {
		x.bad(key, "write it in quotes", "%s is no text", shorten(fmt.Sprint(x.values[key])))
	}
	return s
}

// word is a text of those allowed, or none.
func (x extra) word(key string, allowed ...string) string {
	s := x.text(key)
	if s != "" && !slices.Contains(allowed, s) {
		x.bad(key, "use "+strings.Join(allowed, " or "), "there is no %q", shorten(s))
		return ""
	}
	return s
}

func (x extra) number(key string, least, most int) int {
	if x.values[key] == nil {
		return 0
	}
	n, ok := x.values[key].(int)
	if !ok || n < least || n > most {
		x.bad(key, fmt.Sprintf("use a number from %d to %d", least, most), "%s cannot be had", shorten(fmt.Sprint(x.values[key])))
		return 0
	}
	return n
}

func (x extra) flag(key string) bool {
	b, ok := x.values[key].(bool)
	if x.values[key] != nil && !ok {
		x.bad(key, "use true or false", "%s is neither true nor false", shorten(fmt.Sprint(x.values[key])))
	}
	return b
}

// duration is above zero, or not there.
func (x extra) duration(key string) time.Duration {
	s := x.text(key)
	if s == "" {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		x.bad(key, "write it like 90s or 1h30m", "%q is no time", shorten(s))
		return 0
	}
	return d
}

// list is a list of texts.
func (x extra) list(key string) []string {
	if x.values[key] == nil {
		return nil
	}
	items, ok := x.values[key].([]any)
	var out []string
	for _, item := range items {
		s, text := item.(string)
		ok = ok && text
		out = append(out, s)
	}
	if !ok {
		x.bad(key, "write it like [NAME, NAME]", "this is not a list of texts")
	}
	return out
}
