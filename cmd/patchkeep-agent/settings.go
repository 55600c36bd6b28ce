package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/cmd/internal/settings"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// options are the settings as people write them: in the file, in the
// environment, as flags.
type options struct {
	interval, spread    time.Duration
	windows             []string
	missed              string
	minBattery          int
	metered, meteredMax string
	rate, meteredRate   string
	reboot              string
	rebootWarning       time.Duration
	keepBases           string
}

func (o *options) flags() *pflag.FlagSet {
	d := agent.DefaultSettings()
	f := pflag.NewFlagSet("settings", pflag.ContinueOnError)
	f.DurationVar(&o.interval, "interval", d.Interval, "between two looks of run, give or take a quarter")
	f.DurationVar(&o.spread, "spread", d.Spread, "the first look of run comes at a random moment within it")
	f.StringArrayVar(&o.windows, "window", nil, "install only then, in local time, such as 'mon-fri 22:00-05:00'; narrows the windows of the plan (repeatable)")
	f.StringVar(&o.missed, "missed-window", string(d.MissedWindow), "when a whole --window was missed: wait for the next one, or install at once")
	f.IntVar(&o.minBattery, "min-battery", d.MinBattery, "on battery, begin nothing with fewer percent left; 0: do not ask")
	f.StringVar(&o.metered, "metered", string(d.Metered), "what is fetched over a metered line: any, small, none")
	f.StringVar(&o.meteredMax, "metered-max", "10MiB", "largest file for --metered small; what is critical or overdue may be larger")
	f.StringVar(&o.rate, "rate", "0", "bytes a second of downloads; 0: any number")
	f.StringVar(&o.meteredRate, "metered-rate", "0", "the same on a metered line; 0: as --rate")
	f.StringVar(&o.reboot, "reboot", string(d.Reboot), "whether run reboots for patches that need it: never, window, deadline")
	f.DurationVar(&o.rebootWarning, "reboot-warning", d.RebootWarning, "time for whoever is logged in to save their work")
	f.StringVar(&o.keepBases, "keep-bases", "1GiB", "disk for installed files, so that the next version is small to fetch; 0: none")
	return f
}

// read turns them into settings, and what else of the agent they say.
func (o *options) read() (set agent.Settings, bases int64, err error) {
	set = agent.Settings{
		Interval: o.interval, Spread: o.spread, MinBattery: o.minBattery, Windows: []rollout.Window{},
		Metered: agent.MeteredPolicy(o.metered), Reboot: agent.RebootPolicy(o.reboot), RebootWarning: o.rebootWarning,
	}
	for _, w := range o.windows {
		window, err := rollout.ParseWindow(w)
		if err != nil {
			return set, 0, err
		}
		set.Windows = append(set.Windows, window)
	}
	if set.MissedWindow, err = rollout.ParseMissedWindow(o.missed); err != nil {
		return set, 0, fmt.Errorf("missed-window: %w", err)
	}
	for _, size := range []struct {
		to         *int64
		name, from string
	}{{&set.MeteredMax, "metered-max", o.meteredMax}, {&set.Rate, "rate", o.rate}, {&set.MeteredRate, "metered-rate", o.meteredRate}, {&bases, "keep-bases", o.keepBases}} {
		if *size.to, err = cli.ParseBytes(size.from); err != nil {
			return set, 0, fmt.Errorf("%s: %w", size.name, err)
		}
	}
	if bases == 0 {
		bases = -1 // none
	}
	return set, bases, set.Check()
}

// addSettings gives a command the settings as flags. They stand in the help of
// run alone, where most of them matter.
func addSettings(cmd *cobra.Command, shown bool) {
	flags := (&options{}).flags()
	flags.VisitAll(func(f *pflag.Flag) { f.Hidden = !shown })
	cmd.Flags().AddFlagSet(flags)
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name != "interval" && f.Name != "window" { // a window holds commas
			cli.BindEnv(cmd, f.Name, "PATCHKEEP_"+strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_")))
		}
	})
	cli.BindEnv(cmd, "interval", "PATCHKEEP_INTERVAL")
}

// source of a command's settings.
func source(cmd *cobra.Command) (*settings.Source, error) {
	file, err := settingsFile(cmd)
	if err != nil {
		return nil, err
	}
	return settings.Of(cmd.Flags(), file), nil
}

// settingsFile is the one that is named, or the first of the usual ones that
// there is, or none.
func settingsFile(cmd *cobra.Command) (string, error) {
	file, err := cmd.Flags().GetString("config")
	if err != nil || file != "" {
		return file, err
	}
	dir, err := cmd.Flags().GetString("state")
	if err != nil {
		return "", err
	}
	for _, file := range []string{filepath.Join(dir, "settings.yaml"), systemSettings()} {
		if _, err := os.Stat(file); err == nil {
			return file, nil
		} else if !errors.Is(err, os.ErrNotExist) && file != systemSettings() {
			return file, nil // reading it says what is wrong
		}
	}
	return "", nil
}

func systemSettings() string {
	if runtime.GOOS == "windows" {
		return filepath.Join(agent.DefaultDir(), "settings.yaml")
	}
	return "/etc/patchkeep/agent.yaml"
}

// readSettings reads the file anew.
func readSettings(s *settings.Source) (agent.Settings, int64, error) {
	var o options
	err := s.Apply(o.flags())
	if err != nil && !errors.Is(err, settings.ErrFile) {
		return agent.Settings{}, 0, err
	}
	var set agent.Settings
	var bases int64
	if err == nil {
		set, bases, err = o.read()
	}
	if err != nil {
		err = cli.WithHint(&cli.UsageError{Err: err}, "the settings are the flags of patchkeep-agent run --help; a file has their names without dashes")
	}
	return set, bases, err
}

// settingsWords are the settings in force, for people.
func settingsWords(s *agent.Settings) []string {
	lines := []string{fmt.Sprintf("it looks every %s, give or take a quarter", s.Interval)}
	if len(s.Windows) > 0 {
		var windows []string
		for _, w := range s.Windows {
			windows = append(windows, w.String())
		}
		lines = append(lines, fmt.Sprintf("it installs %s only, until the deadline (missed: %s)", strings.Join(windows, " and "), s.MissedWindow))
	}
	if s.MinBattery > 0 {
		lines = append(lines, fmt.Sprintf("on battery it begins nothing below %d %%", s.MinBattery))
	}
	switch s.Metered {
	case agent.MeteredSmall:
		lines = append(lines, fmt.Sprintf("over a metered line it fetches files up to %s, and what is critical or overdue", cli.Bytes(s.MeteredMax)))
	case agent.MeteredNone:
		lines = append(lines, "over a metered line it fetches nothing")
	}
	if s.Rate > 0 || s.MeteredRate > 0 {
		lines = append(lines, fmt.Sprintf("it fetches %s, %s over a metered line", rateWords(s.Rate), rateWords(cmp.Or(s.MeteredRate, s.Rate))))
	}
	switch s.Reboot {
	case agent.RebootWindow:
		lines = append(lines, fmt.Sprintf("it reboots in a window, %s after a warning", s.RebootWarning))
	case agent.RebootDeadline:
		lines = append(lines, fmt.Sprintf("it reboots in a window or past deadline and grace, %s after a warning", s.RebootWarning))
	default:
		lines = append(lines, "it never reboots by itself")
	}
	return lines
}

func rateWords(n int64) string {
	if n == 0 {
		return "as fast as it can"
	}
	return "at " + cli.Bytes(n) + "/s"
}
