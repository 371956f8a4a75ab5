// Package cron reads the five fields of a cron expression and tells when they come next, in a time zone.
//
// Parse, then Schedule.Next. A time that a change of the clock skips is made up for at the change; one that it repeats
// counts once, unless the hour is "*". Everything is pure. The time zones are part of the program.
package cron

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // machines without a database of time zones are common

	"github.com/gantryd/gantry/fault"
)

// Schedule is a parsed expression.
type Schedule struct {
	minute, hour, day, month, weekday uint64 // a bit for each value
	anyHour, anyDay, anyWeekday       bool   // the field is "*"
	zone                              *time.Location
}

type field struct {
	name        string
	least, most int
	names       []string // of the values from least on
}

func fields() []field {
	return []field{
		{"minute", 0, 59, nil}, {"hour", 0, 23, nil}, {"day of the month", 1, 31, nil},
		{"month", 1, 12, strings.Fields("jan feb mar apr may jun jul aug sep oct nov dec")},
		{"day of the week", 0, 7, strings.Fields("sun mon tue wed thu fri sat")},
	}
}

// Parse reads "MINUTE HOUR DAY MONTH WEEKDAY" or "@hourly" and its like. zone is as in "Europe/Berlin"; empty means UTC.
func Parse(expression, zone string) (*Schedule, error) {
	loc, err := time.LoadLocation(zone)
	if err != nil || zone == "Local" {
		return nil, fault.New(fault.Invalid, "there is no time zone %q", zone).WithHint("use one like Europe/Berlin, or UTC")
	}
	parts := strings.Fields(written(expression))
	if len(parts) != 5 {
		return nil, fault.New(fault.Invalid, "the schedule %q has not five fields", expression).
			WithHint(`write "MINUTE HOUR DAY MONTH WEEKDAY": "30 3 * * 1-5" is half past three on working days`)
	}
	s := &Schedule{zone: loc, anyHour: parts[1] == "*", anyDay: strings.HasPrefix(parts[2], "*"), anyWeekday: strings.HasPrefix(parts[4], "*")}
	for i, to := range []*uint64{&s.minute, &s.hour, &s.day, &s.month, &s.weekday} {
		f := fields()[i]
		if *to, err = f.parse(parts[i]); err != nil {
			return nil, fault.New(fault.Invalid, "the schedule %q: %s: %s", expression, f.name, err).
				WithHint(`a field is "*", or numbers and ranges with commas between them: "1,5-9,*/15"`)
		}
	}
	if s.weekday&(1<<7) != 0 {
		s.weekday |= 1 // both 0 and 7 are Sunday
	}
	if s.Next(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, fault.New(fault.Invalid, "the schedule %q never comes", expression).WithHint("is there such a day in that month?")
	}
	return s, nil
}

func written(expression string) string {
	switch strings.TrimSpace(expression) {
	case "@yearly", "@annually":
		return "0 0 1 1 *"
	case "@monthly":
		return "0 0 1 * *"
	case "@weekly":
		return "0 0 * * 0"
	case "@daily", "@midnight":
		return "0 0 * * *"
	case "@hourly":
		return "0 * * * *"
	}
	return expression
}

func (f field) parse(text string) (bits uint64, err error) {
	for part := range strings.SplitSeq(strings.ToLower(text), ",") {
		from, to, step, err := f.span(part)
		if err != nil {
			return 0, err
		}
		for v := from; v <= to; v += step {
			bits |= 1 << v
		}
	}
	return bits, nil
}

// span reads "*", "3", "3-7", each with "/2" behind it if wanted.
func (f field) span(part string) (from, to, step int, err error) {
	values, every, stepped := strings.Cut(part, "/")
	step = 1
	if stepped {
		if step, err = strconv.Atoi(every); err != nil || step < 1 || step > f.most {
			return 0, 0, 0, fmt.Errorf("%q is no step", every)
		}
	}
	if values == "*" {
		return f.least, f.most, step, nil
	}
	first, last, ranged := strings.Cut(values, "-")
	if from, err = f.value(first); err != nil {
		return 0, 0, 0, err
	}
	switch {
	case ranged:
		to, err = f.value(last)
	case stepped:
		to = f.most
	default:
		to = from
	}
	if err == nil && to < from {
		err = fmt.Errorf("%q ends before it begins", values)
	}
	return from, to, step, err
}

func (f field) value(text string) (int, error) {
	for i, name := range f.names {
		if text == name {
			return f.least + i, nil
		}
	}
	v, err := strconv.Atoi(text)
	if err != nil || v < f.least || v > f.most || strings.HasPrefix(text, "+") {
		return 0, fmt.Errorf("%q is not from %d to %d", text, f.least, f.most)
	}
	return v, nil
}

const horizon = 5 * 366 * 24 * time.Hour // longer than from one 29 February to the next but for centuries

// Next is the first time of the schedule after t; zero if there is none within five years.
func (s *Schedule) Next(t time.Time) time.Time {
	end := t.Add(horizon)
	for c := t.In(s.zone).Truncate(time.Minute).Add(time.Minute); c.Before(end); {
		switch {
		case s.skipped(c):
			return c
		case !s.onDay(c):
			c = after(c, time.Date(c.Year(), c.Month(), c.Day()+1, 0, 0, 0, 0, s.zone))
		case s.hour&(1<<c.Hour()) == 0:
			c = c.Add(time.Duration(60-c.Minute()) * time.Minute)
		case s.minute&(1<<c.Minute()) == 0 || s.repeated(c):
			c = c.Add(time.Minute)
		default:
			return c
		}
	}
	return time.Time{}
}

// after is the start of the day at next. Where clocks change at midnight there is no such time, and what the library
// makes of it may lie on either side.
func after(c, next time.Time) time.Time {
	for !next.After(c) || next.Day() == c.Day() {
		next = next.Add(30 * time.Minute)
	}
	if back := next.Add(-time.Hour); back.Day() == next.Day() && back.After(c) {
		return back // midnight came twice; the first counts
	}
	return next
}

// onDay reports whether the date fits: where both days are given, either is enough.
func (s *Schedule) onDay(c time.Time) bool {
	if s.month&(1<<c.Month()) == 0 {
		return false
	}
	day, weekday := s.day&(1<<c.Day()) != 0, s.weekday&(1<<c.Weekday()) != 0
	if s.anyDay || s.anyWeekday {
		return day && weekday
	}
	return day || weekday
}

// skipped reports that the clock has just been put forward over a time of the schedule.
func (s *Schedule) skipped(c time.Time) bool {
	before := c.Add(-time.Minute)
	_, was := before.Zone()
	_, is := c.Zone()
	if s.anyHour || is <= was {
		return false
	}
	wall := time.Date(before.Year(), before.Month(), before.Day(), before.Hour(), before.Minute(), 0, 0, time.UTC)
	for range (is - was) / 60 {
		wall = wall.Add(time.Minute)
		if s.onDay(wall) && s.hour&(1<<wall.Hour()) != 0 && s.minute&(1<<wall.Minute()) != 0 {
			return true
		}
	}
	return false
}

// repeated reports that the clock has been put back and showed this time before.
func (s *Schedule) repeated(c time.Time) bool {
	_, was := c.Add(-3 * time.Hour).Zone()
	_, is := c.Zone()
	if s.anyHour || is >= was {
		return false
	}
	before := c.Add(-time.Duration(was-is) * time.Second)
	return before.Day() == c.Day() && before.Hour() == c.Hour() && before.Minute() == c.Minute()
}
