package agent

import (
	"slices"
	"time"

	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// State is what a check found about a patch.
type State string

// The states.
const (
	StateOffered       State = "offered"        // apply installs it
	StateInstalled     State = "installed"      // this version is on the machine
	StateWaiting       State = "waiting"        // its time has not come, see Until, or others come first, see After
	StateSuperseded    State = "superseded"     // a newer one is offered or installed
	StateNotApplicable State = "not-applicable" // not for this machine as it is
	StateHalted        State = "halted"         // somebody stopped it
	StateRefused       State = "refused"        // signatures or approvals are not as they must be
	StateStale         State = "stale"          // nothing else is in its way, but the metadata is not fresh
	StateFailed        State = "failed"         // tried too often; see apply --retry
	StateRebootPending State = "reboot-pending" // installed, and the machine must be rebooted
	StateInterrupted   State = "interrupted"    // a run was cut off; the next apply finishes it first
)

// Item is what a check found about one entry of the ring's plan.
type Item struct {
	Path      string          `json:"path"`
	Product   string          `json:"product"`
	Version   string          `json:"version"`
	Platform  string          `json:"platform"`
	Title     string          `json:"title,omitempty"`
	Severity  patch.Severity  `json:"severity,omitempty"`
	Kind      patch.Kind      `json:"kind,omitempty"`
	SHA256    string          `json:"sha256"`
	Length    int64           `json:"length"`              // bytes
	Installed string          `json:"installed,omitempty"` // version on the machine, if it was looked at
	State     State           `json:"state"`
	Why       string          `json:"why"`
	Until     time.Time       `json:"until,omitzero"` // of waiting; zero: time alone changes nothing
	Deadline  time.Time       `json:"deadline,omitzero"`
	Overdue   bool            `json:"overdue,omitempty"` // past the deadline
	After     []string        `json:"after,omitempty"`   // what goes in first, in order: "<product> <version>"
	Trace     []rollout.Check `json:"trace"`             // each question asked, up to the first no

	patch *patch.Patch
	lacks []lack  // requirements that the machine does not fulfil
	first []*Item // those of After
	err   error   // behind a refusal

	force   bool             // past deadline and grace
	windows []rollout.Window // the plan's
}

// ID is "<product> <version>".
func (it *Item) ID() string { return it.Product + " " + it.Version }

// Report is the result of a check.
type Report struct {
	Time      time.Time `json:"time"`
	Ring      string    `json:"ring"`
	MachineID string    `json:"machine_id"`
	Fresh     bool      `json:"fresh"`             // the metadata was refreshed for this check
	Problem   string    `json:"problem,omitempty"` // why not; nothing is installed then
	Verified  time.Time `json:"verified,omitzero"` // when the metadata was signed, as far as it says so
	NoPlan    bool      `json:"no_plan,omitempty"` // the ring has no plan
	Patches   []Item    `json:"patches"`           // in the plan's order
	Damaged   []Damage  `json:"damaged,omitempty"` // files of the state that could not be read
}

// In returns the items in a state.
func (r *Report) In(state State) []*Item {
	var out []*Item
	for i := range r.Patches {
		if r.Patches[i].State == state {
			out = append(out, &r.Patches[i])
		}
	}
	return out
}

// Order returns what apply would install, the first one first: all, or what only
// names, as ApplyOptions.Only does, with what that requires.
func (r *Report) Order(only string) []*Item {
	o := ApplyOptions{Only: only}
	var out []*Item
	for i := range r.Patches {
		it := &r.Patches[i]
		if !o.wants(it.Product, it.Version) || it.State != StateOffered && len(it.first) == 0 {
			continue
		}
		for _, f := range append(slices.Clone(it.first), it) {
			if !slices.Contains(out, f) {
				out = append(out, f)
			}
		}
	}
	return out
}

func (r *Report) item(path, sha256 string) *Item {
	for i := range r.Patches {
		if it := &r.Patches[i]; it.Path == path && it.SHA256 == sha256 {
			return it
		}
	}
	return nil
}
