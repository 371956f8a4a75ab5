package progress_test

import (
	"fmt"
	"testing"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/store"
	"github.com/gantryd/gantry/store/progress"
)

// BenchmarkByService looks at an app of 10 instances, and at all, among 100,000.
func BenchmarkByService(b *testing.B) {
	objects := []store.Object{&gantryv1.Node{Meta: store.NewMeta("n")}}
	for n := range 100_000 {
		objects = append(objects, &gantryv1.Instance{
			Meta: store.NewMeta(fmt.Sprintf("%08d", n)), Environment: "p", App: fmt.Sprint("app", n/10), Service: "web", Node: "n", Slot: int32(n % 10),
		})
	}
	r := store.Fixed(objects...)
	for prefix, want := range map[string]int{"p/app77/": 1, "": 10_000} {
		b.Run(fmt.Sprint(want, "-services"), func(b *testing.B) {
			for b.Loop() {
				if got := progress.ByService(r, prefix); len(got) != want {
					b.Fatal(len(got))
				}
			}
		})
	}
}
