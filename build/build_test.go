package build

import (
	"testing"
)

func TestMultiStageBuildIsStoredAndUnpacked(t *testing.T) {
	r := sharedRig(t)
	out := r.build(t, `FROM busybox AS make
COPY a.txt /in
RUN cat /in /in > /twice
FROM scratch
COPY --from=make /twice /out
CMD ["/out"]
`, map[string]string{"a.txt": "x"})
	equal(t, "content", r.file(t, "docker.io/"+tag(t)+":latest", "out"), "xx")
	equal(t, "digest", r.stored(t, "docker.io/"+tag(t)+":latest").Target().Digest.String(), out.image.Digest)
	equal(t, "reference", out.image.References[0], "docker.io/"+tag(t)+":latest")
}
