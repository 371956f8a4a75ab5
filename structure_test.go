package gantry

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/gantryd/gantry"

// budgets are the limits of the whole tree. Lengths are in lines; shares are fractions of one.
type budgets struct {
	funcMedian, funcP90     int
	longFunc                int     // a function over this is long
	longShare               float64 // of functions that may be long
	fileLines, packageLines int
	documented              float64 // of exported names
}

var limits = budgets{
	funcMedian: 11, funcP90: 45, longFunc: 50, longShare: 0.08,
	fileLines: 800, packageLines: 4500, documented: 0.95,
}

var (
	leaf    = []string{"api", "fault", "internal"}
	feature = []string{"store", "operation", "api", "fault", "internal"}
)

// mayImport lists, for a top folder, the top folders of ours it may import. A folder that is not listed is free.
// No folder but test, cmd and daemon may import daemon; see checkImports for the rules between subfolders.
var mayImport = map[string][]string{
	"fault":       {"fault"},
	"internal":    {"internal", "fault"},
	"api":         {},
	"client":      {"api", "fault", "internal"},
	"cli":         {"client", "api", "fault", "internal", "compose"},
	"cmd":         {"cli", "daemon", "internal", "fault"},
	"control":     feature,
	"stateful":    feature,
	"supply":      feature,
	"environment": feature,
	"function":    feature,
	"observe":     feature,
	"operation":   {"store", "api", "fault", "internal"},
	"cluster":     {"store", "api", "fault", "internal"},
	"store":       leaf,
	"compose":     leaf,
	"engine":      leaf,
	"network":     leaf,
	"volume":      leaf,
	"discovery":   leaf,
	"ingress":     leaf,
	"build":       leaf,
	"registry":    leaf,
}

// only lists, for modules of others, the top folders that may import them.
var only = map[string][]string{
	"github.com/containerd/containerd": {"engine", "build", "registry"},
	"github.com/opencontainers/runc":   {"engine", "build", "registry"},
	"github.com/moby/buildkit":         {"engine", "build", "registry"},
	"go.etcd.io/etcd":                  {"store", "cluster"},
}

func TestStructure(t *testing.T) {
	tree, err := readTree(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, finding := range tree.findings(limits) {
		t.Error(finding)
	}
	t.Log(tree.summary())
}

// TestStructureOfClient holds the command line to what it may link, through any number of imports.
func TestStructureOfClient(t *testing.T) {
	if _, err := os.Stat("cmd/gantry"); err != nil {
		t.Skip("cmd/gantry is not there")
	}
	out, err := exec.Command("go", "list", "-deps", "./cmd/gantry").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for _, dep := range strings.Fields(string(out)) {
		for _, never := range []string{module + "/daemon", module + "/engine", module + "/store",
			"github.com/containerd/containerd/v2/client", "github.com/containerd/containerd/v2/cmd", "go.etcd.io/etcd/server"} {
			if dep == never || strings.HasPrefix(dep, never+"/") {
				t.Errorf("cmd/gantry links %s; the command line knows the API client only", dep)
			}
		}
	}
}

// TestStructureFindsFaults runs the rules over a tree in which every one of them is broken once.
func TestStructureFindsFaults(t *testing.T) {
	tree, err := readTree("testdata/structure")
	if err != nil {
		t.Fatal(err)
	}
	tight := budgets{funcMedian: 1, funcP90: 2, longFunc: 3, longShare: 0.01, fileLines: 20, packageLines: 25, documented: 0.95}
	got := strings.Join(tree.findings(tight), "\n")
	for _, want := range []string{
		`engine/engine.go: engine must not import store`,
		`control/rollout/rollout.go: control/rollout must not import its sibling control/schedule`,
		`network/network.go: only store, cluster may import go.etcd.io/etcd`,
		`network/network.go: func init`,
		`network/network_test.go: time.Sleep in a test`,
		`network: no package comment`,
		`agent and server import each other`,
		`engine/engine.go: 30 lines, at most 20`,
		`engine: 30 lines, at most 25`,
		`functions: median`,
		`functions: 90th percentile`,
		`functions: 10.0 % are over 3 lines`,
		`exported names: `,
		`network.Undocumented`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("not found: %s", want)
		}
	}
	if strings.Contains(got, "test/lab") || strings.Contains(got, "gen.go") {
		t.Error("test/ may sleep and generated files have no budget")
	}
	if t.Failed() {
		t.Log("findings:\n" + got)
	}
}

