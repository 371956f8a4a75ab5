package build

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/internal/buildcontext"
)

const benchDockerfile = `FROM busybox AS make
WORKDIR /src
COPY go.mod ./
RUN mkdir -p /deps && cp go.mod /deps/
COPY . .
RUN cat $(find . -name '*.go') > /out
FROM busybox
COPY --from=make /out /app
RUN chmod 755 /app
CMD ["/app"]
`

// BenchmarkRebuild measures what a user waits for: packing 500 files, unpacking them, building.
func BenchmarkRebuild(b *testing.B) {
	r := sharedRig(b)
	files := map[string]string{"Dockerfile": benchDockerfile, "go.mod": "module x\n"}
	for i := range 500 {
		files[fmt.Sprintf("pkg%d/file%d.go", i%20, i)] = strings.Repeat(fmt.Sprintln("line of", i), 200)
	}
	dir := tree(b, files)
	round(b, r, dir)
	b.Run("cached-in-place", func(b *testing.B) {
		for b.Loop() {
			solveIn(b, r, dir, dir)
		}
	})
	b.Run("cached", func(b *testing.B) {
		for b.Loop() {
			round(b, r, dir)
		}
	})
	b.Run("one-file", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			write(b, filepath.Join(dir, "pkg7", "file7.go"), fmt.Sprint("change ", i, b.N))
			round(b, r, dir)
		}
	})
}

func round(b *testing.B, r *rig, dir string) {
	b.Helper()
	to, release, err := r.ContextDir(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer release()
	in, out := io.Pipe()
	go func() { out.CloseWithError(buildcontext.Pack(context.Background(), dir, "", out)) }()
	if err := UnpackContext(b.Context(), in, to); err != nil {
		b.Fatal(err)
	}
	solveIn(b, r, dir, to)
}

// solveIn builds in a directory, as a request whose context is the client's dir.
func solveIn(b *testing.B, r *rig, dir, where string) {
	b.Helper()
	_, err := r.Build(b.Context(), Request{
		Start:    &gantryv1.BuildStart{Tags: []string{"bench"}, Spec: &gantryv1.BuildSpec{Context: dir}, Offline: true},
		Contexts: map[string]string{"context": where},
	}, func(*gantryv1.BuildEvent) error { return nil })
	if err != nil {
		b.Fatal(err)
	}
}
