package job

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	gantryv1 "github.com/gantryd/gantry/api/gen/gantry/v1"
	"github.com/gantryd/gantry/internal/cron"
)

// late is how much later than scheduled a run may begin: a change of leaders takes less.
const late = time.Minute

// ahead is how far the clock may have been put back before starts that it then passes again are made again.
const ahead = time.Hour

// start begins the runs whose time has come.
func (d *decision) start() {
	if d.Blocked {
		return
	}
	resumed := d.job.Stopped
	d.job.Stopped = false
	if d.spec.GetSchedule() != "" {
		if resumed || d.job.Release != d.Service.Release {
			d.job.Handled = nil // what was suspended, or had another schedule, has missed nothing
		}
		d.job.Release = d.Service.Release
		if d.job.Generation < d.Service.RestartGeneration && !resumed {
			d.replace("a person has started it again")
			d.begin("restart", time.Time{})
		}
		d.job.Generation = d.Service.RestartGeneration
		d.scheduled()
		return
	}
	cause := ""
	switch {
	case d.job.Release != d.Service.Release:
		cause = "release"
	case d.job.Generation < d.Service.RestartGeneration:
		cause = "restart"
	}
	d.job.Release, d.job.Generation, d.job.Handled = d.Service.Release, d.Service.RestartGeneration, nil
	if cause != "" {
		d.replace("another run has begun")
		d.begin(cause, time.Time{})
	}
}

// replace ends what is running in favour of another run.
func (d *decision) replace(why string) {
	for _, r := range d.job.Runs {
		if r.State == Running {
			d.end(r, Replaced, why)
		}
	}
}

// scheduled begins the run that is due by the schedule.
func (d *decision) scheduled() {
	s, err := cron.Parse(d.spec.Schedule, d.spec.TimeZone)
	if err != nil {
		return // the API and the Compose file's reader have refused it; nothing comes due
	}
	if d.job.Handled == nil || d.job.Handled.AsTime().Sub(d.Now) > ahead {
		d.job.Handled = timestamppb.New(d.Now)
	}
	handled := d.job.Handled.AsTime()
	due, missed := dueBy(s, handled, d.Now)
	if !due.IsZero() {
		d.job.Handled = timestamppb.New(due)
		d.take(due, missed, d.missedWhile(s.Next(handled), due))
	}
	if next := s.Next(d.Now); !next.IsZero() {
		d.again(next)
	}
}

// missedWhile says what kept starts from the first to the last from being made in time.
func (d *decision) missedWhile(first, last time.Time) string {
	const led, waited = "no server led", "it waited for what it depends on"
	from := d.Waited.Add(-late) // what was due then could still have been started
	switch {
	case d.Waited.IsZero() || last.Before(from):
		return led
	case first.Before(from):
		return led + ", or " + waited
	}
	return waited
}

// take decides what becomes of a start that is due, with so many before it that were not made.
func (d *decision) take(due time.Time, missed int, while string) {
	begin, once := true, d.spec.Missed == "once"
	if d.Now.Sub(due) > late {
		missed++
		begin = once
	}
	if missed > 0 {
		d.skip(due, missedWords(missed, while, once))
	}
	if !begin {
		return
	}
	for _, r := range d.job.Runs {
		if r.State != Running {
			continue
		}
		switch d.spec.Overlap {
		case "allow":
		case "replace":
			d.replace("the next run was due")
		default:
			d.skip(due, fmt.Sprintf("run %d had not ended", r.Number))
			return
		}
	}
	d.begin("schedule", due)
}

func missedWords(n int, while string, made bool) string {
	words := "a start was missed"
	switch {
	case n > maxDue:
		words = fmt.Sprintf("more than %d starts were missed", maxDue)
	case n > 1:
		words = fmt.Sprintf("%d starts were missed", n)
	}
	words += " while " + while
	if made {
		words += "; one run makes up for it"
	}
	return words
}

// maxDue bounds the starts that are counted one by one.
const maxDue = 10_000

// dueBy is the last start after one time and not after another, and how many came before it.
func dueBy(s *cron.Schedule, after, now time.Time) (last time.Time, before int) {
	for next := s.Next(after); !next.IsZero() && !next.After(now); next = s.Next(next) {
		if !last.IsZero() {
			before++
		}
		last = next
		if before == maxDue {
			next = now.Add(-time.Hour)
			before++
		}
	}
	return last, before
}

// NextStart is when a job's schedule comes next; zero if it has none.
func NextStart(s *gantryv1.ServiceSpec, now time.Time) time.Time {
	if s.GetJob().GetSchedule() == "" {
		return time.Time{}
	}
	c, err := cron.Parse(s.Job.Schedule, s.Job.TimeZone)
	if err != nil {
		return time.Time{}
	}
	return c.Next(now)
}
