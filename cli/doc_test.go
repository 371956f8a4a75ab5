package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

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
