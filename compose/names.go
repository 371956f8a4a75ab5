package compose

import (
	"strings"

	"github.com/gantryd/gantry/fault"
)

const maxLabel = 63

// checkLabel says what is wrong with a name that must work as one label of a DNS name, "" if nothing. The underscore
// is allowed: resolvers take it, and many Compose files have it.
func checkLabel(name string) string {
	switch {
	case name == "":
		return "the name is empty"
	case len(name) > maxLabel:
		return "the name is longer than 63 characters"
	case strings.ContainsFunc(name, func(r rune) bool { return !labelChar(r) }):
		return "a name has only lower-case letters, digits, \"-\" and \"_\""
	case name[0] == '-' || name[0] == '_' || name[len(name)-1] == '-' || name[len(name)-1] == '_':
		return "a name starts and ends with a letter or digit"
	}
	return ""
}

func labelChar(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_'
}

// checkResource is checkLabel for what has no DNS name: networks, volumes, secrets, configs.
func checkResource(name string) string {
	ok := func(r rune) bool { return labelChar(r) || r >= 'A' && r <= 'Z' || r == '.' }
	switch {
	case name == "":
		return "the name is empty"
	case len(name) > 2*maxLabel:
		return "the name is longer than 126 characters"
	case strings.ContainsFunc(name, func(r rune) bool { return !ok(r) }):
		return "a name has only letters, digits, \"-\", \"_\" and \".\""
	case !labelChar(rune(strings.ToLower(name[:1])[0])) || name[0] == '-':
		return "a name starts with a letter or digit"
	}
	return ""
}

func checkName(what, name string) error {
	if msg := checkLabel(name); msg != "" {
		return fault.New(fault.Invalid, "the %s name %q cannot be used: %s", what, shorten(name), msg).
			WithHint("choose a name like web or my-app")
	}
	return nil
}
