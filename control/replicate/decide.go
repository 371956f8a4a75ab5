package replicate

import (
	"cmp"
	"hash/fnv"
	"slices"
	"time"
)

// Image is one that releases need.
type Image struct {
	Digest    string
	Reference string   // NAME@DIGEST
	Platform  string   // as the release asks for it; empty for that of the machine
	Services  []string // those that run by a release that needs it, "env/app/service"; none if it is only kept to go back to
}

const (
	// perTarget and perSource are how many images one machine receives, and sends for us, at a time.
	perTarget, perSource = 1, 2
)

// task is one copy: an image to a machine.
type task struct{ digest, node string }

// machine is what a decision looks at.
type machine struct {
	id, name, arch string
	server         bool
	up             bool
	takes          bool      // it is not drained: what it has counts, and it may be given more
	told           bool      // it has said what it has
	full           bool      // its disk has no room
	given          time.Time // when one that is down is given up; zero for one that is up
}

// stays reports that a machine is up, or expected back.
func (m machine) stays(now time.Time) bool { return m.up || now.Before(m.given) }

// failure is what became of a task.
type failure struct {
	times int
	text  string
	next  time.Time // not tried before
}

// situation is all that a decision depends on.
type situation struct {
	now      time.Time
	copies   int     // wanted
	images   []Image // the most urgent first
	machines []machine
	holders  map[string][]string // machines that have all of an image, by its digest
	running  map[task]string     // from whom, as was supposed
	failed   map[task]failure
	lacking  map[string]time.Time // digests, by when they were found with too few copies
	settle   time.Duration        // how long that must last
	waitTill time.Time            // for machines that have not told what they have
}

func (s situation) has(digest, node string) bool { return slices.Contains(s.holders[digest], node) }

// plan is what to do.
type plan struct {
	start []start
	stop  []task
	lacks []lack
	again time.Time // when to decide anew though nothing happened; zero for never
}

type start struct {
	task
	from  string
	image Image
}

// lack is an image with too few copies on machines of one kind.
type lack struct {
	image   Image
	have    []string // names of machines that are up and have it
	away    []string // that are down and had it
	copying []string // that are being sent it
	failed  []string // what went wrong, "n2: no space left"
	settled bool     // it is more than a moment since
}

// decider makes one plan.
type decider struct {
	situation
	plan
	receiving, sending map[string]int
	begun              map[task]bool // those of this plan
	byID               map[string]machine
}

// decide says which copies to begin and which to give up.
func decide(s situation) plan {
	d := &decider{situation: s, receiving: map[string]int{}, sending: map[string]int{}, begun: map[task]bool{}, byID: map[string]machine{}}
	for _, m := range s.machines {
		d.byID[m.id] = m
	}
	if s.copies < 2 || len(s.machines) < 2 {
		d.stopAll()
		return d.plan
	}
	if s.now.Before(s.waitTill) && slices.ContainsFunc(s.machines, func(m machine) bool { return !m.told }) {
		d.later(s.waitTill)
		return d.plan
	}
	d.stopNeedless()
	for _, image := range s.images {
		if d.enough(image) {
			continue
		}
		groups := d.groups(image)
		if len(groups) == 0 {
			d.lacks = append(d.lacks, d.nowhere(image))
		}
		for _, g := range groups {
			d.spread(image, g)
		}
	}
	return d.plan
}

func (d *decider) later(at time.Time) {
	if at.After(d.now) && (d.again.IsZero() || at.Before(d.again)) {
		d.again = at
	}
}

func (d *decider) stopAll() {
	for t := range d.running {
		d.stop = append(d.stop, t)
	}
}

// stopNeedless ends copies of what nobody needs, or to machines that take no more, and counts the others.
func (d *decider) stopNeedless() {
	needed := map[string]bool{}
	for _, i := range d.images {
		needed[i.Digest] = true
	}
	targets := map[string]bool{}
	for _, m := range d.machines {
		targets[m.id] = m.up && m.takes
	}
	for t, from := range d.running {
		if !needed[t.digest] || !targets[t.node] {
			d.stop = append(d.stop, t)
			continue
		}
		d.receiving[t.node]++
		d.sending[from]++
	}
}

// kind tells machines apart: what one with another processor has is of another platform, unless the release names one.
func (i Image) kind(m machine) string {
	if i.Platform != "" {
		return ""
	}
	return m.arch
}

