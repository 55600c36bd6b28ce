package agent

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

const (
	haltsFile     = "halts.json"
	haltsCopy     = "halts-copy.json"
	seenFile      = "seen.json"
	reportFile    = "report.json"
	installedFile = "installed.json"
	historyFile   = "history.json"

	maxHalts   = 50_000
	maxHistory = 1000
	maxOutput  = 2 << 10 // bytes of an installer's words in the history
)

// allHalts adds the published halts to those ever seen, and returns all. So a
// list that lost a halt does not start a patch again: only the ring's plan
// lifts it, and what is lifted is forgotten once it is no longer published.
func (a *Agent) allHalts(published []rollout.Halt, plan *rollout.Plan) ([]rollout.Halt, error) {
	seen, err := a.readHalts()
	if err != nil {
		return nil, err
	}
	known := make(map[string]rollout.Halt)
	for _, h := range seen {
		if plan == nil || !slices.Contains(plan.Lifts, h.ID) {
			known[haltKey(h)] = h
		}
	}
	for _, h := range published {
		known[haltKey(h)] = h
	}
	if len(known) > maxHalts {
		return nil, errors.New("more halts were seen than can be kept; lift some in the ring's plan")
	}
	all := slices.SortedFunc(maps.Values(known), func(a, b rollout.Halt) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(haltKey(a), haltKey(b)))
	})
	if slices.EqualFunc(all, seen, func(a, b rollout.Halt) bool { return haltKey(a) == haltKey(b) }) {
		return all, nil
	}
	return all, a.writeHalts(all)
}

// haltKey tells halts apart by all they say: one that is published anew under
// an old id does not replace what the old one stopped.
func haltKey(h rollout.Halt) string {
	h.Since = h.Since.UTC()
	b, err := json.Marshal(h)
	if err != nil {
		return h.ID
	}
	return string(b)
}

// firstSeen notes when patches were first seen in the plan, by path and
// SHA-256, and forgets those that left it.
func (a *Agent) firstSeen(plan *rollout.Plan, now time.Time) (map[string]time.Time, error) {
	var before map[string]time.Time
	if err := readJSON(a.path(seenFile), &before); err != nil {
		return nil, err
	}
	after := make(map[string]time.Time)
	for _, e := range plan.Entries {
		at, ok := before[e.SHA256+" "+e.Patch]
		if !ok {
			at = now.UTC().Truncate(time.Second)
		}
		after[e.SHA256+" "+e.Patch] = at
	}
	if maps.Equal(before, after) {
		return after, nil
	}
	return after, writeJSON(a.path(seenFile), after)
}

// installed is what this agent has installed, by product.
func (a *Agent) installed() (map[string]install.Known, error) {
	known := make(map[string]install.Known)
	if err := readJSON(a.path(installedFile), &known); err != nil {
		return nil, fmt.Errorf("read what is installed: %w", err)
	}
	return known, nil
}

func (a *Agent) noteInstalled(product string, k install.Known) error {
	known, err := a.installed()
	if err != nil {
		return err
	}
	if known[product] == k {
		return nil
	}
	known[product] = k
	return writeJSON(a.path(installedFile), known)
}

// Event is an entry of the history.
type Event struct {
	ID       string        `json:"id"` // the same for the same attempt
	Time     time.Time     `json:"time"`
	Product  string        `json:"product"`
	Version  string        `json:"version"`
	Previous string        `json:"previous,omitempty"`
	Path     string        `json:"path"`
	SHA256   string        `json:"sha256"`
	Step     Step          `json:"step"` // where the attempt ended
	Attempt  int           `json:"attempt"`
	Exit     int           `json:"exit"`
	Why      string        `json:"why,omitempty"`
	Output   string        `json:"output,omitempty"`
	Log      string        `json:"log,omitempty"`
	Took     time.Duration `json:"took"` // nanoseconds
}

// History returns what came of patches on this machine, newest first, at most
// the last 1000.
func (a *Agent) History() ([]Event, error) {
	var events []Event
	if err := readJSON(a.path(historyFile), &events); err != nil {
		return nil, fmt.Errorf("read history: %w", err)
	}
	slices.Reverse(events)
	return events, nil
}

// record appends to the history, once for the same end of the same attempt.
func (a *Agent) record(e Event) error {
	var events []Event
	if err := readJSON(a.path(historyFile), &events); err != nil {
		return fmt.Errorf("read history: %w", err)
	}
	if slices.ContainsFunc(events, func(o Event) bool { return o.ID == e.ID }) {
		return nil
	}
	if over := len(e.Output) - maxOutput; over > 0 {
		e.Output = "…" + e.Output[over:]
	}
	events = append(events, e)
	if over := len(events) - maxHistory; over > 0 {
		events = events[over:]
	}
	return writeJSON(a.path(historyFile), events)
}
