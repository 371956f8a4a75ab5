package cron

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/gantryd/gantry/fault"
)

func at(t *testing.T, zone, text string) time.Time {
	t.Helper()
	loc, err := time.LoadLocation(zone)
	if err != nil {
		t.Fatal(err)
	}
	got, err := time.ParseInLocation("2006-01-02 15:04:05", text, loc)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestNext(t *testing.T) {
	for _, test := range []struct{ expression, zone, from, want string }{
		{"* * * * *", "UTC", "2026-11-21 10:00:00", "2026-11-21 10:01:00"},
		{"* * * * *", "UTC", "2026-11-21 10:00:59", "2026-11-21 10:01:00"},
		{"0 3 * * *", "UTC", "2026-11-21 03:00:00", "2026-11-22 03:00:00"},
		{"0 3 * * *", "Europe/Berlin", "2026-11-21 02:59:00", "2026-11-21 03:00:00"},
		{"*/15 * * * *", "UTC", "2026-11-21 10:46:00", "2026-11-21 11:00:00"},
		{"5/20 * * * *", "UTC", "2026-11-21 10:26:00", "2026-11-21 10:45:00"},
		{"30 9-17 * * mon-fri", "UTC", "2026-11-20 17:30:00", "2026-11-23 09:30:00"},
		{"0 0 1 * *", "UTC", "2026-12-01 00:00:00", "2027-01-01 00:00:00"},
		{"0 0 29 2 *", "UTC", "2026-01-01 00:00:00", "2028-02-29 00:00:00"},
		{"0 0 13 * 5", "UTC", "2026-11-21 00:00:00", "2026-11-27 00:00:00"}, // the 13th or a Friday
		{"0 0 * * 7", "UTC", "2026-11-21 00:00:00", "2026-11-22 00:00:00"},
		{"0 0 * jan,jul *", "UTC", "2026-11-21 00:00:00", "2027-01-01 00:00:00"},
		{"@weekly", "UTC", "2026-11-21 00:00:00", "2026-11-22 00:00:00"},
		// Berlin, 29 March 2026: from 02:00 to 03:00.
		{"30 2 * * *", "Europe/Berlin", "2026-03-28 12:00:00", "2026-03-29 03:00:00"},
		{"30 2 * * *", "Europe/Berlin", "2026-03-29 03:00:00", "2026-03-30 02:30:00"},
		{"0 2,3 * * *", "Europe/Berlin", "2026-03-29 03:00:00", "2026-03-30 02:00:00"},
		{"30 * * * *", "Europe/Berlin", "2026-03-29 01:30:00", "2026-03-29 03:30:00"},
		// Beirut, 29 March 2026: from 00:00 to 01:00.
		{"30 0 * * *", "Asia/Beirut", "2026-03-28 12:00:00", "2026-03-29 01:00:00"},
		{"0 5 * * *", "Asia/Beirut", "2026-03-28 12:00:00", "2026-03-29 05:00:00"},
		// Lord Howe, 4 October 2026: from 02:00 to 02:30.
		{"15 2 * * *", "Australia/Lord_Howe", "2026-10-03 12:00:00", "2026-10-04 02:30:00"},
	} {
		s, err := Parse(test.expression, test.zone)
		if err != nil {
			t.Errorf("%s: %v", test.expression, err)
			continue
		}
		if got, want := s.Next(at(t, test.zone, test.from)), at(t, test.zone, test.want); !got.Equal(want) {
			t.Errorf("%s in %s after %s: got %s, want %s", test.expression, test.zone, test.from, got, want)
		}
	}
}

// TestClockPutBack: Berlin, 25 October 2026, from 03:00 CEST to 02:00 CET.
func TestClockPutBack(t *testing.T) {
	from := at(t, "Europe/Berlin", "2026-10-24 12:00:00")
	for expression, want := range map[string]int{"30 2 25 10 *": 1, "30 * 25 10 *": 25, "0,30 2 25 10 *": 2, "*/30 1-3 25 10 *": 6} {
		s, err := Parse(expression, "Europe/Berlin")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for c := s.Next(from); c.Before(from.Add(72 * time.Hour)); c = s.Next(c) {
			n++
		}
		if n != want {
			t.Errorf("%s: %d times, want %d", expression, n, want)
		}
	}
}

func TestWhatIsNoSchedule(t *testing.T) {
	for _, test := range [][2]string{
		{"", ""}, {"* * * *", ""}, {"* * * * * *", ""}, {"60 * * * *", ""}, {"* 24 * * *", ""}, {"* * 0 * *", ""}, {"* * 32 * *", ""},
		{"* * * 13 *", ""}, {"* * * * 8", ""}, {"5-1 * * * *", ""}, {"*/0 * * * *", ""}, {"a * * * *", ""}, {"* * * foo *", ""},
		{"+1 * * * *", ""}, {"-1 * * * *", ""}, {", * * * *", ""}, {"@often", ""}, {"0 0 31 2 *", ""}, {"0 0 * * *", "Mars/Olympus"}, {"0 0 * * *", "Local"},
	} {
		if _, err := Parse(test[0], test[1]); !fault.Is(err, fault.Invalid) || fault.HintOf(err) == "" {
			t.Errorf("%q in %q: %v", test[0], test[1], err)
		}
	}
}

// TestNextAgainstEveryMinute compares Next with looking at every minute, where no clock changes.
func TestNextAgainstEveryMinute(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &Schedule{
			minute: rapid.Uint64Range(1, 1<<60-1).Draw(t, "minute"), hour: rapid.Uint64Range(1, 1<<24-1).Draw(t, "hour"),
			day: rapid.Uint64Range(1, 1<<31-1).Draw(t, "day") << 1, month: rapid.Uint64Range(1, 1<<12-1).Draw(t, "month") << 1,
			weekday: rapid.Uint64Range(1, 1<<7-1).Draw(t, "weekday"), anyDay: rapid.Bool().Draw(t, "any day"), zone: time.UTC,
		}
		from := time.Unix(rapid.Int64Range(1_800_000_000, 1_900_000_000).Draw(t, "from"), 0)
		got := s.Next(from)
		for c := from.UTC().Truncate(time.Minute).Add(time.Minute); c.Before(from.Add(40 * 24 * time.Hour)); c = c.Add(time.Minute) {
			if s.onDay(c) && s.hour&(1<<c.Hour()) != 0 && s.minute&(1<<c.Minute()) != 0 {
				if !got.Equal(c) {
					t.Fatalf("got %s, want %s", got, c)
				}
				return
			}
		}
		if !got.IsZero() && got.Before(from.Add(40*24*time.Hour)) {
			t.Fatalf("got %s, which does not fit", got)
		}
	})
}
