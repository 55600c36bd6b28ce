package rollout

import (
	"fmt"
	"iter"
	"slices"
	"strings"
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

// String writes the window as ParseWindow reads it.
func (w Window) String() string {
	if len(w.Days) == 0 {
		return w.From + "-" + w.To
	}
	return strings.Join(w.Days, ",") + " " + w.From + "-" + w.To
}

// ParseWindow reads a window as people write it: "mon-fri 22:00-05:00",
// "sat,sun 08:00-20:00", or "22:00-05:00" for every day. 24:00 may end one.
func ParseWindow(s string) (Window, error) {
	bad := func(why string) error {
		return fmt.Errorf("%w: window %q: %s, want one like 'mon-fri 22:00-05:00'", ErrBad, s, why)
	}
	var w Window
	fields := strings.Fields(strings.ToLower(s))
	if len(fields) != 1 && len(fields) != 2 {
		return w, bad("it is not days and times")
	}
	from, to, ok := strings.Cut(fields[len(fields)-1], "-")
	if !ok {
		return w, bad("its times are not FROM-TO")
	}
	if to == "24:00" {
		to = "00:00"
	}
	w.From, w.To = from, to
	if len(fields) == 2 {
		for part := range strings.SplitSeq(fields[0], ",") {
			first, last, isRange := strings.Cut(part, "-")
			if !isRange {
				last = first
			}
			a, b := slices.Index(dayNames, first), slices.Index(dayNames, last)
			if a < 0 || b < 0 {
				return w, bad(fmt.Sprintf("%q is not a day like mon, or a range like mon-fri", part))
			}
			for i := a; ; i = (i + 1) % len(dayNames) { // fri-mon goes over the week's end
				if !slices.Contains(w.Days, dayNames[i]) {
					w.Days = append(w.Days, dayNames[i])
				}
				if i == b {
					break
				}
			}
		}
	}
	if err := w.check(); err != nil {
		return w, bad(err.Error())
	}
	return w, nil
}

// on returns the window that begins on the day of t, in t's location. Wall
// clock times are taken as they stand, so a window over a change to or from
// summer time is an hour shorter or longer, and one that lies wholly in the
// hour that is left out does not take place.
func (w *Window) on(t time.Time) (from, to time.Time, ok bool) {
	if len(w.Days) > 0 && !slices.Contains(w.Days, dayNames[t.Weekday()]) {
		return from, to, false
	}
	f, err1 := time.Parse("15:04", w.From)
	u, err2 := time.Parse("15:04", w.To)
	if err1 != nil || err2 != nil {
		return from, to, false
	}
	end := t.Day()
	if !u.After(f) {
		end++
	}
	from = wall(t.Year(), t.Month(), t.Day(), f.Hour(), f.Minute(), t.Location())
	to = wall(t.Year(), t.Month(), end, u.Hour(), u.Minute(), t.Location())
	return from, to, to.After(from)
}

// wall is the moment at which clocks show a time: the first of two, and for a
// time that they leave out, when they leave it out. time.Date promises neither.
func wall(year int, month time.Month, day, hour, minute int, loc *time.Location) time.Time {
	t := time.Date(year, month, day, hour, minute, 0, 0, loc)
	start, end := t.ZoneBounds()
	if shown := t.Hour()*60 + t.Minute(); shown != hour*60+minute {
		// Clocks jump over it by an hour or so; t lies on either side.
		if (shown-hour*60-minute+24*60)%(24*60) < 12*60 {
			return start
		}
		return end
	}
	if !start.IsZero() {
		_, before := start.Add(-time.Second).Zone()
		_, after := t.Zone()
		if first := t.Add(time.Duration(after-before) * time.Second); first.Before(start) {
			return first
		}
	}
	return t
}

// inWindows reports whether now lies in one of the windows, and if not, when
// the next one begins. now is in the machine's location.
func inWindows(windows []Window, now time.Time) (in bool, next time.Time) {
	if len(windows) == 0 {
		return true, time.Time{}
	}
	for day := -1; day <= 8; day++ {
		for w := range around(windows, now, day) {
			if !now.Before(w.from) && now.Before(w.to) {
				return true, time.Time{}
			}
			if w.from.After(now) && (next.IsZero() || w.from.Before(next)) {
				next = w.from
			}
		}
	}
	return false, next
}

type span struct{ from, to time.Time }

// around gives the windows that begin so many days after now's.
func around(windows []Window, now time.Time, day int) iter.Seq[span] {
	return func(yield func(span) bool) {
		noon := time.Date(now.Year(), now.Month(), now.Day()+day, 12, 0, 0, 0, now.Location())
		for i := range windows {
			if from, to, ok := windows[i].on(noon); ok && !yield(span{from, to}) {
				return
			}
		}
	}
}

// InWindows reports whether now lies in a window of each of the sets, and if
// not, when that is the case next; zero if it never is. A set of none is always
// open. now is in the machine's location.
func InWindows(now time.Time, sets ...[]Window) (in bool, next time.Time) {
	t := now
	for range 100 { // weekly windows that do not meet within these never do
		closed := false
		for _, set := range sets {
			if ok, opens := inWindows(set, t); !ok {
				if opens.IsZero() {
					return false, time.Time{}
				}
				t, closed = opens, true
				break
			}
		}
		if !closed {
			return t.Equal(now), t
		}
	}
	return false, time.Time{}
}
