package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// schedule are the flags that say at what times machines install what they may
// have.
type schedule struct {
	windows                 []string
	missed, deadline, grace string
}

func (s *schedule) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&s.windows, "window", nil, "install only then, in each machine's local time, such as 'mon-fri 22:00-05:00' (repeatable; default: at any time)")
	f.StringVar(&s.missed, "missed-window", "", "what a machine does that was away for the whole of a window: wait for the next, or install at once (default wait)")
	f.StringVar(&s.deadline, "deadline", "", "time for a machine to find a window, from when it first saw the patch, such as 14d; then it installs at once")
	f.StringVar(&s.grace, "grace", "", "time after the deadline from which on a machine may reboot for it by itself, such as 2d")
}

// set puts them into a rollout, and gives words for them.
func (s *schedule) set(ro *repo.Rollout) (words string, err error) {
	for _, w := range s.windows {
		window, err := rollout.ParseWindow(w)
		if err != nil {
			return "", &cli.UsageError{Err: err}
		}
		ro.Windows = append(ro.Windows, window)
	}
	if s.missed != "" {
		if ro.MissedWindow, err = rollout.ParseMissedWindow(s.missed); err != nil {
			return "", cli.Usagef("--missed-window: %v", err)
		}
	}
	for _, d := range []struct {
		flag, value string
		to          *time.Duration
	}{{"deadline", s.deadline, &ro.Deadline}, {"grace", s.grace, &ro.Grace}} {
		if d.value == "" {
			continue
		}
		if *d.to, err = rollout.ParseDuration(d.value); err != nil || *d.to < time.Second {
			return "", cli.Usagef("--%s %q is not a time like 14d or 36h", d.flag, d.value)
		}
	}
	switch {
	case s.missed != "" && len(s.windows) == 0:
		return "", cli.Usagef("--missed-window needs a --window that can be missed")
	case s.grace != "" && s.deadline == "":
		return "", cli.Usagef("--grace is counted from the deadline: --deadline is missing")
	}
	if len(s.windows) > 0 {
		words += ", in windows " + strings.Join(s.windows, " and ")
	}
	if s.deadline != "" {
		words += ", at the latest after " + s.deadline
	}
	return words, nil
}

// whenWords are the times of an entry, for a table.
func whenWords(e *rollout.Entry) string {
	var parts []string
	for _, w := range e.Windows {
		parts = append(parts, w.String())
	}
	if e.MissedWindow == rollout.MissedInstall {
		parts = append(parts, "or once missed")
	}
	if e.Deadline > 0 {
		parts = append(parts, "within "+rollout.FormatSeconds(e.Deadline))
	}
	if e.Grace > 0 {
		parts = append(parts, fmt.Sprintf("(grace %s)", rollout.FormatSeconds(e.Grace)))
	}
	if len(parts) == 0 {
		return "any time"
	}
	return strings.Join(parts, "; ")
}
