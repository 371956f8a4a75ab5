package human_test

import (
	"testing"
	"time"

	"github.com/gantryd/gantry/cli/human"
	"github.com/gantryd/gantry/fault"
)

func TestSizes(t *testing.T) {
	for n, want := range map[int64]string{
		-1: "-", 0: "0B", 999: "999B", 1000: "1kB", 1234: "1.23kB", 117_400_000: "117MB", 99_940_000: "99.9MB",
		999_600_000: "1GB", 1_500_000_000_000: "1.5TB",
	} {
		if got := human.Size(n); got != want {
			t.Errorf("Size(%d) = %s, want %s", n, got, want)
		}
	}
	if got := human.Memory(13107200); got != "12.5MiB" {
		t.Errorf("Memory = %s", got)
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "512": 512, "512b": 512, "64k": 64 << 10, "64KB": 64 << 10, "512m": 512 << 20, "1.5g": 3 << 29,
		"2GiB": 2 << 30, "1 G": 1 << 30, "1t": 1 << 40, "-1": -1,
	} {
		if got, err := human.ParseSize(in); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "m", "1x", "-5m", "1e3", "nan", "inf", "0x10", "9999999t", "1_000", "1mm"} {
		if got, err := human.ParseSize(in); !fault.Is(err, fault.Invalid) {
			t.Errorf("ParseSize(%q) = %d, %v", in, got, err)
		}
	}
}

func TestDurations(t *testing.T) {
	for in, want := range map[time.Duration]string{
		0: "0.0s", 420 * time.Millisecond: "0.4s", 12 * time.Second: "12s", 130 * time.Second: "2m10s",
		3 * time.Hour: "3h", 50 * time.Hour: "2d", -1: "0s",
	} {
		if got := human.Duration(in); got != want {
			t.Errorf("Duration(%s) = %s, want %s", in, got, want)
		}
	}
	for in, want := range map[time.Duration]string{
		time.Millisecond: "less than a second", time.Second: "1 second", 3 * time.Minute: "3 minutes",
		26 * time.Hour: "1 day", 800 * 24 * time.Hour: "2 years",
	} {
		if got := human.Age(in); got != want {
			t.Errorf("Age(%s) = %s, want %s", in, got, want)
		}
	}
	for in, want := range map[string]time.Duration{
		"10": 10 * time.Second, "0.5": time.Second / 2, "1m30s": 90 * time.Second, "2d": 48 * time.Hour, "1d2h": 26 * time.Hour,
	} {
		if got, err := human.ParseDuration(in); err != nil || got != want {
			t.Errorf("ParseDuration(%q) = %s, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "x", "-1s", "-5", "1dx", "d", "nan", "99999999999999999999d"} {
		if got, err := human.ParseDuration(in); !fault.Is(err, fault.Invalid) {
			t.Errorf("ParseDuration(%q) = %s, %v", in, got, err)
		}
	}
}

func TestParseTime(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Time{
		"10m": now.Add(-10 * time.Minute), "2026-04-01": time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC),
		"2026-04-01T10:00:00Z": time.Date(2026, 4, 1, 10, 0, 0, 0, time.UTC), "1700000000": time.Unix(1700000000, 0),
		"30": now.Add(-30 * time.Second),
	} {
		if got, err := human.ParseTime(in, now); err != nil || !got.Equal(want) {
			t.Errorf("ParseTime(%q) = %s, %v; want %s", in, got, err, want)
		}
	}
	if _, err := human.ParseTime("yesterday", now); !fault.Is(err, fault.Invalid) {
		t.Errorf("yesterday: %v", err)
	}
}

func TestCut(t *testing.T) {
	for text, want := range map[string]string{
		"short": "short", "exactly ten": "exactly t…", "ten letter": "ten letter", "first\nsecond": "first …", "åäöåäöåäöåä": "åäöåäöåäö…", "": "",
	} {
		if got := human.Cut(text, 10); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}