// TestStructureAcceptsGood runs the rules over the same kind of tree with nothing wrong.
func TestStructureAcceptsGood(t *testing.T) {
	tree, err := readTree("testdata/structure/good")
	if err != nil {
		t.Fatal(err)
	}
	if found := tree.findings(limits); len(found) > 0 {
		t.Errorf("findings in a good tree:\n%s", strings.Join(found, "\n"))
	}
}

// file is one Go file of the tree.
type file struct {
	path   string // slash-separated, from the root of the tree
	lines  int
	test   bool
	syntax *ast.File
	fset   *token.FileSet
}

func (f *file) dir() string { return path.Dir(f.path) }
func (f *file) top() string { return top(f.path) }

// support reports whether f serves tests: a test file, or a package like storetest.
func (f *file) support() bool { return f.test || strings.HasSuffix(f.dir(), "test") }

// imports lists the import paths of f.
func (f *file) imports() []string {
	var out []string
	for _, spec := range f.syntax.Imports {
		out = append(out, strings.Trim(spec.Path.Value, `"`))
	}
	return out
}

type tree struct{ files []*file }

var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// readTree parses the hand-written Go files under root, without folders that hold a module of their own.
func readTree(root string) (*tree, error) {
	t := &tree{}
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return skipFolder(root, name, entry.Name())
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		f, err := readFile(root, name)
		if f != nil {
			t.files = append(t.files, f)
		}
		return err
	})
	return t, err
}

func skipFolder(root, name, base string) error {
	if name == root {
		return nil
	}
	_, err := os.Stat(filepath.Join(name, "go.mod"))
	if err == nil || strings.HasPrefix(base, ".") || base == "testdata" || base == "vendor" || base == "good" {
		return filepath.SkipDir
	}
	return nil
}

