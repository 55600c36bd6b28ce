package agent

import (
	"errors"
	"fmt"
	"time"

	"github.com/patchkeep/patchkeep/client"
	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/client/internal/boot"
	"github.com/patchkeep/patchkeep/client/tuf"
)

// Status is what the agent knows without asking anybody.
type Status struct {
	Dir       string                    `json:"dir"`
	Config    Config                    `json:"config"`
	Roles     map[string]tuf.RoleStatus `json:"roles"` // as verified last
	Trusted   time.Time                 `json:"trusted_time,omitzero"`
	LastCheck *Report                   `json:"last_check,omitempty"`
	Installed map[string]install.Known  `json:"installed"`           // by this agent
	Pending   []Record                  `json:"pending"`             // under way, or waiting for a reboot
	Reboot    bool                      `json:"reboot"`              // the machine must be rebooted
	Rebooting *Reboot                   `json:"rebooting,omitempty"` // what is announced
	Settings  Settings                  `json:"settings"`
	Damaged   []Damage                  `json:"damaged"` // files of the state that could not be read
}

// Status reads the state; it neither changes nor locks it.
func (a *Agent) Status() (*Status, error) {
	c, err := client.Open(client.Config{
		Dir: a.opts.Dir, Root: a.root, Mirrors: a.config.Servers, Now: a.opts.Now, ReadOnly: true,
	})
	if err != nil {
		return nil, fmt.Errorf("open trusted state: %w", err)
	}
	defer c.Close()
	ts := c.Status()
	st := &Status{Dir: a.opts.Dir, Config: *a.config, Roles: ts.Roles, Trusted: ts.TrustedTime, Pending: []Record{}, Damaged: a.damaged(), Settings: a.Settings(), Rebooting: a.rebooting(a.opts.Now())}
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
	return st, nil
}

// rebooted reports whether the machine was rebooted since the patch was
// installed; if the system cannot tell, it is taken for not.
func (a *Agent) rebooted(r *Record) bool {
	now, err := a.opts.BootID()
	return err == nil && r.Boot != "" && now != "" && !boot.Same(r.Boot, now)
}
