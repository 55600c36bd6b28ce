package rollout

import (
	"fmt"
	"slices"
	"time"
)

// Window is a time of the week, in the machine's local time, in which a patch
// may be installed. From and To are "15:04"; a window whose To is not after
// its From ends on the next day. Days are those on which the window begins.
type Window struct {
	Days []string `json:"days,omitempty"` // "mon" … "sun"; none: every day
	From string   `json:"from"`
	To   string   `json:"to"`
}

var dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"} // as time.Weekday counts

func (w *Window) check() error {
	for _, d := range w.Days {
		if !slices.Contains(dayNames, d) {
			return fmt.Errorf("%q is not a day like mon", d)
		}
	}
	if len(w.Days) > len(dayNames) {
		return fmt.Errorf("more than %d days", len(dayNames))
	}
	for _, s := range []string{w.From, w.To} {
		if _, err := time.Parse("15:04", s); err != nil {
			return fmt.Errorf("%q is not a time of day like 22:00", s)
		}
	}
	return nil
}

// on returns the window that begins on the day of t, in t's location. Wall
// clock times are taken as they stand, so a window over a change to or from
// summer time is an hour shorter or longer.
func (w *Window) on(t time.Time) (from, to time.Time, ok bool) {
	if len(w.Days) > 0 && !slices.Contains(w.Days, dayNames[t.Weekday()]) {
		return from, to, false
	}
	at := func(day int, s string) time.Time {
		c, err := time.Parse("15:04", s)
		if err != nil {
			ok = false
		}
		return time.Date(t.Year(), t.Month(), day, c.Hour(), c.Minute(), 0, 0, t.Location())
	}
	ok = true
	from, to = at(t.Day(), w.From), at(t.Day(), w.To)
	if !to.After(from) {
		to = at(t.Day()+1, w.To)
	}
	return from, to, ok
}

// inWindows reports whether now lies in one of the windows, and if not, when
// the next one begins. now is in the machine's location.
func inWindows(windows []Window, now time.Time) (in bool, next time.Time) {
	if len(windows) == 0 {
		return true, time.Time{}
	}
	for day := -1; day <= 8; day++ {
		t := time.Date(now.Year(), now.Month(), now.Day()+day, 12, 0, 0, 0, now.Location())
		for i := range windows {
			from, to, ok := windows[i].on(t)
			if !ok {
				continue
			}
			if !now.Before(from) && now.Before(to) {
				return true, time.Time{}
			}
			if from.After(now) && (next.IsZero() || from.Before(next)) {
				next = from
			}
		}
	}
	return false, next
}
