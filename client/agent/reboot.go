package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/client/internal/host"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

const (
	rebootsFile = "reboots.json"

	maxReboots  = 100              // that are remembered
	maxEach     = 2                // for one patch
	rebootAgain = time.Hour        // after one that did not come, because somebody called it off
	rebootSlack = 10 * time.Minute // in which an announced one may come late
)

// StepRebooting is in the history only: the agent has the machine rebooted.
const StepRebooting Step = "rebooting"

// Host does what Run asks of the system for a reboot; nil fields: the system
// does.
type Host struct {
	Users  func(context.Context) (bool, error)                            // is anybody logged in?
	Reboot func(ctx context.Context, after time.Duration, t string) error // announces one with a text, and does not wait for it
}

// Reboot is one that the agent asked for.
type Reboot struct {
	Asked   time.Time `json:"asked"`
	At      time.Time `json:"at"`      // announced for
	Boot    string    `json:"boot"`    // during which it was asked for
	Patches []string  `json:"patches"` // that need it, by key of their journal
	Why     string    `json:"why"`
}

// rebootIfMay reboots the machine if patches need it and the policy allows it
// now. It is written down before it is asked for, and bounded: for one patch a
// machine is rebooted twice at most.
func (a *Agent) rebootIfMay(ctx context.Context, rep *Report, h *Host) error {
	set := a.Settings()
	if set.Reboot == "" || set.Reboot == RebootNever || rep == nil || !rep.Fresh || ctx.Err() != nil {
		return nil
	}
	s, err := a.begin(ctx)
	if errors.Is(err, ErrBusy) {
		return nil // whoever is at work is not cut off
	}
	if err != nil {
		return err
	}
	defer s.end()
	records, _, err := s.journal.all()
	if err != nil {
		return err
	}
	now := a.opts.Now()
	announce := rebootAt(ctx, now, &set, h)
	r := &Reboot{Asked: now.UTC(), At: announce.UTC(), Patches: []string{}}
	var need []*Record
	for _, rec := range records {
		if rec.Step != StepRebootPending || a.rebooted(rec) {
			continue
		}
		need = append(need, rec)
		r.Patches = append(r.Patches, rec.key())
		if r.Why == "" {
			r.Why = mayReboot(rep.item(rec.Path, rec.SHA256), &set, now, announce)
		}
	}
	if r.Why == "" {
		return nil
	}
	if r.Boot, err = a.opts.BootID(); err != nil || r.Boot == "" {
		return fmt.Errorf("this system does not tell one boot from another, so the agent does not reboot it: %w", errors.Join(err, host.ErrUnknown))
	}
	if again, err := a.noteReboot(r); err != nil || !again {
		return err
	}
	ids := make([]string, 0, len(need))
	for _, rec := range need {
		ids = append(ids, rec.Patch.Product+" "+rec.Patch.Version)
		e := Event{
			ID: fmt.Sprintf("%.12s-%d-%s", rec.key(), now.UnixNano(), StepRebooting), Time: now.UTC().Truncate(time.Second),
			Product: rec.Patch.Product, Version: rec.Patch.Version, Path: rec.Path, SHA256: rec.SHA256, Step: StepRebooting, Attempt: rec.Attempts, Why: r.Why,
		}
		if err := a.record(e); err != nil {
			return fmt.Errorf("write history: %w", err)
		}
	}
	text := "Patchkeep reboots this machine to finish installing " + strings.Join(ids, ", ") + "."
	zerolog.Ctx(ctx).Warn().Time("at", announce).Str("why", r.Why).Strs("patches", ids).Msg("reboot this machine")
	reboot := h.Reboot
	if reboot == nil {
		reboot = host.Reboot
	}
	if err := reboot(ctx, announce.Sub(now), text); err != nil {
		return fmt.Errorf("reboot this machine: %w", err)
	}
	return nil
}

// rebootAt is when a reboot comes that is announced now: at once if nobody is
// there to be warned.
func rebootAt(ctx context.Context, now time.Time, set *Settings, h *Host) time.Time {
	users := h.Users
	if users == nil {
		users = host.Users
	}
	if somebody, err := users(ctx); err == nil && !somebody {
		return now
	}
	return now.Add(set.RebootWarning)
}

// mayReboot says why a reboot may come for a patch; "": it may not. Whoever
// stopped a patch does not want it to take effect either.
func mayReboot(it *Item, set *Settings, now, at time.Time) string {
	if it == nil || it.State == StateHalted || it.State == StateRefused {
		return ""
	}
	if len(it.windows)+len(set.Windows) > 0 {
		begins, _ := rollout.InWindows(now, it.windows, set.Windows)
		ends, _ := rollout.InWindows(at.In(now.Location()), it.windows, set.Windows)
		if begins && ends {
			return "now is a maintenance window"
		}
	}
	if set.Reboot == RebootDeadline && it.force {
		return "the deadline and the grace of " + it.ID() + " have passed"
	}
	return ""
}

// noteReboot writes a reboot down. It reports whether to ask for it: not while
// one is announced, and not over and over for the same patch.
func (a *Agent) noteReboot(r *Reboot) (bool, error) {
	before, err := a.reboots()
	if err != nil {
		return false, err
	}
	count := map[string]int{}
	for i := range before {
		b := &before[i]
		if b.Boot == r.Boot && r.Asked.Before(b.At.Add(rebootAgain)) {
			return false, nil
		}
		for _, key := range b.Patches {
			count[key]++
		}
	}
	for _, key := range r.Patches {
		if count[key] >= maxEach {
			return false, fmt.Errorf("it was asked to reboot %d times for the same patch: reboot this machine by hand, and see 'patchkeep-agent history'", count[key])
		}
	}
	before = append(before, *r)
	return true, writeJSON(a.path(rebootsFile), before[max(0, len(before)-maxReboots):])
}

func (a *Agent) reboots() ([]Reboot, error) {
	var all []Reboot
	if err := readJSON(a.path(rebootsFile), &all); err != nil {
		return nil, fmt.Errorf("read reboots: %w", err)
	}
	return all, nil
}

// rebooting is the reboot that is announced; nil: none is.
func (a *Agent) rebooting(now time.Time) *Reboot {
	all, err := a.reboots()
	if err != nil || len(all) == 0 {
		return nil
	}
	last := &all[len(all)-1]
	rec := Record{Boot: last.Boot}
	if a.rebooted(&rec) || now.After(last.At.Add(rebootSlack)) || now.Before(last.Asked) {
		return nil
	}
	return last
}
