package replicate

import (
	"fmt"
	"strings"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
)

// mostFindings are told one by one; the rest is counted.
const mostFindings = 10

// say makes findings of what services run by and that one machine alone has, or none that is up, and counts those images.
func say(lacks []lack) (findings []*gantryv1.Finding, single int) {
	more := 0
	for _, l := range lacks {
		if len(l.image.Services) == 0 || len(l.have) > 1 {
			continue
		}
		single++
		switch {
		case !l.settled:
		case len(findings) < mostFindings:
			findings = append(findings, l.finding())
		default:
			more++
		}
	}
	if more > 0 {
		findings = append(findings, &gantryv1.Finding{
			Severity: "warning", Subject: "images", Message: fmt.Sprintf("%d more images of services are on one machine alone, or on none", more),
			Hint: "they are copied one after another: /metrics counts gantry_images_single_copy; gantry image ls shows where each is",
		})
	}
	return findings, single
}

func (l lack) finding() *gantryv1.Finding {
	f := &gantryv1.Finding{Severity: "warning", Subject: l.image.Reference}
	what := fmt.Sprintf("the image %s of %s", l.image.short(), some(l.image.Services))
	if len(l.have) == 0 {
		f.Message = what + " is on no machine that is up: instances start anew only if its registry has it"
		f.Hint = "build it again with gantry up --build, or gantry image pull"
		if len(l.away) > 0 {
			f.Hint = fmt.Sprintf("start %s again, which had it; or %s", some(l.away), f.Hint)
		}
		return f
	}
	f.Message = fmt.Sprintf("%s is on %s alone: if that machine is lost, instances start nowhere else", what, l.have[0])
	f.Hint = l.why()
	return f
}

// why says what becomes of an image with one copy.
func (l lack) why() string {
	switch {
	case len(l.copying) > 0:
		return "it is being copied to " + some(l.copying)
	case len(l.failed) > 0:
		return "copying it did not work and is tried again: " + strings.Join(l.failed, "; ")
	case len(l.away) > 0:
		return fmt.Sprintf("%s had it too and is down; if that lasts it is copied to another machine that is up", some(l.away))
	}
	return "it is copied once other copies are made and there is another machine that can take it: gantry node ls"
}

// short is the image's name with the beginning of its digest.
func (i Image) short() string {
	name, digest, _ := strings.Cut(i.Reference, "@")
	_, hex, _ := strings.Cut(digest, ":")
	return fmt.Sprintf("%s (%.12s)", name, hex)
}

// some lists names, and counts the rest of many.
func some(names []string) string {
	const most = 3
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
