package replicate

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// world is machines and images by short words: "a* b" is a server a and a node b, both up.
type world struct{ situation }

func newWorld(machines string, images ...string) *world {
	w := &world{situation{
		now: noon, copies: 2, settle: 10 * time.Second, running: map[task]string{}, failed: map[task]failure{},
		lacking: map[string]time.Time{}, holders: map[string][]string{},
	}}
	for _, word := range strings.Fields(machines) {
		id := strings.TrimRight(word, "*!?-")
		m := machine{id: id, name: id, arch: "amd64", up: true, takes: true, told: true, server: strings.Contains(word, "*")}
		if strings.Contains(word, "!") { // just down
			m.up, m.given = false, noon.Add(time.Minute)
		}
		if strings.Contains(word, "-") {
			m.takes = false
		}
		if strings.Contains(word, "?") {
			m.told = false
		}
		w.machines = append(w.machines, m)
	}
	for _, text := range images { // "x=a,b"
		digest, holders, _ := strings.Cut(text, "=")
		w.images = append(w.images, Image{Digest: digest, Reference: digest + "@sha256:" + digest, Services: []string{"env/app/" + digest}})
		w.holders[digest] = strings.FieldsFunc(holders, func(r rune) bool { return r == ',' })
		w.lacking[digest] = noon.Add(-time.Hour)
	}
	return w
}

func (w *world) starts() string {
	var out []string
	for _, s := range decide(w.situation).start {
		out = append(out, s.digest+" "+s.from+">"+s.node)
	}
	return strings.Join(out, ", ")
}

func TestDecide(t *testing.T) {
	for name, c := range map[string]struct {
		w    *world
		with func(*world)
		want string
	}{
		"one machine":                    {w: newWorld("a*", "x=a")},
		"enough copies":                  {w: newWorld("a* b c", "x=b,c")},
		"servers first":                  {w: newWorld("b a* c", "x=b"), want: "x b>a"},
		"not to one that is down":        {w: newWorld("a*! b c", "x=b"), want: "x b>c"},
		"not to one that is drained":     {w: newWorld("a*- b c", "x=b"), want: "x b>c"},
		"a drained one does not count":   {w: newWorld("a*- b c", "x=a,b"), want: "x a>c"},
		"a drained one sends":            {w: newWorld("a*- b", "x=a"), want: "x a>b"},
		"not to one without room":        {w: newWorld("a* b c", "x=b"), with: func(w *world) { w.machines[0].full = true }, want: "x b>c"},
		"nobody has it":                  {w: newWorld("a* b", "x=")},
		"who had it is down":             {w: newWorld("a*! b c", "x=a")},
		"who has it too may come back":   {w: newWorld("a*! b c", "x=a,b")},
		"somebody has not told":          {w: newWorld("a* b c?", "x=a"), with: func(w *world) { w.waitTill = noon.Add(time.Second) }},
		"somebody never tells":           {w: newWorld("a* b* c?", "x=a"), with: func(w *world) { w.waitTill = noon }, want: "x a>b"},
		"none is given to who tells not": {w: newWorld("a* c?", "x=a")},
		"three":                          {w: newWorld("a* b c", "x=a"), with: func(w *world) { w.copies = 3 }, want: "x a>b, x a>c"},
		"more than there are":            {w: newWorld("a* b", "x=a"), with: func(w *world) { w.copies = 9 }, want: "x a>b"},
		"switched off":                   {w: newWorld("a* b", "x=a"), with: func(w *world) { w.copies = 1 }},
		"one at a time to a machine":     {w: newWorld("a* b", "x=a", "y=a"), want: "x a>b"},
		"two at a time from a machine": {
			w: newWorld("a b c d", "x=a", "y=a", "z=a"), with: func(w *world) { w.copies = 4 }, want: "x a>b, x a>c",
		},
		"it is under way":            {w: newWorld("a b c", "x=a"), with: func(w *world) { w.running[task{"x", "b"}] = "a" }},
		"it has only just been made": {w: newWorld("a b", "x=a"), with: func(w *world) { delete(w.lacking, "x") }},
		"who failed is passed over": {
			w: newWorld("a b* c", "x=a"),
			with: func(w *world) {
				w.failed[task{"x", "b"}] = failure{times: 1, text: "full", next: noon.Add(time.Second)}
			}, want: "x a>c",
		},
		"who failed is tried again": {
			w:    newWorld("a b*", "x=a"),
			with: func(w *world) { w.failed[task{"x", "b"}] = failure{times: 1, text: "full", next: noon} }, want: "x a>b",
		},
		"of another kind":          {w: newWorld("a b* c", "x=a"), with: func(w *world) { w.machines[1].arch = "arm64" }, want: "x a>c"},
		"the only one of its kind": {w: newWorld("a b*", "x=a"), with: func(w *world) { w.machines[1].arch = "arm64" }},
		"of a platform by name": {
			w: newWorld("a b*", "x=a"), want: "x a>b",
			with: func(w *world) { w.machines[1].arch = "arm64"; w.images[0].Platform = "linux/amd64" },
		},
	} {
		t.Run(name, func(t *testing.T) {
			if c.with != nil {
				c.with(c.w)
			}
			if got := c.w.starts(); got != c.want {
				t.Errorf("starts %q, want %q", got, c.want)
			}
		})
	}
}

