package lint_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/gantryd/gantry/build/lint"
)

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"pinned", "FROM debian:bookworm\nRUN apt-get update && apt-get install -y a b\n", nil},
		{"no tag", "FROM debian\n", []string{"UnpinnedBase:1"}},
		{"latest", "# comment\nFROM debian:latest\n", []string{"UnpinnedBase:2"}},
		{"digest", "FROM debian@sha256:" + strings.Repeat("a", 64) + "\n", nil},
		{"scratch and stages", "FROM scratch AS Base\nFROM base\nCOPY --from=0 /a /b\nCOPY --from=base /a /b\n", nil},
		{"argument's default", "ARG V=latest\nFROM debian:$V\n", []string{"UnpinnedBase:2"}},
		{"argument given", "ARG V=latest\nARG W\nFROM debian:${W}\n", nil},
		{"unknown argument", "FROM $X\n", nil},
		{"copy from an image", "FROM a:1\nCOPY --from=b /x /y\n", []string{"UnpinnedBase:2"}},
		{"mount from an image", "FROM a:1\nRUN --mount=from=b:latest,target=/x true\n", []string{"UnpinnedBase:2"}},
		{"two installs in one RUN", "FROM a:1\nRUN apt-get update && apt-get install -y a && \\\n apt-get -y install b\n", []string{"PackageSteps:2"}},
		{"update alone", "FROM a:1\nRUN apt-get update\nCOPY x y\nRUN apt-get install -y b\n", []string{"PackageUpdateAlone:2"}},
		{"two layers", "FROM a:1\nRUN apk add a\nLABEL x=y\nRUN apk add b\n", []string{"PackageLayers:4"}},
		{"layers with work between", "FROM a:1\nRUN apk add a\nCOPY x y\nRUN apk add b\n", nil},
		{"other managers", "FROM a:1\nRUN dnf install -y a\nRUN apk add b\n", nil},
		{"in another stage", "FROM a:1 AS x\nRUN apk add a\nFROM a:1\nRUN apk add b\n", nil},
		{"heredoc", "FROM a:1\nRUN <<EOF\nset -e\nsudo DEBIAN_FRONTEND=noninteractive apt-get install -y a\n/usr/bin/apt-get install b\nEOF\n", []string{"PackageSteps:2"}},
		{"exec form", "FROM a:1\nRUN [\"apt-get\", \"update\"]\n", []string{"PackageUpdateAlone:2"}},
		{"only words", "FROM a:1\nRUN echo apt-get update; echo install\n", nil},
		{"does not parse", "FROM\nBLA", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, w := range lint.Check("Dockerfile", []byte(c.text), map[string]string{"W": "1"}) {
				got = append(got, fmt.Sprintf("%s:%d", w.Rule, w.Line))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func FuzzCheck(f *testing.F) {
	f.Add("FROM a\nRUN <<EOF\napt-get install\nEOF\n", "W")
	f.Add("# escape=`\nFROM a`\n:latest\nRUN --mount=from=x,target=/ true", "")
	f.Fuzz(func(t *testing.T, text, arg string) {
		lint.Check("Dockerfile", []byte(text), map[string]string{arg: arg})
	})
}
