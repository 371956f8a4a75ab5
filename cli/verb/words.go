package verb

import (
	"fmt"
	"strings"
	"time"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/cli/printable"
)

// Line formats words of others into one safe line.
func Line(format string, args ...any) string { return printable.Line(fmt.Sprintf(format, args...)) }

// Count is a number with its noun.
func Count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// Dash stands for an empty field.
func Dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// Moment is a protobuf time that may be absent.
type Moment interface {
	AsTime() time.Time
	IsValid() bool
}

// Ago is how long ago something was.
func Ago(t Moment) string {
	if !t.IsValid() || t.AsTime().Unix() <= 0 {
		return "-"
	}
	return human.Age(time.Since(t.AsTime())) + " ago"
}

// Short is the part of an ID that people read.
func Short(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// ImageOf is what a container is made from.
func ImageOf(spec *gantryv1.ContainerSpec) string {
	if spec.GetRootfs() != "" {
		return spec.GetRootfs()
	}
	return spec.GetImage()
}

// ShortImage leaves out what nobody reads: the default registry and digests.
func ShortImage(image string) string {
	image = strings.TrimPrefix(strings.TrimPrefix(image, "docker.io/"), "library/")
	if name, digest, ok := strings.Cut(image, "@sha256:"); ok {
		if name == "" {
			return Short(digest)
		}
		return name
	}
	return image
}

// Timeout reads a flag that says how long to wait; empty is no limit.
func Timeout(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	return human.ParseDuration(text)
}