// enough looks at the holders alone, of which there are few: most images lack nothing.
func (d *decider) enough(image Image) bool {
	safe := map[string]int{}
	for _, id := range d.holders[image.Digest] {
		if m, ok := d.byID[id]; ok && m.stays(d.now) {
			safe[image.kind(m)] += number(m.up && m.takes)
		}
	}
	for _, n := range safe {
		if n < d.copies {
			return false
		}
	}
	return len(safe) > 0
}

// groups are the machines that an image is of use on, by those that have it.
func (d *decider) groups(image Image) [][]machine {
	byArch := map[string][]machine{}
	var order []string
	for _, m := range d.machines {
		if a := image.kind(m); m.stays(d.now) && d.has(image.Digest, m.id) && !slices.Contains(order, a) {
			order = append(order, a)
		}
	}
	for _, m := range d.machines {
		byArch[image.kind(m)] = append(byArch[image.kind(m)], m)
	}
	var out [][]machine
	for _, a := range order {
		out = append(out, byArch[a])
	}
	return out
}

// nowhere is an image that no machine has that is up or expected back.
func (d *decider) nowhere(image Image) lack {
	l := lack{image: image, settled: d.settled(image.Digest)}
	for _, m := range d.machines {
		if d.has(image.Digest, m.id) {
			l.away = append(l.away, m.name)
		}
	}
	return l
}

// settled reports that an image has lacked copies for more than a moment: nodes that start it now fetch it themselves.
func (d *decider) settled(digest string) bool {
	since, ok := d.lacking[digest]
	if !ok {
		since = d.now
	}
	d.later(since.Add(d.settle))
	return !d.now.Before(since.Add(d.settle))
}

// spread plans the copies of an image on machines of one kind.
func (d *decider) spread(image Image, group []machine) {
	l := lack{image: image}
	var sources []machine
	places, safe, copies := 0, 0, 0
	for _, m := range group {
		t := task{image.Digest, m.id}
		_, running := d.running[t]
		has, counts := d.has(image.Digest, m.id), m.takes && m.stays(d.now)
		switch {
		case has && m.up:
			sources, l.have = append(sources, m), append(l.have, m.name)
		case has:
			l.away = append(l.away, m.name)
			d.later(m.given)
		case running && m.up:
			l.copying = append(l.copying, m.name)
		case d.failed[t].text != "":
			l.failed = append(l.failed, m.name+": "+d.failed[t].text)
		}
		places += number(counts)
		safe += number(counts && has && m.up)
		copies += number(counts && (has || running && m.up))
	}
	want := min(d.copies, places)
	if safe >= want {
		return
	}
	l.settled = d.settled(image.Digest)
	for l.settled && copies < want && d.begin(image, group, sources, &l) {
		copies++
	}
	d.lacks = append(d.lacks, l)
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// begin plans one more copy, if there is a machine for it now and one to send it.
func (d *decider) begin(image Image, group, sources []machine, l *lack) bool {
	if len(sources) == 0 {
		return false
	}
	from := slices.MinFunc(sources, func(a, b machine) int { return cmp.Compare(d.sending[a.id], d.sending[b.id]) })
	if d.sending[from.id] >= perSource {
		return false
	}
	to, ok := d.target(image, group)
	if !ok {
		return false
	}
	t := task{image.Digest, to.id}
	d.start = append(d.start, start{task: t, from: from.id, image: image})
	d.begun[t] = true
	d.sending[from.id]++
	d.receiving[to.id]++
	l.copying = append(l.copying, to.name)
	return true
}

// target is the best machine for one more copy: servers first, then by a number that spreads images over equals.
func (d *decider) target(image Image, group []machine) (machine, bool) {
	var best machine
	found := false
	for _, m := range group {
		t := task{image.Digest, m.id}
		_, running := d.running[t]
		if !m.up || !m.takes || !m.told || m.full || running || d.begun[t] || d.has(image.Digest, m.id) || d.receiving[m.id] >= perTarget {
			continue
		}
		if f := d.failed[t]; d.now.Before(f.next) {
			d.later(f.next)
			continue
		}
		if !found || before(image.Digest, m, best) {
			best, found = m, true
		}
	}
	return best, found
}

func before(digest string, a, b machine) bool {
	if a.server != b.server {
		return a.server
	}
	return cmp.Or(cmp.Compare(weight(digest, a.id), weight(digest, b.id)), cmp.Compare(a.id, b.id)) > 0
}

func weight(digest, node string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(digest + " " + node))
	return h.Sum64()
}
