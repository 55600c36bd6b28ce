// Package line keeps a mirror's transfers within what its line may carry, by a
// calendar of the week:
//
//	mon-fri 08:00-18:00=5MB/s,sat+sun 02:00-04:00=pause,*=unlimited
//
// Entries are separated by commas. Each is `WHEN=RATE`, and the first whose
// WHEN holds counts; where none holds there is no limit.
//
//	WHEN  [DAYS] [FROM-TO], at least one of them, or * for always
//	DAYS  mon, mon-fri, fri-mon; joined by plus signs: sat+sun, mon-wed+fri
//	FROM  HH:MM on a 24-hour clock; TO too, or 24:00. A TO that is not after
//	      FROM lies on the next day, and DAYS are those on which it begins.
//	RATE  a number with B, kB, MB, GB, KiB, MiB, GiB (bytes) or kbit, Mbit,
//	      Gbit (bits), a second: /s may follow. Or unlimited, or pause: nothing
//	      is transferred.
//
// The clock is the wall clock of the mirror's place, summer time and all.
package line

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Rates that are no number of bytes a second.
const (
	Unlimited int64 = 0
	Paused    int64 = -1 // nothing may be transferred
)

const (
	maxEntries = 100
	maxEntry   = 100  // bytes of one
	minRate    = 1000 // bytes/s; what is slower is a slip of the pen
	maxRate    = 1e12

	minutesADay  = 24 * 60
	minutesAWeek = 7 * minutesADay
)

var dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"} // as time.Weekday counts

// units are in bytes a second. Mb is none of them: half the world means bits.
var units = map[string]float64{
	"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9,
	"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
	"kbit": 1e3 / 8, "Kbit": 1e3 / 8, "Mbit": 1e6 / 8, "Gbit": 1e9 / 8,
}

// Calendar says how fast the line may be used when. It never changes. A nil
// one has no limits.
type Calendar struct {
	text  string
	rates []int64             // of the entries, after Unlimited for where none holds
	week  [minutesAWeek]uint8 // index into rates, for each minute from Sunday 00:00 on
}

// ParseCalendar reads a calendar; see the package for its form. The error says
// which entry is wrong, and what would be right.
func ParseCalendar(s string) (*Calendar, error) {
	c := &Calendar{text: strings.TrimSpace(s), rates: []int64{Unlimited}}
	if c.text == "" {
		return nil, errors.New("limit: it is empty: write entries like 08:00-18:00=5MB/s,*=unlimited")
	}
	n := 0
	for text := range strings.SplitSeq(c.text, ",") {
		text = strings.TrimSpace(text)
		if n++; n > maxEntries {
			return nil, fmt.Errorf("limit: more than %d entries", maxEntries)
		}
		if len(text) > maxEntry { // not to be quoted
			return nil, fmt.Errorf("limit: entry %d has %d bytes: one is like mon-fri 08:00-18:00=5MB/s, and commas separate them", n, len(text))
		}
		if err := c.add(text); err != nil {
			return nil, fmt.Errorf("limit: entry %d %q: %w", n, text, err)
		}
	}
	return c, nil
}

// add reads an entry and enters it wherever no earlier one holds.
func (c *Calendar) add(text string) error {
	when, speed, ok := strings.Cut(text, "=")
	switch when = strings.TrimSpace(when); {
	case text == "":
		return errors.New("it is empty: is there a comma too many?")
	case !ok:
		return errors.New("it has no =RATE; days are joined by plus signs, as in sat+sun=5MB/s")
	case when == "":
		return errors.New("it does not say when: write * for always")
	}
	days, from, to, err := parseWhen(when)
	if err != nil {
		return err
	}
	r, err := parseRate(strings.TrimSpace(speed))
	if err != nil {
		return err
	}
	c.rates = append(c.rates, r)
	index, used := uint8(len(c.rates)-1), false // at most maxEntries
	for day := range days {
		if !days[day] {
			continue
		}
		for m := from; m < to; m++ {
			at := &c.week[(day*minutesADay+m)%minutesAWeek]
			if *at == 0 {
				*at, used = index, true
			}
		}
	}
	if !used {
		return errors.New("it never counts, since earlier entries hold at all its times: the first that holds counts, so put it before them")
	}
	return nil
}

