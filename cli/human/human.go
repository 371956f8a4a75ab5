// Package human turns sizes, times and durations into what people read and back.
//
// All functions are pure. It is not for machines: JSON output carries exact numbers.
package human

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/gantryd/gantry/fault"
)

// Size gives bytes in decimal units as Docker prints image sizes: "117MB".
func Size(n int64) string {
	if n < 0 {
		return "-"
	}
	return scaled(float64(n), 1000, []string{"B", "kB", "MB", "GB", "TB", "PB"})
}

// Memory gives bytes in binary units: "12.5MiB".
func Memory(n uint64) string {
	return scaled(float64(n), 1024, []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"})
}

func scaled(v, base float64, units []string) string {
	i := 0
	// 999.5 rounds to four digits, so the next unit starts there.
	for v >= base-0.5 && i < len(units)-1 {
		v /= base
		i++
	}
	if i == 0 || v >= 99.95 {
		return fmt.Sprintf("%.0f%s", v, units[i])
	}
	s := strings.TrimRight(strings.TrimRight(fmt.Sprintf("%.2f", v), "0"), ".")
	if v >= 9.995 {
		s = strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0")
	}
	return s + units[i]
}

// ParseSize reads "512", "64k", "512m", "1.5g", "2GiB"; a unit is a power of 1024 as in Docker. -1 is passed on.
func ParseSize(s string) (int64, error) {
	bad := fault.New(fault.Invalid, "%q is not a size", s).WithHint("write it like 512m or 1.5g")
	if s == "-1" {
		return -1, nil
	}
	low := strings.ToLower(strings.TrimSpace(s))
	low = strings.TrimSuffix(strings.TrimSuffix(low, "b"), "i")
	unit := int64(1)
	if n := len(low); n > 0 {
		if p := strings.IndexByte("kmgtp", low[n-1]); p >= 0 {
			unit = 1 << (10 * (p + 1))
			low = strings.TrimSpace(low[:n-1])
		}
	}
	v, err := strconv.ParseFloat(low, 64)
	if err != nil || v < 0 || v*float64(unit) >= 1<<63 || v != v || strings.ContainsAny(low, "xpin_e") {
		return 0, bad
	}
	return int64(v * float64(unit)), nil
}

// Duration gives a length of time in one unit, or two below an hour: "0.4s", "12s", "2m10s", "3h", "5d".
func Duration(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// Age gives a length of time in words as people say it: "3 minutes".
func Age(d time.Duration) string {
	units := []struct {
		size time.Duration
		name string
	}{
		{365 * 24 * time.Hour, "year"}, {30 * 24 * time.Hour, "month"}, {7 * 24 * time.Hour, "week"},
		{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"},
	}
	for _, u := range units {
		if n := int(d / u.size); n == 1 {
			return "1 " + u.name
		} else if n > 1 {
			return fmt.Sprintf("%d %ss", n, u.name)
		}
	}
	return "less than a second"
}

// ParseDuration reads what time.ParseDuration does, days ("2d") and bare seconds ("10").
func ParseDuration(s string) (time.Duration, error) {
	if n, err := strconv.ParseFloat(s, 64); err == nil && n == n && n >= 0 && n < 1e9 {
		return time.Duration(n * float64(time.Second)), nil
	}
	rest, days := s, time.Duration(0)
	if head, tail, ok := strings.Cut(s, "d"); ok {
		n, err := strconv.Atoi(head)
		if err != nil || n < 0 || n > 36500 {
			return 0, badDuration(s)
		}
		days, rest = time.Duration(n)*24*time.Hour, tail
		if rest == "" {
			return days, nil
		}
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 {
		return 0, badDuration(s)
	}
	return days + d, nil
}

func badDuration(s string) error {
	return fault.New(fault.Invalid, "%q is not a duration", s).WithHint("write it like 10s, 1m30s or 2h")
}

// ParseTime reads a moment: RFC 3339 with or without its time part, Unix seconds, or a duration before now.
func ParseTime(s string, now time.Time) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	// Small bare numbers would be moments in 1970, which nobody means.
	if n, err := strconv.ParseFloat(s, 64); err == nil && n >= 1e8 && n < 1e11 {
		sec := int64(n)
		return time.Unix(sec, int64((n-float64(sec))*1e9)), nil
	}
	d, err := ParseDuration(s)
	if err != nil {
		return time.Time{}, fault.New(fault.Invalid, "%q is neither a time nor a duration", s).
			WithHint("write it like 2026-01-31T15:04:05, or 10m for ten minutes ago")
	}
	return now.Add(-d), nil
}

// Cut shortens a text to one line of at most so many letters.
func Cut(text string, most int) string {
	line, rest, _ := strings.Cut(strings.TrimSpace(text), "\n")
	letters := []rune(line)
	switch {
	case len(letters) > most:
		return strings.TrimRight(string(letters[:most-1]), " ,;:") + "…"
	case rest != "":
		return line + " …"
	}
	return line
}
