package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// fakeNow returns the clock that libfaketime's variable FAKETIME asks for. The
// suite starts its clients under faketime, which replaces the C library's
// clock; Go asks the kernel and would never notice.
func fakeNow() (func() time.Time, error) {
	spec := strings.TrimSpace(os.Getenv("FAKETIME"))
	if spec == "" {
		return time.Now, nil
	}
	now, err := parseFaketime(spec, time.Now())
	if err != nil {
		return nil, fmt.Errorf("read FAKETIME: %w", err)
	}
	return now, nil
}

// parseFaketime reads "+2d", "-90", "+1,5h" (offsets; without a unit in
// seconds), "@2026-11-23 08:00:00" (the clock starts there) and the same
// without @ (the clock stands still). A speed factor after it ("x2") or
// "i2.0" is not understood. Times without a zone are local, as faketime has it.
func parseFaketime(spec string, start time.Time) (func() time.Time, error) {
	if spec[0] == '+' || spec[0] == '-' {
		offset, err := parseOffset(spec)
		if err != nil {
			return nil, err
		}
		return func() time.Time { return time.Now().Add(offset) }, nil
	}
	running := spec[0] == '@'
	text := strings.TrimPrefix(spec, "@")
	for _, form := range []string{"2006-01-02 15:04:05.999999999", time.RFC3339, "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02"} {
		at, err := time.ParseInLocation(form, text, time.Local)
		if err != nil {
			continue
		}
		if running {
			return func() time.Time { return at.Add(time.Since(start)) }, nil
		}
		return func() time.Time { return at }, nil
	}
	return nil, fmt.Errorf("cannot understand %q", spec)
}

func parseOffset(spec string) (time.Duration, error) {
	unit := time.Second
	number := spec
	switch spec[len(spec)-1] {
	case 's':
		number = spec[:len(spec)-1]
	case 'm':
		unit, number = time.Minute, spec[:len(spec)-1]
	case 'h':
		unit, number = time.Hour, spec[:len(spec)-1]
	case 'd':
		unit, number = 24*time.Hour, spec[:len(spec)-1]
	case 'y':
		unit, number = 365*24*time.Hour, spec[:len(spec)-1]
	}
	n, err := strconv.ParseFloat(strings.Replace(number, ",", ".", 1), 64)
	if err != nil {
		return 0, fmt.Errorf("cannot understand the offset %q", spec)
	}
	const most = 200 * 365 * 24 * time.Hour
	if d := n * float64(unit); d > float64(most) || d < -float64(most) {
		return 0, fmt.Errorf("offset %q is too large", spec)
	}
	return time.Duration(n * float64(unit)), nil
}