// TestNeedlessCopiesAreStopped has copies under way of what nobody needs, and to machines that are gone.
func TestNeedlessCopiesAreStopped(t *testing.T) {
	w := newWorld("a b! c d-", "x=a")
	for _, n := range []string{"b", "c", "d"} {
		w.running[task{"x", n}] = "a"
	}
	w.running[task{"old", "c"}] = "a"
	got := map[task]bool{}
	for _, s := range decide(w.situation).stop {
		got[s] = true
	}
	want := []task{{"x", "b"}, {"x", "d"}, {"old", "c"}}
	for _, s := range want {
		if !got[s] {
			t.Errorf("%v goes on", s)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%v are stopped", got)
	}
	w.copies = 1
	if got := decide(w.situation).stop; len(got) != 4 {
		t.Errorf("switched off, %v are stopped, want all", got)
	}
}

// TestDecisionsComeAgain asks when the next decision is due though nothing happens.
func TestDecisionsComeAgain(t *testing.T) {
	for name, c := range map[string]struct {
		w    *world
		with func(*world)
		want time.Duration
	}{
		"enough copies":       {w: newWorld("a b", "x=a,b")},
		"just made":           {w: newWorld("a b", "x=a"), with: func(w *world) { w.lacking["x"] = noon.Add(-3 * time.Second) }, want: 7 * time.Second},
		"expected back":       {w: newWorld("a b! c", "x=a,b"), want: time.Minute},
		"failed":              {w: newWorld("a b", "x=a"), with: func(w *world) { w.failed[task{"x", "b"}] = failure{next: noon.Add(time.Second)} }, want: time.Second},
		"somebody is to tell": {w: newWorld("a b?", "x=a"), with: func(w *world) { w.waitTill = noon.Add(time.Second) }, want: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			if c.with != nil {
				c.with(c.w)
			}
			want := time.Time{}
			if c.want > 0 {
				want = noon.Add(c.want)
			}
			if got := decide(c.w.situation).again; !got.Equal(want) {
				t.Errorf("again at %s, want %s", got, want)
			}
		})
	}
}

func TestFindings(t *testing.T) {
	for name, c := range map[string]struct {
		w             *world
		with          func(*world)
		message, hint string // what must be in them; empty for no finding
		single        int
	}{
		"enough":          {w: newWorld("a b", "x=a,b")},
		"one machine":     {w: newWorld("a", "x=a")},
		"is being copied": {w: newWorld("a b", "x=a"), message: "is on a alone", hint: "being copied to b", single: 1},
		"just made":       {w: newWorld("a b", "x=a"), with: func(w *world) { delete(w.lacking, "x") }, single: 1},
		"for a rollback":  {w: newWorld("a b", "x=a"), with: func(w *world) { w.images[0].Services = nil }},
		"failed": {
			w:       newWorld("a b", "x=a"),
			with:    func(w *world) { w.failed[task{"x", "b"}] = failure{text: "no space left", next: noon.Add(time.Second)} },
			message: "is on a alone", hint: "b: no space left", single: 1,
		},
		"the other is down":        {w: newWorld("a b! c", "x=a,b"), message: "is on a alone", hint: "b had it too and is down", single: 1},
		"nobody that is up":        {w: newWorld("a b! c", "x=b"), message: "is on no machine that is up", hint: "start b again", single: 1},
		"nobody at all":            {w: newWorld("a b c", "x="), message: "is on no machine that is up", hint: "gantry up --build", single: 1},
		"nobody takes copies":      {w: newWorld("a b c-", "x=a"), with: func(w *world) { w.machines[1].told = false }, message: "alone", hint: "gantry node ls", single: 1},
		"the only one of its kind": {w: newWorld("a b", "x=a"), with: func(w *world) { w.machines[1].arch = "arm64" }},
		"two of three":             {w: newWorld("a b c", "x=a,b"), with: func(w *world) { w.copies = 3 }},
	} {
		t.Run(name, func(t *testing.T) {
			if c.with != nil {
				c.with(c.w)
			}
			got, single := say(decide(c.w.situation).lacks)
			if single != c.single {
				t.Errorf("%d images with one copy, want %d", single, c.single)
			}
			if (len(got) > 0) != (c.message != "") || len(got) > 1 {
				t.Fatalf("findings %v", got)
			}
			if len(got) == 1 && (!strings.Contains(got[0].Message, c.message) || !strings.Contains(got[0].Hint, c.hint) || !strings.Contains(got[0].Message, "env/app/x")) {
				t.Errorf("%s\nhint: %s", got[0].Message, got[0].Hint)
			}
		})
	}
}

