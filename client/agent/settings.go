package agent

import (
	"fmt"
	"time"

	"github.com/patchkeep/patchkeep/repo/rollout"
)

// Settings are this machine's own wishes. They hold things back and tune them,
// and allow nothing that is not signed. The zero value holds nothing back and
// never reboots; DefaultSettings are those of patchkeep-agent.
type Settings struct {
	Interval time.Duration `json:"interval"` // of Run between two looks, ± 25 %; 0: 1 h, at least 1 s
	Spread   time.Duration `json:"spread"`   // of Run: the first look comes at a random moment within it

	// Windows narrow those of the plan, until the signed deadline of a patch;
	// MissedWindow says what follows when the machine was away for a whole one.
	Windows      []rollout.Window     `json:"windows"`
	MissedWindow rollout.MissedWindow `json:"missed_window"`

	MinBattery int           `json:"min_battery"` // percent; below it, on battery, nothing is begun. 0: not asked
	Metered    MeteredPolicy `json:"metered"`     // "": MeteredAny
	MeteredMax int64         `json:"metered_max"` // bytes of a file, for MeteredSmall

	Rate        int64 `json:"rate"`         // bytes per second of downloads; 0: no limit
	MeteredRate int64 `json:"metered_rate"` // on a metered line; 0: as Rate

	Reboot        RebootPolicy  `json:"reboot"`         // "": RebootNever
	RebootWarning time.Duration `json:"reboot_warning"` // to whoever is logged in
}

// MeteredPolicy says what is fetched over a line that costs by volume.
type MeteredPolicy string

// The policies. Metadata is always fetched.
const (
	MeteredAny   MeteredPolicy = "any"   // everything
	MeteredSmall MeteredPolicy = "small" // files up to Settings.MeteredMax, and what is critical or past its deadline
	MeteredNone  MeteredPolicy = "none"  // nothing
)

// RebootPolicy says whether Run reboots the machine for patches that need it.
type RebootPolicy string

// The policies.
const (
	RebootNever    RebootPolicy = "never"    // it only says so
	RebootWindow   RebootPolicy = "window"   // in a window of the plan or of the settings; never, if neither has one
	RebootDeadline RebootPolicy = "deadline" // moreover past the signed deadline and its grace
)

// DefaultSettings are kind to whoever works at the machine.
func DefaultSettings() Settings {
	return Settings{
		Interval: time.Hour, Spread: 5 * time.Minute,
		MissedWindow: rollout.MissedWait,
		MinBattery:   30,
		Metered:      MeteredSmall, MeteredMax: 10 << 20,
		Reboot: RebootNever, RebootWarning: 15 * time.Minute,
	}
}

// Check reports the first setting that makes no sense.
func (s *Settings) Check() error {
	switch {
	case s.Interval < 0 || s.Interval > 0 && s.Interval < time.Second:
		return fmt.Errorf("interval %s is shorter than a second", s.Interval)
	case s.Interval > 7*24*time.Hour:
		return fmt.Errorf("interval %s is longer than a week", s.Interval)
	case s.Spread < 0 || s.Spread > 24*time.Hour:
		return fmt.Errorf("spread %s is not from 0s to 24h", s.Spread)
	case len(s.Windows) > 32:
		return fmt.Errorf("%d windows, at most 32 are allowed", len(s.Windows))
	case s.MinBattery < 0 || s.MinBattery > 100:
		return fmt.Errorf("min-battery %d is not from 0 to 100 percent", s.MinBattery)
	case s.Metered != "" && s.Metered != MeteredAny && s.Metered != MeteredSmall && s.Metered != MeteredNone:
		return fmt.Errorf("metered %q is none of %s, %s, %s", s.Metered, MeteredAny, MeteredSmall, MeteredNone)
	case s.MeteredMax < 0 || s.Rate < 0 || s.MeteredRate < 0:
		return fmt.Errorf("sizes and rates must not be negative")
	case s.Rate > 0 && s.Rate < minRate || s.MeteredRate > 0 && s.MeteredRate < minRate:
		return fmt.Errorf("a rate below %d bytes a second would never end", minRate)
	case s.Reboot != "" && s.Reboot != RebootNever && s.Reboot != RebootWindow && s.Reboot != RebootDeadline:
		return fmt.Errorf("reboot %q is none of %s, %s, %s", s.Reboot, RebootNever, RebootWindow, RebootDeadline)
	case s.RebootWarning < 0 || s.RebootWarning > 24*time.Hour:
		return fmt.Errorf("reboot-warning %s is not from 0s to 24h", s.RebootWarning)
	}
	return nil
}

// minRate is twice what a mirror must give not to be taken for a dead one.
const minRate = 2 << 10

// Settings returns those in force.
func (a *Agent) Settings() Settings {
	if s := a.settings.Load(); s != nil {
		return *s
	}
	return a.opts.Settings
}

// SetSettings replaces them from the next look on. It may be called at any time.
func (a *Agent) SetSettings(s Settings) error {
	if err := s.Check(); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	a.settings.Store(&s)
	return nil
}
