package cli

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/cli/verb"
)

// everyCommand is the whole tree, groups too.
func everyCommand() (out []*cobra.Command) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			out = append(out, sub)
			walk(sub)
		}
	}
	walk(newRoot(&session{&verb.Session{}}))
	return out
}

// said runs a command line and returns what it prints and how it ends. There is no daemon.
func said(t *testing.T, args ...string) (out, errs string, code int) {
	t.Helper()
	dir := t.TempDir()
	file := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	o, e := file("out"), file("err")
	defer o.Close()
	defer e.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	code = Run(t.Context(), append([]string{"--host", "unix:///nonexistent/s"}, args...), Options{In: null, Out: o, Err: e, Version: "1"})
	text := func(f *os.File) string {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	return text(o), text(e), code
}

func words(c *cobra.Command) []string { return strings.Fields(c.CommandPath())[1:] }

func TestEveryCommandHasHelp(t *testing.T) {
	for _, c := range everyCommand() {
		out, errs, code := said(t, append(words(c), "--help")...)
		if code != 0 || errs != "" || !strings.Contains(out, "Usage:\n  "+c.CommandPath()) || !strings.Contains(out, c.Short) && c.Long == "" {
			t.Errorf("%s --help ends with %d: %s%s", c.CommandPath(), code, out, errs)
		}
	}
}

func TestEveryCommandRefusesUnknownFlags(t *testing.T) {
	for _, c := range everyCommand() {
		want := verb.ExitUsage
		if c.Annotations[verb.AnnotationProcess] != "" {
			want = verb.ExitRunFailed
		}
		_, errs, code := said(t, append(words(c), "--no-such-flag")...)
		if code != want || !strings.Contains(errs, "--no-such-flag") || !strings.Contains(errs, "\nhint: ") {
			t.Errorf("%s --no-such-flag ends with %d: %s", c.CommandPath(), code, errs)
		}
	}
}

// What lists or shows something can do it for programs.
func TestEveryListAndInspectHasJSON(t *testing.T) {
	shows := []string{
		"ls", "inspect", "show", "ps", "plan", "diff", "top", "port", "stats", "events", "df", "info", "version", "history", "status", "environments", "explain", "convert",
	}
	found := 0
	for _, c := range everyCommand() {
		if !slices.Contains(shows, c.Name()) || c.HasSubCommands() {
			continue
		}
		found++
		flag := c.Flags().Lookup("output")
		if flag == nil || flag.Shorthand != "o" || !strings.Contains(flag.Usage, "json") {
			t.Errorf("%s has no --output json", c.CommandPath())
		}
		_, errs, code := said(t, append(words(c), "-o", "no-such-form", "a")...)
		if code != verb.ExitUsage || errs == "" {
			t.Errorf("%s -o no-such-form ends with %d: %s", c.CommandPath(), code, errs)
		}
	}
	if found < 25 {
		t.Errorf("%d commands show something; is the list of names right?", found)
	}
}

func TestCompletion(t *testing.T) {
	for shell, want := range map[string]string{"bash": "__start_gantry", "zsh": "#compdef gantry", "fish": "complete -c gantry", "powershell": "Register-ArgumentCompleter"} {
		if out, errs, code := said(t, "completion", shell); code != 0 || !strings.Contains(out, want) {
			t.Errorf("%s: %d %s", shell, code, errs)
		}
	}
	if _, errs, code := said(t, "completion", "csh"); code != verb.ExitUsage || !strings.Contains(errs, "csh") {
		t.Errorf("csh: %d %s", code, errs)
	}
	out, _, code := said(t, "__complete", "image", "")
	if code != 0 || !strings.Contains(out, "pull\t") || !strings.Contains(out, "bootstrap\t") {
		t.Errorf("completion of gantry image: %d %s", code, out)
	}
}