// TestManyFindingsAreCounted has more images on one machine alone than anybody wants to read.
func TestManyFindingsAreCounted(t *testing.T) {
	w := newWorld("a b")
	for i := range 13 {
		d := fmt.Sprintf("x%d", i)
		w.images = append(w.images, Image{Digest: d, Reference: d, Services: []string{"s"}})
		w.holders[d], w.lacking[d] = []string{"a"}, noon.Add(-time.Hour)
	}
	got, single := say(decide(w.situation).lacks)
	if single != 13 || len(got) != mostFindings+1 || !strings.Contains(got[mostFindings].Message, "3 more images") {
		t.Errorf("%d images, findings %v", single, got)
	}
}

// TestCopiesAreSpread has many images on one machine of many equals.
func TestCopiesAreSpread(t *testing.T) {
	got := map[string]int{}
	for i := range 300 {
		w := newWorld("a b c d", fmt.Sprintf("x%d=a", i))
		for _, s := range decide(w.situation).start {
			got[s.node]++
		}
	}
	for _, n := range []string{"b", "c", "d"} {
		if got[n] < 50 {
			t.Errorf("of 300 copies %s is given %d", n, got[n])
		}
	}
}

// TestRandomSchedules lets machines come, go, be drained and be wiped, images be needed and copies succeed and fail, in any
// order. At no time is a rule broken, and once all is quiet every image is where it should be.
func TestRandomSchedules(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := newSim(rt)
		for range rapid.IntRange(1, 80).Draw(rt, "steps") {
			s.disturb(rt)
			s.step(rt, false)
		}
		s.calm()
		for range 400 {
			s.step(rt, true)
		}
		s.checkCopies(rt)
	})
}

// BenchmarkDecide is one decision over 2,000 images of which 20 lack a copy, on 1,000 machines.
func BenchmarkDecide(b *testing.B) {
	w := newWorld("")
	for i := range 1000 {
		id := fmt.Sprintf("n%d", i)
		w.machines = append(w.machines, machine{id: id, name: id, up: true, takes: true, told: true, server: i < 3})
	}
	for i := range 2000 {
		d := fmt.Sprintf("sha256:%d", i)
		w.images = append(w.images, Image{Digest: d})
		w.holders[d] = []string{w.machines[i%3].id, w.machines[i%1000].id}
		if i%100 == 7 {
			w.holders[d] = w.holders[d][:1]
			w.lacking[d] = noon.Add(-time.Hour)
		}
	}
	for b.Loop() {
		decide(w.situation)
	}
}

// sim is a cluster in memory whose copies end when the test wants.
type sim struct{ *world }

func newSim(rt *rapid.T) *sim {
	s := &sim{newWorld("")}
	s.copies = rapid.IntRange(2, 4).Draw(rt, "copies")
	for i := range rapid.IntRange(1, 6).Draw(rt, "machines") {
		id := fmt.Sprintf("n%d", i)
		arch := rapid.SampledFrom([]string{"amd64", "amd64", "arm64"}).Draw(rt, "arch")
		s.machines = append(s.machines, machine{id: id, name: id, arch: arch, up: true, takes: true, told: true, server: i < 2})
	}
	return s
}

