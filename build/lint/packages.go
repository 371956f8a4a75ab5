package lint

import (
	"maps"
	"slices"
	"strings"
)

// call is one invocation of a package manager that installs or refreshes its lists.
type call struct {
	manager  string
	installs bool
}

// verbs says what each manager's subcommands do: true installs, false refreshes.
func verbs(manager string) map[string]bool {
	switch manager {
	case "apt-get", "apt", "aptitude":
		return map[string]bool{"install": true, "update": false}
	case "apk":
		return map[string]bool{"add": true, "update": false}
	case "dnf", "microdnf", "yum":
		return map[string]bool{"install": true, "makecache": false}
	case "zypper":
		return map[string]bool{"install": true, "in": true, "refresh": false, "ref": false}
	}
	return nil
}

// packageCalls finds the invocations in a shell script. It splits words as a shell would for plain commands and does
// not try to follow variables or functions.
func packageCalls(script string) (calls []call) {
	script = strings.ReplaceAll(script, "\\\n", " ")
	split := strings.NewReplacer("&&", "\n", "||", "\n", ";", "\n", "|", "\n", "(", "\n", ")", "\n", "{ ", "\n", "`", "\n").Replace(script)
	for line := range strings.SplitSeq(split, "\n") {
		if c, ok := packageCall(strings.Fields(line)); ok {
			calls = append(calls, c)
		}
	}
	return calls
}

func packageCall(words []string) (call, bool) {
	for len(words) > 0 && prefix(words[0]) {
		words = words[1:]
	}
	if len(words) == 0 {
		return call{}, false
	}
	manager := words[0][strings.LastIndexByte(words[0], '/')+1:]
	known := verbs(manager)
	for _, word := range words[1:] {
		if installs, ok := known[word]; ok {
			return call{manager: manager, installs: installs}, true
		}
	}
	return call{}, false
}

// prefix reports words that may stand before a command.
func prefix(word string) bool {
	switch word {
	case "sudo", "env", "exec", "then", "do", "else", "if", "!", "time", "eatmydata", "sh", "bash", "-c":
		return true
	}
	return strings.Contains(word, "=") && !strings.HasPrefix(word, "-")
}

func sorted(m map[string]int) []string { return slices.Sorted(maps.Keys(m)) }
