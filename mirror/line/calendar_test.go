package line

import (
	"fmt"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // the tests' zones, wherever they run
)

func at(t testing.TB, zone, s string) time.Time {
	t.Helper()
	loc, err := time.LoadLocation(zone)
	if err != nil {
		t.Fatal(err)
	}
	when, err := time.ParseInLocation("2006-01-02 15:04:05", s, loc)
	if err != nil {
		t.Fatal(err)
	}
	return when
}

// 2026-11-23 is a Monday.
func TestAt(t *testing.T) {
	const mb = 1_000_000
	for _, c := range []struct {
		calendar, at string
		want         int64
	}{
		{"08:00-18:00=5MB/s,*=unlimited", "2026-11-23 07:59:59", Unlimited},
		{"08:00-18:00=5MB/s,*=unlimited", "2026-11-23 08:00:00", 5 * mb},
		{"08:00-18:00=5MB/s,*=unlimited", "2026-11-29 17:59:59", 5 * mb},
		{"08:00-18:00=5MB/s,*=unlimited", "2026-11-23 18:00:00", Unlimited},
		{"08:00-18:00=5MB/s", "2026-11-23 18:00:00", Unlimited},

		{"mon-fri=1MB,sat+sun=2MB", "2026-11-27 23:59:00", 1 * mb},
		{"mon-fri=1MB,sat+sun=2MB", "2026-11-28 00:00:00", 2 * mb},
		{"mon-fri=1MB,sat+sun=2MB", "2026-11-29 12:00:00", 2 * mb},
		{"mon-fri=1MB,sat+sun=2MB", "2026-11-30 00:00:00", 1 * mb},
		{" FRI-Mon = pause , tue=1MB ", "2026-11-30 10:00:00", Paused},
		{" FRI-Mon = pause , tue=1MB ", "2026-11-26 10:00:00", Unlimited},

		// Past midnight: the day is that on which it begins.
		{"sat 22:00-06:00=1MB", "2026-11-28 21:59:00", Unlimited},
		{"sat 22:00-06:00=1MB", "2026-11-28 22:00:00", 1 * mb},
		{"sat 22:00-06:00=1MB", "2026-11-29 05:59:00", 1 * mb},
		{"sat 22:00-06:00=1MB", "2026-11-29 06:00:00", Unlimited},
		{"sat 22:00-06:00=1MB", "2026-11-28 05:00:00", Unlimited},
		{"22:00-00:00=1MB", "2026-11-28 23:59:00", 1 * mb},
		{"22:00-00:00=1MB", "2026-11-28 00:00:00", Unlimited},
		{"22:00-24:00=1MB", "2026-11-28 23:59:00", 1 * mb},

		// The first that holds counts.
		{"mon 09:00-10:00=1MB,mon=2MB,*=3MB", "2026-11-23 09:30:00", 1 * mb},
		{"mon 09:00-10:00=1MB,mon=2MB,*=3MB", "2026-11-23 10:00:00", 2 * mb},
		{"mon 09:00-10:00=1MB,mon=2MB,*=3MB", "2026-11-24 09:30:00", 3 * mb},

		{"*=5MB/s", "2026-11-23 00:00:00", 5 * mb},
		{"*=512KiB/s", "2026-11-23 00:00:00", 512 << 10},
		{"*=20Mbit/s", "2026-11-23 00:00:00", 2_500_000},
		{"*=1.5 MiB/s", "2026-11-23 00:00:00", 3 << 19},
		{"*=64kbit", "2026-11-23 00:00:00", 8000},
		{"*=1GB", "2026-11-23 00:00:00", 1000 * mb},
		{"*=Unlimited", "2026-11-23 00:00:00", Unlimited},
	} {
		got, err := ParseCalendar(c.calendar)
		if err != nil {
			t.Errorf("%s: %v", c.calendar, err)
			continue
		}
		if r := got.At(at(t, "UTC", c.at)); r != c.want {
			t.Errorf("%s at %s: %d, want %d", c.calendar, c.at, r, c.want)
		}
	}
	if r := (*Calendar)(nil).At(time.Now()); r != Unlimited {
		t.Errorf("no calendar: %d", r)
	}
}

// The clock on the wall counts, when it jumps too.
func TestSummerTime(t *testing.T) {
	c, err := ParseCalendar("02:00-03:00=pause,03:00-08:00=1MB,08:00-18:00=5MB")
	if err != nil {
		t.Fatal(err)
	}
	const zone = "Europe/Berlin"
	for _, day := range []struct {
		date   string
		paused time.Duration
	}{
		{"2026-03-28", time.Hour},
		{"2026-03-29", 0},             // 02:00 becomes 03:00
		{"2026-10-25", 2 * time.Hour}, // 03:00 becomes 02:00 once
	} {
		var paused time.Duration
		end := at(t, zone, day.date+" 23:59:00")
		for now := at(t, zone, day.date+" 00:00:00"); now.Before(end); now = now.Add(time.Minute) {
			if c.At(now) == Paused {
				paused += time.Minute
			}
		}
		if paused != day.paused {
			t.Errorf("%s: paused for %v, want %v", day.date, paused, day.paused)
		}
		if r := c.At(at(t, zone, day.date+" 08:00:00")); r != 5_000_000 {
			t.Errorf("%s: at 08:00 the rate is %d", day.date, r)
		}
		if r := c.At(at(t, zone, day.date+" 18:00:00")); r != Unlimited {
			t.Errorf("%s: at 18:00 the rate is %d", day.date, r)
		}
	}
}

