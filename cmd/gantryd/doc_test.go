package main

import (
	"os"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// doc/cli.md names every flag of gantryd in a row of its section.
func TestEveryFlagIsDescribed(t *testing.T) {
	page, err := os.ReadFile("../../doc/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n## gantryd\n")
	section, _, _ = strings.Cut(section, "\n## ")
	named := map[string]bool{}
	for _, line := range strings.Split(section, "\n") {
		if first, _, ok := strings.Cut(strings.TrimPrefix(line, "| "), " |"); ok {
			for _, name := range strings.Split(first, ", ") {
				named[strings.Trim(name, "`")] = true
			}
		}
	}
	command().Flags().VisitAll(func(f *pflag.Flag) {
		if !named["--"+f.Name] {
			t.Errorf("doc/cli.md does not name --%s", f.Name)
		}
	})
}
