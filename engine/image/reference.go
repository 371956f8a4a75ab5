package image

import (
	"regexp"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/gantryd/gantry/fault"
)

var idPattern = regexp.MustCompile(`^(sha256:)?[0-9a-f]{4,64}$`)

// Normalize returns the full form of a reference as Docker reads it: "debian:bookworm" is
// "docker.io/library/debian:bookworm", no tag is ":latest", and a digest wins over a tag.
func Normalize(ref string) (string, error) {
	n, err := parse(ref)
	if err != nil {
		return "", err
	}
	return n.String(), nil
}

// Familiar returns the short form of a full reference, as people type it.
func Familiar(ref string) string {
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.FamiliarString(n)
}

func parse(ref string) (reference.Named, error) {
	if len(ref) > 4096 {
		return nil, fault.New(fault.Invalid, "image reference is longer than 4096 bytes")
	}
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "image reference %q", ref).
			WithHint("write it as NAME:TAG or NAME@sha256:…, in lower case")
	}
	if d, ok := n.(reference.Canonical); ok {
		return reference.WithDigest(reference.TrimNamed(n), d.Digest())
	}
	return reference.TagNameOnly(n), nil
}

func digestOf(ref string) digest.Digest {
	_, d, ok := strings.Cut(ref, "@")
	if !ok {
		return ""
	}
	return digest.Digest(d)
}

// bare tells that a record's name is only a digest: an image nobody named.
func bare(name string) bool { return strings.HasPrefix(name, "sha256:") }