// readFile returns nil for a generated file.
func readFile(root, name string) (*file, error) {
	text, err := os.ReadFile(name)
	if err != nil || generated.Match(text) {
		return nil, err
	}
	rel, err := filepath.Rel(root, name)
	if err != nil {
		return nil, err
	}
	fset := token.NewFileSet()
	syntax, err := parser.ParseFile(fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	return &file{
		path: filepath.ToSlash(rel), lines: strings.Count(string(text), "\n"),
		test: strings.HasSuffix(name, "_test.go"), syntax: syntax, fset: fset,
	}, nil
}

// findings lists every broken rule, a line each.
func (t *tree) findings(b budgets) []string {
	var out []string
	for _, f := range t.files {
		out = append(out, checkImports(f)...)
		out = append(out, checkCalls(f)...)
		if f.lines > b.fileLines {
			out = append(out, fmt.Sprintf("%s: %d lines, at most %d", f.path, f.lines, b.fileLines))
		}
	}
	out = append(out, t.checkMutual()...)
	out = append(out, t.checkPackages(b)...)
	out = append(out, t.checkFunctions(b)...)
	return append(out, t.checkDocumented(b)...)
}

// checkImports holds one file to mayImport and only. What serves tests may reach further inside the module.
func checkImports(f *file) []string {
	var out []string
	for _, imported := range f.imports() {
		for foreign, folders := range only {
			if within(imported, foreign) && !slices.Contains(folders, f.top()) && f.top() != "test" {
				out = append(out, fmt.Sprintf("%s: only %s may import %s", f.path, strings.Join(folders, ", "), foreign))
			}
		}
		if ours, ok := strings.CutPrefix(imported, module+"/"); ok && !f.support() {
			out = append(out, checkOurs(f, ours)...)
		}
	}
	return out
}

func checkOurs(f *file, imported string) []string {
	from, to := f.top(), top(imported+"/")
	if from == "control" && to == "control" && second(f.dir()) != second(imported) {
		return []string{fmt.Sprintf("%s: %s must not import its sibling %s", f.path, f.dir(), imported)}
	}
	allowed, listed := mayImport[from]
	forbidden := listed && !slices.Contains(allowed, to)
	if to == "daemon" || to == "cmd" || to == "test" {
		forbidden = from != "cmd" && from != "daemon" && from != "test"
	}
	if from == to || !forbidden {
		return nil
	}
	return []string{fmt.Sprintf("%s: %s must not import %s", f.path, from, to)}
}

// checkCalls finds init functions anywhere and time.Sleep in tests outside test/.
func checkCalls(f *file) []string {
	var out []string
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Recv == nil && n.Name.Name == "init" {
				out = append(out, f.path+": func init")
			}
		case *ast.SelectorExpr:
			pkg, ok := n.X.(*ast.Ident)
			if ok && pkg.Name == "time" && n.Sel.Name == "Sleep" && f.test && f.top() != "test" {
				out = append(out, fmt.Sprintf("%s: time.Sleep in a test, line %d", f.path, f.fset.Position(n.Pos()).Line))
			}
		}
		return true
	})
	return out
}

// checkMutual finds top folders that import each other.
func (t *tree) checkMutual() []string {
	edges := map[[2]string]bool{}
	for _, f := range t.files {
		for _, imported := range f.imports() {
			if ours, ok := strings.CutPrefix(imported, module+"/"); ok && !f.test {
				edges[[2]string{f.top(), top(ours + "/")}] = true
			}
		}
	}
	var out []string
	for edge := range edges {
		if edge[0] < edge[1] && edges[[2]string{edge[1], edge[0]}] {
			out = append(out, fmt.Sprintf("%s and %s import each other", edge[0], edge[1]))
		}
	}
	slices.Sort(out)
	return out
}

// checkPackages holds each package to its size and asks for its comment.
func (t *tree) checkPackages(b budgets) []string {
	lines, comment := map[string]int{}, map[string]bool{}
	for _, f := range t.files {
		if f.test {
			continue
		}
		lines[f.dir()] += f.lines
		comment[f.dir()] = comment[f.dir()] || f.syntax.Doc != nil
	}
	var out []string
	for dir, n := range lines {
		if n > b.packageLines {
			out = append(out, fmt.Sprintf("%s: %d lines, at most %d", dir, n, b.packageLines))
		}
		if !comment[dir] {
			out = append(out, dir+": no package comment")
		}
	}
	slices.Sort(out)
	return out
}

// lengths returns the lengths of all functions outside tests, sorted.
func (t *tree) lengths() []int {
	var out []int
	for _, f := range t.files {
		if f.test {
			continue
		}
		for _, decl := range f.syntax.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Body != nil {
				out = append(out, f.fset.Position(fn.End()).Line-f.fset.Position(fn.Pos()).Line+1)
			}
		}
	}
	slices.Sort(out)
	return out
}

func (t *tree) checkFunctions(b budgets) []string {
	lengths := t.lengths()
	if len(lengths) == 0 {
		return nil
	}
	var out []string
	if median := lengths[len(lengths)/2]; median > b.funcMedian {
		out = append(out, fmt.Sprintf("functions: median %d lines, at most %d", median, b.funcMedian))
	}
	if p90 := lengths[len(lengths)*9/10]; p90 > b.funcP90 {
		out = append(out, fmt.Sprintf("functions: 90th percentile %d lines, at most %d", p90, b.funcP90))
	}
	if share := longShare(lengths, b.longFunc); share >= b.longShare {
		out = append(out, fmt.Sprintf("functions: %.1f %% are over %d lines, under %.0f %% may be", share*100, b.longFunc, b.longShare*100))
	}
	return out
}