func TestRefused(t *testing.T) {
	for s, want := range map[string]string{
		"":                                     "it is empty: write entries like",
		"*=5MB/s,":                             `entry 2 "": it is empty: is there a comma too many?`,
		"mon,tue=5MB/s":                        `entry 1 "mon": it has no =RATE; days are joined by plus signs`,
		"=5MB":                                 "write * for always",
		"*=":                                   "it has no rate",
		"*=0":                                  "write pause, or unlimited",
		"*=0MB/s":                              "write pause, or unlimited",
		"*=5":                                  `"5" has no unit: write it like 5MB/s`,
		"*=5M":                                 "unknown unit",
		"*=5Mb/s":                              `may be bits or bytes: write 5Mbit/s or 5MB/s`,
		"*=1.5kb":                              `write 1.5Kbit/s or 1.5KB/s`,
		"*=fast":                               `"fast" is not a rate: write it like`,
		"*=-5MB":                               "is not a rate",
		"*=1e9MB":                              "is not a rate",
		"*=0x10MB":                             "is not a rate",
		"*=1.2.3MB":                            "is not a rate",
		"*=infMB":                              "is not a rate",
		"*=5MB/s/s":                            "unknown unit",
		"*=999B/s":                             "less than 1kB/s",
		"*=2000GB/s":                           "write unlimited",
		"*=" + strings.Repeat("9", 90) + "MB":  "is more than",
		"*=" + strings.Repeat("9", 400) + "MB": "has 404 bytes",
		"monday=5MB":                           `"monday" is not a day like mon`,
		"mon-=5MB":                             `"mon-" is not a day`,
		"mon/tue=5MB":                          "is not a day",
		"8-18=5MB":                             `"8" is not a time of day`,
		"08:00=5MB":                            "is not a range of times",
		"08:00-25:00=5MB":                      `"25:00" is not a time of day from 00:00 to 24:00`,
		"08:60-09:00=5MB":                      `"08:60" is not a time of day`,
		"24:00-08:00=5MB":                      "write 00:00",
		"08:00-24:01=5MB":                      "is not a time of day",
		"08:00-08:00=5MB":                      "for the whole day write 00:00-24:00",
		"08:00-10:00 mon=5MB":                  "days first",
		"08:00-10:00 12:00-13:00=5MB":          "one range of times",
		"mon tue 08:00-10:00=5MB":              "plus signs days",
		"* 08:00-10:00=5MB":                    "* alone",
		"mon 08:00-10:00 x=5MB":                "commas separate entries",
		"*=5MB,mon=pause":                      `entry 2 "mon=pause": it never counts`,
		"mon-fri=5MB,tue 22:00-23:00=pause":    "put it before them",
		strings.Repeat("mon=1MB,", 101) + "*=pause": "it never counts",
	} {
		_, err := ParseCalendar(s)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want …%s…", s, err, want)
		}
	}
	var many []string
	for i := range maxEntries + 1 {
		many = append(many, fmt.Sprintf("%02d:%02d-%02d:%02d=1MB", i/60, i%60, (i+1)/60, (i+1)%60))
	}
	if _, err := ParseCalendar(strings.Join(many, ",")); err == nil || !strings.Contains(err.Error(), "more than 100 entries") {
		t.Errorf("%d entries: %v", len(many), err)
	}
	if _, err := ParseCalendar(strings.Join(many[:maxEntries], ",")); err != nil {
		t.Error(err)
	}
}

// FuzzCalendar: whatever is accepted has a rate within bounds at any time, and
// reads the same when it is written out entry by entry.
func FuzzCalendar(f *testing.F) {
	for _, s := range []string{
		"08:00-18:00=5MB/s,*=unlimited", "mon-fri 08:00-18:00=5MB/s,sat+sun 02:00-04:00=pause", "*=1.5Mbit/s",
		"sat 22:00-06:00=512KiB/s", "fri-mon=1GB", "24:00-24:00=0", "mon,tue=5Mb", "=,=,*", "+-+=1",
	} {
		f.Add(s, int64(0))
	}
	f.Fuzz(func(t *testing.T, s string, seconds int64) {
		c, err := ParseCalendar(s)
		if err != nil {
			if len(err.Error()) > 6*len(s)+1000 {
				t.Errorf("%q: an error of %d bytes", s, len(err.Error()))
			}
			return
		}
		again, err := ParseCalendar(" " + strings.ReplaceAll(c.String(), ",", " , ") + " ")
		if err != nil {
			t.Fatalf("%q was read, %q not: %v", s, c.String(), err)
		}
		now := time.Unix(seconds%(1<<33), 0).UTC()
		r := c.At(now)
		if r != Unlimited && r != Paused && (r < minRate || r > maxRate) {
			t.Errorf("%q: %d", s, r)
		}
		if again.At(now) != r || c.At(now.AddDate(0, 0, 7)) != r {
			t.Errorf("%q is not the same a week later, or read again", s)
		}
	})
}
