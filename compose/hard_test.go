package compose

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantryd/gantry/fault"
)

// patience is far above what any of these takes, and below what a person or a machine gives up at.
const patience = time.Minute

// Each of these wants to hang the loader, fill the memory or reach out of the machine. All end at once, with a fault
// that says what is wrong.
func TestHardInputs(t *testing.T) {
	for _, c := range []struct{ name, yaml, want string }{
		{"empty", "", "compose.yaml"},
		{"only a comment", "# nothing\n", "compose.yaml"},
		{"a list", "- a\n", "compose.yaml"},
		{"binary", "\x00\x01\x02", "is not YAML"},
		{"tab", "services:\n\tweb: {}\n", "is not YAML"},
		{"10 MiB and a byte", "# " + strings.Repeat("x", maxFile), "larger than 10 MiB"},
		{"10 MB of values", "x-a:\n" + strings.Repeat("- {a: 1, b: 2, c: 3}\n", 480_000), "more than 200000 values"},
		{"alias bomb", aliasBomb(), "aliases"},
		{"anchor in itself", "x-a: &a\n  b: *a\n", "contains itself"},
		{"depth 1e4, flow", "x-a: " + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000), "compose.yaml"},
		{"depth 1e5, flow", "x-a: " + strings.Repeat("{a: ", 100_000), "compose.yaml"},
		{"depth 1000, block", deepBlock(1000), "nested deeper"},
		{"depth by aliases", deepAliases(), "nested deeper"},
		{"nested variables", "services: {a: {image: '" + strings.Repeat("${A:-", 10_000) + strings.Repeat("}", 10_000) + "'}}", "nested deeper than 20"},
		{"many variables in one value", "services: {a: {image: '" + strings.Repeat("${A}", 100_000) + "'}}", "more than 1000 variables"},
		{"include itself", "include: [compose.yaml]\n", "cycle"},
		{"include a directory", "include: [.]\n", "is a directory"},
		{"include a device", "include: [/dev/zero]\n", "not a regular file"},
		{"include https", "include:\n  - https://example.com/x.yaml\n", "compose.yaml:2: the included file"},
		{"include git", "include: [{path: 'git@example.com:a/b.git'}]\n", "is remote"},
		{"include oci", "include: ['oci://example.com/a']\n", "is remote"},
		{"include oci by a variable", "include: ['${NO:-oci:}//example.com/a']\n", "is remote"},
		{"include nothing", "include: [missing.yaml]\n", `compose.yaml:1: the included file`},
		{"extend https", "services:\n  a:\n    extends: {file: 'https://x/y', service: a}\n", "compose.yaml:3: the extended file"},
		{"extends in a cycle", "services:\n  a: {extends: b}\n  b: {extends: c}\n  c: {extends: a}\n", "Circular reference"},
		{"depends_on in a cycle", "services:\n  a: {image: x, depends_on: [b]}\n  b: {image: x, depends_on: [c]}\n  c: {image: x, depends_on: [a]}\n", "compose.yaml:2: services.a.depends_on.b: services wait for one another in a cycle: a → b → c → a"},
		{"depends_on itself", "services: {a: {image: x, depends_on: [a]}}", "a → a"},
		{"env_file without end", "services:\n  a:\n    image: x\n    env_file: /dev/zero\n", "compose.yaml:4: services.a.env_file[0]: the file \"/dev/zero\" is not a regular file"},
		{"label_file without end", "services:\n  a:\n    image: x\n    label_file: /dev/zero\n", "not a regular file"},
		{"secret without end", "services: {a: {image: x, secrets: [s]}}\nsecrets: {s: {file: /dev/zero}}\n", "not a regular file"},
		{"ANSI in a name", "services:\n  \"a\\e[31mred\":\n    image: x\n", `compose.yaml:2: services.a\x1b[31mred: a name has`},
		{"newline in a name", "services:\n  \"a\\nb\":\n    image: x\n", `compose.yaml:2: services.a\x0ab: a name has`},
		{"dots in a name", "services:\n  a.b:\n    image: x\n", "cannot be used"},
		{"capitals in a name", "services:\n  Web:\n    image: x\n", "lower-case"},
		{"long name", "services:\n  " + strings.Repeat("a", 64) + ":\n    image: x\n", "longer than 63"},
		{"name of a volume with ..", "services: {a: {image: x, volumes: ['vol:/d']}}\nvolumes: {vol: {name: ../../etc}}\n", "cannot be used"},
		{"name of a network with a newline", "services: {a: {image: x}}\nnetworks: {\"n\\nx\": {}}\n", "compose.yaml:2: networks.n"},
		{"ANSI in a value", "services: {a: {image: \"\\e[2Jx\"}}", `"\x1b[2Jx" is not an image reference`},
		{"NUL in a variable", "services: {a: {image: x, environment: {A: \"b\\0c\"}}}", "is not a variable"},
		{"all ports", "services:\n  a: {image: x, ports: ['1-65535:1-65535']}\n", "compose.yaml:2: services.a.ports: more than 4096 ports"},
		{"all ports often", "services: {a: {image: x, ports: [" + strings.Repeat("'127.0.0.1:1-4000:1-4000/udp', ", 1000) + "]}}", "more than 4096 ports"},
		{"many instances", "services: {a: {image: x, scale: 99999999}}", "99999999 instances"},
	} {
		t.Run(c.name, func(t *testing.T) {
			start := time.Now()
			_, err := load(t, c.yaml)
			if took := time.Since(start); took > patience {
				t.Errorf("took %v", took)
			}
			if err == nil {
				t.Fatal("was loaded")
			}
			if fault.KindOf(err) == fault.Unknown || fault.HintOf(err) == "" {
				t.Errorf("no kind or no hint: %#v", err)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error does not say %q:\n%.1000s", c.want, err)
			}
			if len(err.Error()) > 10_000 || strings.ContainsAny(err.Error(), "\x1b\x00\r") {
				t.Errorf("the error is not fit for a terminal:\n%.1000q", err)
			}
		})
	}
}

