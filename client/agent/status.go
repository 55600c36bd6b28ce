package agent

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/patchkeep/patchkeep/client"
	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/client/internal/boot"
	"github.com/patchkeep/patchkeep/client/tuf"
)

// Status is what the agent knows without asking anybody.
type Status struct {
	Dir       string                    `json:"dir"`
	Config    Config                    `json:"config"`
	Asks      []Asked                   `json:"asks"`  // servers, in the order in which they would be asked now
	Roles     map[string]tuf.RoleStatus `json:"roles"` // as verified last
	Trusted   time.Time                 `json:"trusted_time,omitzero"`
	LastCheck *Report                   `json:"last_check,omitempty"`
	Installed map[string]install.Known  `json:"installed"`           // by this agent
	Pending   []Record                  `json:"pending"`             // under way, or waiting for a reboot
	Reboot    bool                      `json:"reboot"`              // the machine must be rebooted
	Rebooting *Reboot                   `json:"rebooting,omitempty"` // what is announced
	Settings  Settings                  `json:"settings"`
	Damaged   []Damage                  `json:"damaged"`              // files of the state that could not be read
	FreeSpace int64                     `json:"free_space,omitempty"` // bytes on the state's disk, if the system says
	Kept      int64                     `json:"kept"`                 // bytes of installed files, kept for deltas
	NextLook  time.Time                 `json:"next_look,omitzero"`   // of run, give or take a quarter of its interval
	Warnings  []string                  `json:"warnings"`             // what somebody should look at, before it stops anything
}

// Status reads the state; it neither changes nor locks it.
func (a *Agent) Status() (*Status, error) {
	c, err := client.Open(client.Config{
		Dir: a.opts.Dir, Root: a.root, Mirrors: a.config.Servers, MachineID: a.config.MachineID, Region: a.config.Region,
		Now: a.opts.Now, ReadOnly: true,
	})
	if err != nil {
		return nil, fmt.Errorf("open trusted state: %w", err)
	}
	defer c.Close()
	ts := c.Status()
	st := &Status{Dir: a.opts.Dir, Config: *a.config, Asks: asked(c.Servers()), Roles: ts.Roles, Trusted: ts.TrustedTime, Pending: []Record{}, Damaged: a.damaged(), Settings: a.Settings(), Rebooting: a.rebooting(a.opts.Now())}
	// What is damaged is set aside by the next check, which holds the lock.
	if err := readJSON(a.path(reportFile), &st.LastCheck); err != nil {
		if !errors.Is(err, ErrDamaged) {
			return nil, err
		}
		st.LastCheck = nil
	}
	if st.Installed, err = a.installed(); err != nil && !errors.Is(err, ErrDamaged) {
		return nil, err
	}
	j := &journal{dir: a.path("patches"), now: a.opts.Now}
	records, _, err := j.all()
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		if !r.final() {
			st.Pending = append(st.Pending, *r)
		}
		st.Reboot = st.Reboot || r.Step == StepRebootPending && !a.rebooted(r)
	}
	if free, ok := fetch.FreeSpace(a.opts.Dir); ok {
		st.FreeSpace = free
	}
	for _, b := range (&session{Agent: a}).keptBases() {
		st.Kept += b.size
	}
	if st.LastCheck != nil {
		st.NextLook = st.LastCheck.Time.Add(a.interval(&RunOptions{}))
	}
	st.Warnings = st.warnings(a.opts.Now())
	return st, nil
}

// A role that has less than a tenth of its life left should have been renewed.
const (
	lateShare = 10
	lateSoon  = 6 * time.Hour // for one that does not say when it was signed
	lowSpace  = 256 << 20
)

func (s *Status) warnings(now time.Time) []string {
	out := []string{}
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, name := range slices.Sorted(maps.Keys(s.Roles)) {
		r := s.Roles[name]
		soon := lateSoon
		if !r.SignedAt.IsZero() {
			soon = r.Expires.Sub(r.SignedAt) / lateShare
		}
		switch left := r.Expires.Sub(now); {
		case left <= 0:
			say("%s expired at %s: nothing is installed until the publisher renews it and this machine has looked again", name, r.Expires.Format(time.RFC3339))
		case left < soon:
			say("%s expires at %s, and a newer one was not seen yet: ask whoever publishes", name, r.Expires.Format(time.RFC3339))
		}
	}
	if now.Before(s.Trusted) {
		say("the clock of this machine is behind what was signed at %s: set it", s.Trusted.Format(time.RFC3339))
	}
	if s.FreeSpace > 0 && s.FreeSpace < lowSpace {
		say("%d MiB are free on the disk of %s: large patches will not fit", s.FreeSpace>>20, s.Dir)
	}
	if s.LastCheck == nil {
		return out
	}
	if !s.LastCheck.Fresh {
		say("the last look found nothing fresh: %s", s.LastCheck.Problem)
	}
	for i := range s.LastCheck.Patches {
		switch it := &s.LastCheck.Patches[i]; {
		case it.State == StateFailed:
			say("%s failed and waits for a person: %s", it.ID(), it.Why)
		case it.Deadline.IsZero() || it.State == StateInstalled || it.State == StateSuperseded || it.State == StateNotApplicable:
		case !now.Before(it.Deadline):
			say("%s is past its deadline of %s, and is %s: %s", it.ID(), it.Deadline.Format(time.RFC3339), it.State, it.Why)
		}
	}
	return out
}

// rebooted reports whether the machine was rebooted since the patch was
// installed; if the system cannot tell, it is taken for not.
func (a *Agent) rebooted(r *Record) bool {
	now, err := a.opts.BootID()
	return err == nil && r.Boot != "" && now != "" && !boot.Same(r.Boot, now)
}