// disturb does something to the cluster.
func (s *sim) disturb(rt *rapid.T) {
	i := rapid.IntRange(0, len(s.machines)-1).Draw(rt, "machine")
	m := &s.machines[i]
	switch rapid.IntRange(0, 6).Draw(rt, "what") {
	case 0:
		if m.up = !m.up; m.up {
			m.given = time.Time{}
		} else {
			m.given = s.now.Add(time.Minute)
		}
	case 1:
		m.takes = !m.takes
	case 2: // it lost its disk
		for d, h := range s.holders {
			s.holders[d] = slices.DeleteFunc(slices.Clone(h), func(n string) bool { return n == m.id })
		}
	case 3, 4: // somebody builds
		d := fmt.Sprintf("x%d", len(s.images))
		s.images = append(s.images, Image{Digest: d, Services: []string{"s"}})
		s.holders[d] = []string{m.id}
	case 5: // somebody removes a service
		if len(s.images) > 0 {
			s.images = slices.Delete(slices.Clone(s.images), 0, 1)
		}
	}
}

// calm has all machines up.
func (s *sim) calm() {
	for i := range s.machines {
		s.machines[i].up, s.machines[i].takes, s.machines[i].given = true, true, time.Time{}
	}
}

// step decides, acts as the controller does, and ends some copies, well if all is quiet.
func (s *sim) step(rt *rapid.T, quiet bool) {
	p := decide(s.situation)
	s.checkPlan(rt, p)
	for _, t := range p.stop {
		delete(s.running, t)
	}
	for _, b := range p.start {
		s.running[b.task] = b.from
	}
	lacking := map[string]time.Time{}
	for _, l := range p.lacks {
		since, ok := s.lacking[l.image.Digest]
		if !ok {
			since = s.now
		}
		lacking[l.image.Digest] = since
	}
	s.lacking = lacking
	if quiet && len(s.running) == 0 && p.again.IsZero() {
		return
	}
	s.now = s.now.Add(5 * time.Second)
	s.endCopies(rt, quiet)
}

func (s *sim) endCopies(rt *rapid.T, quiet bool) {
	var all []task
	for t := range s.running {
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b task) int { return strings.Compare(a.digest+a.node, b.digest+b.node) })
	for _, t := range all {
		how := 1
		if !quiet {
			how = rapid.IntRange(0, 2).Draw(rt, "end")
		}
		switch how {
		case 1:
			s.holders[t.digest] = append(slices.Clone(s.holders[t.digest]), t.node)
			delete(s.running, t)
		case 2:
			s.failed[t] = failure{times: 1, text: "it failed", next: s.now.Add(30 * time.Second)}
			delete(s.running, t)
		}
	}
}

// checkPlan holds a plan against what must never be.
func (s *sim) checkPlan(rt *rapid.T, p plan) {
	receiving, sending := map[string]int{}, map[string]int{}
	for t, from := range s.running {
		if !slices.Contains(p.stop, t) {
			receiving[t.node]++
			sending[from]++
		}
	}
	for _, b := range p.start {
		to, from := s.machine(b.node), s.machine(b.from)
		if !to.up || !to.takes || !from.up || s.has(b.digest, b.node) || !s.has(b.digest, b.from) {
			rt.Fatalf("%v is begun from %v to %v", b.task, from, to)
		}
		if _, ok := s.running[b.task]; ok {
			rt.Fatalf("%v is begun twice", b.task)
		}
		if receiving[b.node]++; receiving[b.node] > perTarget {
			rt.Fatalf("%s receives %d", b.node, receiving[b.node])
		}
		if sending[b.from]++; sending[b.from] > perSource {
			rt.Fatalf("%s sends %d", b.from, sending[b.from])
		}
		if f, ok := s.failed[b.task]; ok && s.now.Before(f.next) {
			rt.Fatalf("%v is tried again too early", b.task)
		}
		s.checkFew(rt, b)
	}
}

// checkFew looks whether one more copy is needed at all.
func (s *sim) checkFew(rt *rapid.T, b start) {
	safe := 0
	for _, m := range s.machines {
		if m.up && m.takes && s.has(b.digest, m.id) && m.arch == s.machine(b.node).arch {
			safe++
		}
	}
	if safe >= s.copies {
		rt.Fatalf("%v is begun, and there are %d copies", b.task, safe)
	}
}

func (s *sim) machine(id string) machine {
	return s.machines[slices.IndexFunc(s.machines, func(m machine) bool { return m.id == id })]
}

// checkCopies counts the copies of what some machine has.
func (s *sim) checkCopies(rt *rapid.T) {
	for _, i := range s.images {
		have, places := map[string]int{}, map[string]int{}
		for _, m := range s.machines {
			places[m.arch]++
			have[m.arch] += number(s.has(i.Digest, m.id))
		}
		for arch, n := range have {
			if n > 0 && n < min(s.copies, places[arch]) {
				rt.Fatalf("%s is on %d of %d machines of %s, want %d", i.Digest, n, places[arch], arch, s.copies)
			}
		}
	}
}