func aliasBomb() string {
	var b strings.Builder
	b.WriteString("x-0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n")
	for i := range 20 {
		fmt.Fprintf(&b, "x-%d: &a%d [*a%d, *a%d, *a%d, *a%d, *a%d, *a%d, *a%d]\n", i+1, i+1, i, i, i, i, i, i, i)
	}
	return b.String()
}

func deepBlock(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return "x-a:\n" + strings.ReplaceAll(" "+b.String(), "\n", "\n ")
}

func deepAliases() string {
	var b strings.Builder
	b.WriteString("x-0: &a0 {k: v}\n")
	for i := range 100 {
		fmt.Fprintf(&b, "x-%d: &a%d {k: *a%d}\n", i+1, i+1, i)
	}
	return b.String()
}

// Large but honest files load, in time that grows with their size.
func TestLargeInputs(t *testing.T) {
	for _, c := range []struct{ name, yaml string }{
		{"1000 services in a row", manyServices(1000)},
		{"diamonds of dependencies", diamonds(60)},
		{"a chain of 500 extends", extendsChain(500)},
		{"5,000 variables", "services: {a: {image: x, environment: [" + list(5000, "V%d=%[1]d") + "]}}"},
		{"5,000 labels", "services: {a: {image: x, labels: {" + list(5000, "l%d: x") + "}}}"},
		{"2,000 ports", "services: {a: {image: x, ports: [" + list(2000, "'%d:80'", 1000) + "]}}"},
		{"2,000 volumes", "services: {a: {image: x, volumes: [" + list(2000, "'/h:/d%d'") + "]}}"},
		{"1,000 variables in one value", "services: {a: {image: x, environment: {A: '" + strings.Repeat("${A-}", 1000) + "'}}}"},
		{"9 MB in one value", "services: {a: {image: x, environment: {A: '" + strings.Repeat("x", 9<<20) + "'}}}"},
	} {
		t.Run(c.name, func(t *testing.T) {
			start := time.Now()
			if _, err := load(t, c.yaml); err != nil {
				t.Errorf("%.500s", err)
			}
			if took := time.Since(start); took > patience {
				t.Errorf("took %v", took)
			}
		})
	}
}

