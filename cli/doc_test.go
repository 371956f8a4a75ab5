package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/gantryd/gantry/cli/verb"
)

// doc/cli.md names every command there is, and every command says what it does.
func TestEveryCommandIsDescribed(t *testing.T) {
	page, err := os.ReadFile("../doc/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	var walk func(c *cobra.Command, table string)
	walk = func(c *cobra.Command, row string) {
		for _, sub := range c.Commands() {
			if sub.Short == "" {
				t.Errorf("%s has no description", sub.CommandPath())
			}
			line := row
			if line == "" {
				line = lineWith(string(page), sub.Name())
			}
			if line == "" || !strings.Contains(line, "`"+sub.Name()) && !strings.Contains(line, sub.Name()+"`") && !strings.Contains(line, " "+sub.Name()+" ") {
				t.Errorf("doc/cli.md does not name %s", sub.CommandPath())
			}
			if sub.HasSubCommands() {
				walk(sub, allLines(string(page), "`"+sub.CommandPath()+" "))
			}
		}
	}
	walk(newRoot(&session{&verb.Session{}}), "")
}

// doc/cli.md names every flag of every command, in a row of the command or in one of flags of many commands.
func TestEveryFlagIsDescribed(t *testing.T) {
	page, err := os.ReadFile("../doc/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	commands, _, _ := strings.Cut(string(page), "\n## gantryd\n")
	common := rowsOf(commands, "^`--")
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		rows := regexp.QuoteMeta(c.CommandPath()) + "[` ]"
		if c.HasParent() { // the row of `gantry image tag` and `rm` is of gantry image rm too
			rows += "|" + regexp.QuoteMeta(c.Parent().CommandPath()) + " .*`" + regexp.QuoteMeta(c.Name()) + "[` ]"
		}
		own := rowsOf(commands, rows)
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			long, short := "[` ]--"+f.Name+"[^a-z-]", "[` ]-"+f.Shorthand+"[^a-z-]"
			named := regexp.MustCompile(long).MatchString(own+common) || f.Shorthand != "" && regexp.MustCompile(short).MatchString(own)
			if !named && !f.Hidden && f.Name != "help" {
				t.Errorf("doc/cli.md does not name --%s of %s", f.Name, c.CommandPath())
			}
		})
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot(&session{&verb.Session{}}))
}

// rowsOf has the rows of tables whose first cell has the pattern.
func rowsOf(page, pattern string) string {
	cell := regexp.MustCompile(pattern)
	var out string
	for _, line := range strings.Split(strings.ReplaceAll(page, `\|`, ","), "\n") {
		if row, ok := strings.CutPrefix(line, "| "); ok && cell.MatchString(row[:strings.Index(row+"|", "|")]) {
			out += line + "\n"
		}
	}
	return out
}

func lineWith(page, verb string) string {
	return allLines(page, "gantry "+verb) + allLines(page, "`"+verb+"`") + allLines(page, "`, `"+verb)
}

func allLines(page, part string) string {
	var out []string
	for _, line := range strings.Split(page, "\n") {
		if strings.Contains(line, part) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

var link = regexp.MustCompile(`\]\(([^)#:]+)\)`)

// The README leads to every page, and no link of a page leads nowhere.
func TestPagesAreLinked(t *testing.T) {
	pages, err := filepath.Glob("../doc/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatal(pages, err)
	}
	readme := map[string]bool{}
	for _, page := range append(pages, "../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			to := filepath.Join(filepath.Dir(page), m[1])
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: %v", page, err)
			}
			readme[to] = readme[to] || page == "../README.md"
		}
	}
	for _, page := range pages {
		if !readme[page] {
			t.Errorf("the README does not link %s", page)
		}
	}
}
