package compose

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/compose-spec/compose-go/v2/dotenv"
)

// registerRaw teaches the loader the env_file format "raw", which the specification leaves to its users. The caller
// holds logMu: the loader keeps formats in one table of the process.
func registerRaw() {
	dotenv.RegisterFormat("raw", func(r io.Reader, file string, vars map[string]string, lookup func(string) (string, bool)) error {
		return readRaw(r, file, vars, lookup)
	})
}

// readRaw takes values as they are: no quotes, no variables. A name alone takes the client's value.
func readRaw(r io.Reader, file string, vars map[string]string, lookup func(string) (string, bool)) error {
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxFile)
	for line := 1; s.Scan(); line++ {
		text := strings.TrimLeft(strings.TrimSuffix(s.Text(), "\r"), " \t")
		if text == "" || text[0] == '#' {
			continue
		}
		k, v, ok := strings.Cut(text, "=")
		if k == "" || strings.ContainsAny(k, " \t") {
			return fmt.Errorf("%s:%d: %q is not KEY=VALUE", file, line, shorten(text))
		}
		if ok {
			vars[k] = v
		} else if v, set := lookup(k); set {
			vars[k] = v
		}
	}
	return s.Err()
}