func list(n int, format string, from ...int) string {
	var parts []string
	for i := range n {
		if len(from) > 0 {
			i += from[0]
		}
		parts = append(parts, fmt.Sprintf(format, i))
	}
	return strings.Join(parts, ", ")
}

func manyServices(n int) string {
	return "services: {" + list(n, "s%d: {image: 'nginx', environment: {A: b}, ports: ['80']}") + "}"
}

func diamonds(layers int) string {
	var b strings.Builder
	b.WriteString("services:\n  a0: {image: x}\n  b0: {image: x}\n")
	for i := 1; i < layers; i++ {
		fmt.Fprintf(&b, "  a%d: {image: x, depends_on: [a%d, b%[2]d]}\n  b%[1]d: {image: x, depends_on: [a%[2]d, b%[2]d]}\n", i, i-1)
	}
	return b.String()
}

func extendsChain(n int) string {
	var b strings.Builder
	b.WriteString("services:\n  s0: {image: x}\n")
	for i := 1; i < n; i++ {
		fmt.Fprintf(&b, "  s%d: {extends: s%d}\n", i, i-1)
	}
	return b.String()
}

func TestFilesThatAreNoFiles(t *testing.T) {
	dir := write(t, map[string]string{"a.yaml": "services: {a: {image: x}}"})
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		fifo: "not a regular file", dir: "is a directory", filepath.Join(dir, "none"): "does not exist",
		"https://example.com/compose.yaml": "is remote", "oci://x": "is remote",
	} {
		_, err := Load(t.Context(), Options{Files: []string{file}, ProjectDir: dir})
		if err == nil || !strings.Contains(err.Error(), want) || fault.HintOf(err) == "" {
			t.Errorf("%s: %v", file, err)
		}
	}
	if err := os.Symlink("/dev/zero", filepath.Join(dir, ".env")); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(t.Context(), Options{Files: []string{filepath.Join(dir, "a.yaml")}}); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf(".env that never ends: %v", err)
	}
}

func TestIncludeCycleOverFiles(t *testing.T) {
	dir := write(t, map[string]string{
		"compose.yaml": "include: [sub/b.yaml]\nservices: {a: {image: x}}\n",
		"sub/b.yaml":   "include: [c.yaml]\n",
		"sub/c.yaml":   "include:\n  - ../compose.yaml\n",
	})
	_, err := Load(t.Context(), Options{ProjectDir: dir})
	if err == nil || !strings.Contains(err.Error(), "sub/c.yaml:2: files include one another in a cycle") {
		t.Fatal(err)
	}
}

// A file that includes two files that each include two files, and so on, is read once each and bounded.
func TestIncludeFan(t *testing.T) {
	files := map[string]string{"compose.yaml": "include: [a0.yaml, b0.yaml]\nservices: {s: {image: x}}\n"}
	for i := range 30 {
		next := fmt.Sprintf("include: [a%d.yaml, b%[1]d.yaml]\n", i+1)
		files[fmt.Sprintf("a%d.yaml", i)], files[fmt.Sprintf("b%d.yaml", i)] = next, next
	}
	files["a30.yaml"], files["b30.yaml"] = "services: {x: {image: x}}", "services: {y: {image: x}}"
	start := time.Now()
	_, err := Load(t.Context(), Options{ProjectDir: write(t, files)})
	if took := time.Since(start); took > patience {
		t.Errorf("took %v", took)
	}
	if err == nil || !strings.Contains(err.Error(), "includes and extends") {
		t.Fatal(err)
	}
}
