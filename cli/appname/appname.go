// Package appname finds which app a directory belongs to, without reading more of its Compose file than it must: listing
// must be quick, and must work when the file is broken in places that do not matter.
//
// Find locates the files, Of names the app. Both only read.
package appname

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/gantryd/gantry/fault"
)

// Of names the app of Compose files in a directory, by Compose's rules. Plain is false if only the whole loader can
// tell.
func Of(files []string, dir string) (name string, plain bool, err error) {
	if name := dotEnv(filepath.Join(dir, ".env"), "COMPOSE_PROJECT_NAME"); name != "" {
		return name, true, nil
	}
	for _, file := range files {
		n, plain, err := nameIn(file)
		if err != nil || !plain {
			return "", plain, err
		}
		if n != "" {
			name = n
		}
	}
	if name == "" {
		name = projectName(filepath.Base(dir))
	}
	return name, true, nil
}

// Find locates the Compose files and their directory: those named, else the nearest default one in dir or, if that is
// empty, here or above. No files mean that there is no app.
func Find(named []string, in string) (files []string, dir string, err error) {
	if len(named) > 0 {
		dir = in
		if dir == "" {
			dir = filepath.Dir(named[0])
		}
		dir, err = filepath.Abs(dir)
		return named, dir, err
	}
	if dir, err = filepath.Abs(in); err != nil {
		return nil, "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		for _, name := range []string{"compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"} {
			path := filepath.Join(at, name)
			if _, err := os.Stat(path); err == nil {
				return []string{path}, at, nil
			} else if !errors.Is(err, fs.ErrNotExist) {
				return nil, "", fault.Wrap(fault.Denied, err, "the Compose file cannot be read")
			}
		}
		if at == filepath.Dir(at) || in != "" {
			return nil, "", nil
		}
	}
}

// nameIn finds the top-level name of a Compose file; plain is false if only the whole loader can tell.
func nameIn(path string) (name string, plain bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", false, fault.Wrap(fault.NotFound, err, "the Compose file cannot be read")
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "{") || strings.HasPrefix(line, `"`) || strings.HasPrefix(line, "'") || strings.HasPrefix(line, "?") {
			return "", false, nil
		}
		value, ok := strings.CutPrefix(line, "name:")
		if !ok {
			continue
		}
		value, _, _ = strings.Cut(value, " #")
		value = strings.TrimSpace(value)
		if strings.ContainsAny(value, "$&*!|>\\") {
			return "", false, nil
		}
		name = strings.Trim(value, `"'`)
	}
	return name, true, lines.Err()
}

// dotEnv reads one plain variable of a .env file.
func dotEnv(path, variable string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for _, line := range strings.Split(string(data), "\n") {
		key, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		if ok && strings.TrimSpace(key) == variable {
			return strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	return ""
}

// projectName makes a valid name of a directory's, by Compose's rule.
func projectName(dir string) string {
	keep := func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_' || r == '-' {
			return r
		}
		return -1
	}
	return strings.TrimLeft(strings.Map(keep, strings.ToLower(dir)), "_-")
}
