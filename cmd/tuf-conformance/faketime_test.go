package main

import (
	"testing"
	"time"
)

func TestParseFaketime(t *testing.T) {
	start := time.Now()
	for spec, want := range map[string]time.Duration{
		"+5": 5 * time.Second, "-90": -90 * time.Second, "+2d": 48 * time.Hour, "-1h": -time.Hour, "+1,5m": 90 * time.Second,
		"+1.5m": 90 * time.Second, "+1y": 365 * 24 * time.Hour, "+691200": 8 * 24 * time.Hour, "+3s": 3 * time.Second,
	} {
		now, err := parseFaketime(spec, start)
		if err != nil {
			t.Errorf("%q: %v", spec, err)
			continue
		}
		if got := time.Until(now()); got > want || got < want-time.Minute {
			t.Errorf("%q: offset %v, want %v", spec, got, want)
		}
	}
	want := time.Date(2031, 2, 3, 4, 5, 6, 0, time.Local)
	for spec, runs := range map[string]bool{
		"@2031-02-03 04:05:06": true, "2031-02-03 04:05:06": false,
		"@" + want.Format(time.RFC3339): true, want.UTC().Format(time.RFC3339): false, "2031-02-03 04:05:06" + want.Format("Z07:00"): false,
	} {
		now, err := parseFaketime(spec, start)
		if err != nil {
			t.Errorf("%q: %v", spec, err)
			continue
		}
		got := now()
		if late := got.Sub(want); late < 0 || late > time.Minute || !runs && late != 0 {
			t.Errorf("%q: %v, want %v", spec, got, want)
		}
	}
	for _, spec := range []string{"yesterday", "+", "-", "+d", "@", "+1e99y", "+NaN", "2031-13-01 00:00:00"} {
		if _, err := parseFaketime(spec, start); err == nil {
			t.Errorf("%q was understood", spec)
		}
	}
}

func TestFaketimeThatNobodyUnderstands(t *testing.T) {
	w := start(t)
	w.run(1, []string{"FAKETIME=nonsense"}, "--metadata-url", w.url, "--metadata-dir", w.metadata, "refresh")
}
