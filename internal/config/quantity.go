package config

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
)

// duration accepts durations of at least least.
func duration(field func(*Config) *time.Duration, least time.Duration) binding {
	return bind(kindDuration, field, func(s string) (time.Duration, error) {
		d, ok := parseDuration(s)
		switch {
		case ok && d >= least:
			return d, nil
		case least > 0:
			return 0, errors.New("want a duration above zero, such as 30 (seconds), 30s, 10m or 1h30m")
		default:
			return 0, errors.New("want 0 or a duration such as 30 (seconds), 30s, 10m or 1h30m")
		}
	}, formatDuration)
}

// durationOrAuto accepts durations of zero and more, and auto, which stands in the
// field as a negative one until validate has replaced it.
func durationOrAuto(field func(*Config) *time.Duration) binding {
	return bind(kindDuration, field, func(s string) (time.Duration, error) {
		if strings.EqualFold(s, "auto") {
			return -1, nil
		}
		d, ok := parseDuration(s)
		if !ok || d < 0 {
			return 0, errors.New("want 0 or a duration such as 30 (seconds), 30s, 10m or 1h30m, or auto")
		}
		return d, nil
	}, formatDuration)
}

// parseDuration reads whole seconds (30), or what time.ParseDuration reads.
func parseDuration(s string) (time.Duration, bool) {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		const most = math.MaxInt64 / int64(time.Second)
		return time.Duration(n) * time.Second, -most <= n && n <= most
	}
	d, err := time.ParseDuration(s)
	return d, err == nil
}

// formatDuration returns 10m where Duration.String returns 10m0s.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// units are the size units; of two that are equal, the first is shown. A bare K or
// M is missing on purpose: programs disagree whether it is 1000 or 1024.
var units = []struct {
	suffix string
	bytes  int64
}{
	{"TiB", 1 << 40},
	{"GiB", 1 << 30},
	{"MiB", 1 << 20},
	{"KiB", 1 << 10},
	{"TB", 1e12},
	{"GB", 1e9},
	{"MB", 1e6},
	{"KB", 1e3},
	{"Ti", 1 << 40},
	{"Gi", 1 << 30},
	{"Mi", 1 << 20},
	{"Ki", 1 << 10},
	{"B", 1},
}

func size(field func(*Config) *int64) binding {
	return bind(kindSize, field, func(s string) (int64, error) {
		n, ok := parseSize(s)
		if !ok || n < 1 {
			return 0, errors.New("want a size above zero, such as 1073741824 (bytes), 512MiB, 4GiB or 2GB")
		}
		return n, nil
	}, formatSize)
}

// parseSize reads a whole number of bytes or of one of the units.
func parseSize(s string) (int64, bool) {
	digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
	n, err := strconv.ParseInt(s[:digits], 10, 64)
	if err != nil {
		return 0, false
	}
	unit := strings.TrimSpace(s[digits:])
	if unit == "" {
		return n, true
	}
	for _, u := range units {
		if strings.EqualFold(unit, u.suffix) {
			return n * u.bytes, n <= math.MaxInt64/u.bytes
		}
	}
	return 0, false
}

// formatSize returns n in the unit that makes the shortest whole number.
func formatSize(n int64) string {
	count, suffix := n, ""
	for _, u := range units {
		if n%u.bytes == 0 && n/u.bytes < count {
			count, suffix = n/u.bytes, u.suffix
		}
	}
	return strconv.FormatInt(count, 10) + suffix
}