// parseWhen returns the days on which it begins, and the minutes from the
// start of such a day; to may lie on the next one.
func parseWhen(s string) (days [7]bool, from, to int, err error) {
	fields := strings.Fields(strings.ToLower(s))
	all := [7]bool{true, true, true, true, true, true, true}
	switch first := fields[0][0]; {
	case s == "*":
		return all, 0, minutesADay, nil
	case len(fields) > 2:
		return days, 0, 0, fmt.Errorf("%q is not like mon-fri 08:00-18:00: commas separate entries, plus signs days", s)
	case first >= '0' && first <= '9':
		if len(fields) > 1 {
			return days, 0, 0, fmt.Errorf("%q is not like mon-fri 08:00-18:00: days first, then one range of times", s)
		}
		from, to, err = parseTimes(fields[0])
		return all, from, to, err
	}
	if days, err = parseDays(fields[0]); err != nil {
		return days, 0, 0, err
	}
	if len(fields) == 1 {
		return days, 0, minutesADay, nil
	}
	from, to, err = parseTimes(fields[1])
	return days, from, to, err
}

func parseDays(s string) (days [7]bool, err error) {
	for part := range strings.SplitSeq(s, "+") {
		a, b, span := strings.Cut(part, "-")
		first, last := slices.Index(dayNames, a), slices.Index(dayNames, b)
		if !span {
			last = first
		}
		if first < 0 || last < 0 {
			return days, fmt.Errorf("%q is not a day like mon or days like mon-fri (there are mon, tue, wed, thu, fri, sat and sun; or a time like 08:00-18:00; or * alone)", part)
		}
		for d := first; ; d = (d + 1) % 7 {
			days[d] = true
			if d == last {
				break
			}
		}
	}
	return days, nil
}

func parseTimes(s string) (from, to int, err error) {
	a, b, ok := strings.Cut(s, "-")
	if !ok {
		return 0, 0, fmt.Errorf("%q is not a range of times like 08:00-18:00", s)
	}
	if from, err = parseTime(a); err != nil {
		return 0, 0, err
	}
	if to, err = parseTime(b); err != nil {
		return 0, 0, err
	}
	switch {
	case from == minutesADay:
		return 0, 0, errors.New("nothing begins at 24:00: write 00:00, which is on the next day")
	case from == to:
		return 0, 0, fmt.Errorf("%q begins when it ends: for the whole day write 00:00-24:00, or no time", s)
	case to < from:
		to += minutesADay
	}
	return from, to, nil
}

// parseTime returns minutes after midnight.
func parseTime(s string) (int, error) {
	h, m, ok := strings.Cut(s, ":")
	hour, err1 := strconv.ParseUint(h, 10, 8)
	minute, err2 := strconv.ParseUint(m, 10, 8)
	if !ok || err1 != nil || err2 != nil || len(h) > 2 || len(m) != 2 || minute > 59 || hour > 24 || hour == 24 && minute > 0 {
		return 0, fmt.Errorf("%q is not a time of day from 00:00 to 24:00", s)
	}
	return int(hour*60 + minute), nil
}

func parseRate(s string) (int64, error) {
	const like = "write it like 5MB/s, 512KiB/s or 20Mbit/s, or unlimited, or pause"
	switch strings.ToLower(s) {
	case "unlimited":
		return Unlimited, nil
	case "pause":
		return Paused, nil
	case "":
		return 0, errors.New("it has no rate: " + like)
	}
	plain := strings.TrimSuffix(s, "/s")
	end := strings.LastIndexAny(plain, "0123456789.") + 1
	number, unit := plain[:end], strings.TrimSpace(plain[end:])
	value, err := strconv.ParseFloat(number, 64)
	switch factor, ok := units[unit]; {
	case err != nil || strings.Trim(number, "0123456789.") != "": // no signs, exponents, hex
		return 0, fmt.Errorf("%q is not a rate: %s", s, like)
	case value == 0:
		return 0, fmt.Errorf("%q could mean none or no limit: write pause, or unlimited", s)
	case unit == "":
		return 0, fmt.Errorf("%q has no unit: %s", s, like)
	case !ok && slices.Contains([]string{"kb", "mb", "gb"}, strings.ToLower(unit)):
		p := strings.ToUpper(unit[:1])
		return 0, fmt.Errorf("%q may be bits or bytes: write %s%sbit/s or %s%sB/s", s, number, p, number, p)
	case !ok:
		return 0, fmt.Errorf("%q has an unknown unit: %s", s, like)
	case value*factor < minRate:
		return 0, fmt.Errorf("%q is less than 1kB/s, at which nothing ever comes: write pause to stop transfers", s)
	case value*factor > maxRate:
		return 0, fmt.Errorf("%q is more than 1000GB/s: write unlimited", s)
	default:
		return int64(value * factor), nil
	}
}

// At returns the rate at t in bytes/s, or Unlimited, or Paused. The wall clock
// is that of t's location.
func (c *Calendar) At(t time.Time) int64 {
	if c == nil {
		return Unlimited
	}
	return c.rates[c.week[int(t.Weekday())*minutesADay+t.Hour()*60+t.Minute()]]
}

// String is the calendar as it was written.
func (c *Calendar) String() string {
	if c == nil {
		return "*=unlimited"
	}
	return c.text
}
