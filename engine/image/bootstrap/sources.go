package bootstrap

import (
	"bufio"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Source is one archive that packages come from.
type Source struct {
	URL        string
	Suite      string
	Components []string
	// SignedBy is the keyring that the machine checks it with, if it says so.
	SignedBy string
}

// parseDeb822 reads a .sources file. What is disabled or not for binary packages is left out.
func parseDeb822(text string) (out []Source) {
	for _, stanza := range regexp.MustCompile(`\n[ \t]*\n`).Split(strings.ReplaceAll(text, "\r\n", "\n"), -1) {
		f := fields(stanza)
		if !slices.Contains(strings.Fields(f["types"]), "deb") || strings.EqualFold(f["enabled"], "no") {
			continue
		}
		for _, url := range strings.Fields(f["uris"]) {
			for _, suite := range strings.Fields(f["suites"]) {
				out = append(out, Source{URL: url, Suite: suite, Components: strings.Fields(f["components"]), SignedBy: keyring(f["signed-by"])})
			}
		}
	}
	return out
}

// fields reads a stanza: "Key: value", continued on lines that begin with a space; comments anywhere.
func fields(stanza string) map[string]string {
	out, key := map[string]string{}, ""
	for line := range strings.Lines(stanza) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t"):
			out[key] += "\n" + strings.TrimSpace(line)
		default:
			k, v, ok := strings.Cut(line, ":")
			if ok {
				key = strings.ToLower(strings.TrimSpace(k))
				out[key] = strings.TrimSpace(v)
			}
		}
	}
	return out
}

// keyring is the file of a Signed-By field; a key written out in the field itself is called "embedded".
func keyring(v string) string {
	v = strings.TrimSpace(v)
	if v != "" && !strings.HasPrefix(v, "/") {
		return "embedded"
	}
	return v
}

// parseOneLine reads a .list file.
func parseOneLine(text string) (out []Source) {
	sc := bufio.NewScanner(strings.NewReader(text))
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb ")
		if !ok {
			continue
		}
		signed := ""
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			options, after, _ := strings.Cut(rest[1:], "]")
			rest = after
			for _, o := range strings.Fields(options) {
				if v, ok := strings.CutPrefix(o, "signed-by="); ok {
					signed = v
				}
			}
		}
		if f := strings.Fields(rest); len(f) >= 2 {
			out = append(out, Source{URL: f[0], Suite: f[1], Components: f[2:], SignedBy: keyring(signed)})
		}
	}
	return out
}

// pockets are the parts of a release that belong in an image: the release itself, its updates and its security fixes.
func pockets() []string { return []string{"", "-updates", "-security", "/updates"} }

// choose picks the distribution's own archives for a release out of all that the machine has. If the machine is configured for
// another release of the distribution, the archives stay and the release is exchanged.
func choose(all []Source, r Release, machineSuite string) []Source {
	var own []Source
	for _, s := range all {
		if pocketOf(s.Suite, machineSuite) == nil && pocketOf(s.Suite, r.Suite) == nil || !official(s, r.Distribution) {
			continue
		}
		own = append(own, s)
	}
	var out []Source
	for _, suite := range []string{r.Suite, machineSuite} {
		for _, s := range own {
			pocket := pocketOf(s.Suite, suite)
			if pocket == nil {
				continue
			}
			if *pocket != "" && rolling(r.Suite) {
				continue
			}
			s.Suite = r.Suite + *pocket
			s.Components = components(s.Components, r.Distribution)
			if !slices.ContainsFunc(out, func(o Source) bool { return o.Suite == s.Suite && o.URL == s.URL }) {
				out = append(out, s)
			}
		}
		if len(out) > 0 {
			break
		}
	}
	slices.SortStableFunc(out, func(a, b Source) int { return len(a.Suite) - len(b.Suite) })
	return out
}

// rolling releases get fixes in place.
func rolling(suite string) bool {
	return suite == "sid" || suite == "unstable" || suite == "experimental"
}

func pocketOf(have, suite string) *string {
	if suite == "" {
		return nil
	}
	for _, p := range pockets() {
		if have == suite+p {
			if p == "/updates" {
				p = "-security"
			}
			return &p
		}
	}
	return nil
}

// plain is an address without anything that a configuration file or a command line could take for something else.
var plain = regexp.MustCompile(`^https?://[A-Za-z0-9.:@%_\[\]/~+=-]+$`)

// official tells the distribution's own archive from a vendor's that uses the same suite names. apt checks the signature in any
// case; this keeps foreign packages out of a base image.
func official(s Source, distribution string) bool {
	if !slices.Contains(s.Components, "main") {
		return false
	}
	if s.SignedBy != "" && !strings.HasPrefix(path.Base(s.SignedBy), distribution+"-archive") {
		return false
	}
	return plain.MatchString(s.URL)
}

// components are those of the machine that the distribution supports itself.
func components(have []string, distribution string) (out []string) {
	free := []string{"main"}
	if distribution == "ubuntu" {
		free = []string{"main", "restricted", "universe", "multiverse"}
	}
	for _, c := range have {
		if slices.Contains(free, c) {
			out = append(out, c)
		}
	}
	return out
}

// deb822 writes sources as the image has them.
func deb822(sources []Source, keyring string) string {
	var b strings.Builder
	for i, s := range sources {
		if i > 0 {
			b.WriteString("\n")
		}
		b.WriteString("Types: deb\nURIs: " + s.URL + "\nSuites: " + s.Suite + "\nComponents: " + strings.Join(s.Components, " "))
		b.WriteString("\nSigned-By: " + keyring + "\n")
	}
	return b.String()
}

// oneLine writes a source as mmdebstrap takes it.
func (s Source) oneLine(keyring string) string {
	return "deb [signed-by=" + keyring + "] " + s.URL + " " + s.Suite + " " + strings.Join(s.Components, " ")
}
