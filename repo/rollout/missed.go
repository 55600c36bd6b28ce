package rollout

import (
	"fmt"
	"slices"
	"time"
)

// MissedWindow says what a machine does that was off, asleep or away during the
// whole of the last window.
type MissedWindow string

// The policies.
const (
	MissedWait    MissedWindow = "wait"    // for the next window; "" is the same
	MissedInstall MissedWindow = "install" // at once
)

func (m MissedWindow) check() error {
	if m != "" && m != MissedWait && m != MissedInstall {
		return fmt.Errorf("missed_window %.64q is neither %s nor %s", string(m), MissedWait, MissedInstall)
	}
	return nil
}

// ParseMissedWindow reads a policy.
func ParseMissedWindow(s string) (MissedWindow, error) {
	if m := MissedWindow(s); m == MissedWait || m == MissedInstall {
		return m, nil
	}
	return "", fmt.Errorf("%w: %.64q is neither %s nor %s", ErrBad, s, MissedWait, MissedInstall)
}

// hours are one set of windows, of the plan or of the machine's own, and how it
// stands with them.
type hours struct {
	name    string
	windows []Window
	missed  MissedWindow

	in      bool      // now is in one
	next    time.Time // one
	catchUp bool      // the last was missed, and that need not be waited for
}

func (h *hours) look(opened time.Time, looks []time.Time, now time.Time) {
	h.in, h.next = inWindows(h.windows, now)
	h.catchUp = !h.in && h.missed == MissedInstall && missed(h.windows, opened, looks, now)
}

// open asks whether a patch may be installed as far as these windows go.
func (t *tracer) open(h *hours, overdue bool) bool {
	one, many := "a maintenance window", "its maintenance windows"
	if h.name == "own-window" {
		one, many = "a window of this machine's own", "this machine's own windows"
	}
	switch {
	case len(h.windows) == 0:
		t.yes(h.name).text("there is no window to wait for")
	case h.in:
		t.yes(h.name).text("now is ").text(one)
	case overdue:
		t.yes(h.name).text("its deadline has passed, so ").text(many).text(" no longer hold it back")
	case h.catchUp:
		t.yes(h.name).text("this machine was away for the whole of the last of ").text(many).text(", and may catch up at once")
	case h.next.IsZero():
		t.no(h.name).text("none of ").text(many).text(" ever begins")
	default:
		t.no(h.name).text("outside ").text(many).text("; the next one begins at ").time(h.next)
	}
	return t.end()
}

// nextOpening is when both sets are open. Who may catch up has no window of
// that set to wait for.
func nextOpening(plans, own *hours, now time.Time) time.Time {
	var sets [2][]Window
	for i, h := range [...]*hours{plans, own} {
		if !h.catchUp {
			sets[i] = h.windows
		}
	}
	_, next := InWindows(now, sets[:]...)
	return next
}

// missed reports whether the last window that is over began after the patch was
// open to the machine, and ended without the machine having looked. looks are
// in order. Before the first of them nothing is known, so nothing was missed.
func missed(windows []Window, opened time.Time, looks []time.Time, now time.Time) bool {
	if len(windows) == 0 || len(looks) == 0 {
		return false
	}
	var last span
	for day := -9; day <= 0; day++ {
		for w := range around(windows, now, day) {
			if !w.to.After(now) && w.to.After(last.to) {
				last = w
			}
		}
	}
	if last.to.IsZero() || last.from.Before(opened) || last.from.Before(looks[0]) {
		return false
	}
	return !slices.ContainsFunc(looks, func(t time.Time) bool { return !t.Before(last.from) && t.Before(last.to) })
}