// longShare is the fraction of sorted lengths over limit.
func longShare(lengths []int, limit int) float64 {
	first, _ := slices.BinarySearch(lengths, limit+1)
	return float64(len(lengths)-first) / float64(len(lengths))
}

// checkDocumented counts the exported functions, methods, types and top-level values with a comment.
func (t *tree) checkDocumented(b budgets) []string {
	total, missing := 0, []string{}
	for _, f := range t.files {
		if f.test || f.syntax.Name.Name == "main" {
			continue
		}
		for _, decl := range f.syntax.Decls {
			all, bare := exported(decl)
			total += all
			for _, name := range bare {
				missing = append(missing, f.syntax.Name.Name+"."+name)
			}
		}
	}
	if total == 0 || float64(total-len(missing))/float64(total) >= b.documented {
		return nil
	}
	return []string{fmt.Sprintf("exported names: %d of %d have no comment: %s", len(missing), total, strings.Join(missing, ", "))}
}

// exported returns how many names decl exports and those without a comment of their own or of their group.
func exported(decl ast.Decl) (all int, bare []string) {
	switch decl := decl.(type) {
	case *ast.FuncDecl:
		if !decl.Name.IsExported() || decl.Recv != nil && !exportedReceiver(decl.Recv) {
			return 0, nil
		}
		if decl.Doc == nil {
			bare = []string{decl.Name.Name}
		}
		return 1, bare
	case *ast.GenDecl:
		for _, spec := range decl.Specs {
			bare = append(bare, bareNames(spec, decl.Doc != nil, &all)...)
		}
	}
	return all, bare
}

func bareNames(spec ast.Spec, documented bool, all *int) (bare []string) {
	var names []*ast.Ident
	switch spec := spec.(type) {
	case *ast.TypeSpec:
		names, documented = []*ast.Ident{spec.Name}, documented || spec.Doc != nil || spec.Comment != nil
	case *ast.ValueSpec:
		names, documented = spec.Names, documented || spec.Doc != nil || spec.Comment != nil
	}
	for _, name := range names {
		if !name.IsExported() {
			continue
		}
		*all++
		if !documented {
			bare = append(bare, name.Name)
		}
	}
	return bare
}

// exportedReceiver reports whether a method's type can be seen from outside.
func exportedReceiver(recv *ast.FieldList) bool {
	expr := recv.List[0].Type
	for {
		switch e := expr.(type) {
		case *ast.StarExpr:
			expr = e.X
		case *ast.IndexExpr:
			expr = e.X
		case *ast.IndexListExpr:
			expr = e.X
		case *ast.Ident:
			return e.IsExported()
		default:
			return true
		}
	}
}

func (t *tree) summary() string {
	lengths, lines := t.lengths(), 0
	for _, f := range t.files {
		lines += f.lines
	}
	if len(lengths) == 0 {
		return "no functions"
	}
	return fmt.Sprintf("%d files, %d lines, %d functions: median %d, 90th percentile %d, %.1f %% over 50 lines",
		len(t.files), lines, len(lengths), lengths[len(lengths)/2], lengths[len(lengths)*9/10], longShare(lengths, 50)*100)
}

// top is the first element of a slash-separated file path; "" for a file at the root.
func top(name string) string {
	first, _, nested := strings.Cut(name, "/")
	if !nested {
		return ""
	}
	return first
}

// second is the first two elements of a path.
func second(dir string) string {
	parts := strings.Split(dir, "/")
	return strings.Join(parts[:min(2, len(parts))], "/")
}

func within(imported, prefix string) bool {
	return imported == prefix || strings.HasPrefix(imported, prefix+"/")
}
