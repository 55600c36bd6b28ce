package rollout

import (
	"fmt"
	"strings"
	"time"

	"github.com/patchkeep/patchkeep/repo/internal/document"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// Bounds on policies.
const (
	MaxPoliciesSize = 256 << 10 // bytes
	maxPolicies     = 1000
)

// Policies is what the targets role demands of rings. It stands in the targets
// role's own metadata, beside the rings' keys and thresholds, so that a ring
// cannot loosen what binds it.
type Policies struct {
	Format   int      `json:"format"`
	Policies []Policy `json:"policies"`

	Unknown document.Unknown `json:"-"`
}

// Policy is what is demanded of one ring's rollouts. The zero value demands
// nothing. All values are texts, booleans and whole numbers: canonical JSON, in
// which metadata is signed, knows no fractions.
type Policy struct {
	Ring string `json:"ring"`

	// AuthorMayNotApprove: the signature of a change's author does not count.
	AuthorMayNotApprove bool `json:"author_may_not_approve,omitempty"`
	// ChangeRequired: no rollout without a change record.
	ChangeRequired bool `json:"change_required,omitempty"`
	// RollbackPlanRequired and EvidenceRequired: such a record has them.
	RollbackPlanRequired bool `json:"rollback_plan_required,omitempty"`
	EvidenceRequired     bool `json:"evidence_required,omitempty"`

	// FailureBudget is the share of the ring's machines that may fail before a
	// patch is stopped: "2%". "": none is set.
	FailureBudget string `json:"failure_budget,omitempty"`
	// Steps of a rollout that names none, as ParseSteps reads them.
	Steps string `json:"steps,omitempty"`
	// After names a ring that a patch must have been in before, all of it, for
	// Soak seconds. Soak alone counts when a patch is promoted from any ring.
	After string `json:"after,omitempty"`
	Soak  int64  `json:"soak,omitempty"`

	Unknown document.Unknown `json:"-"`
}

type plainPolicy Policy

// UnmarshalJSON keeps the fields that it does not know.
func (p *Policy) UnmarshalJSON(data []byte) (err error) {
	p.Unknown, err = document.Decode(data, MaxPoliciesSize, (*plainPolicy)(p))
	return err
}

// MarshalJSON writes the fields that it does not know too.
func (p Policy) MarshalJSON() ([]byte, error) { return document.Encode(plainPolicy(p), p.Unknown) }

// ParsePolicies reads and checks policies.
func ParsePolicies(data []byte) (*Policies, error) {
	var p Policies
	unknown, err := document.Decode(data, MaxPoliciesSize, &p)
	if err != nil {
		return nil, fmt.Errorf("%w: policies: %w", ErrBad, err)
	}
	p.Unknown = unknown
	if err := p.Check(); err != nil {
		return nil, err
	}
	return &p, nil
}

// Encode checks the policies and writes them.
func (p *Policies) Encode() ([]byte, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	return encode(p, p.Unknown, MaxPoliciesSize)
}

// Check reports the first thing that is wrong.
func (p *Policies) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: policies: "+format, append([]any{ErrBad}, args...)...)
	}
	if p.Format != Format {
		return bad("format %d is not known to this version (it knows %d)", p.Format, Format)
	}
	if len(p.Policies) > maxPolicies {
		return bad("more than %d", maxPolicies)
	}
	seen := make(map[string]bool, len(p.Policies))
	for i := range p.Policies {
		one := &p.Policies[i]
		if seen[one.Ring] {
			return bad("ring %s stands twice", one.Ring)
		}
		seen[one.Ring] = true
		if err := one.check(); err != nil {
			return bad("ring %.64q: %w", one.Ring, err)
		}
	}
	return nil
}

// Check reports the first thing that is wrong with the policy.
func (p *Policy) Check() error {
	if err := p.check(); err != nil {
		return fmt.Errorf("%w: policy of ring %.64q: %w", ErrBad, p.Ring, err)
	}
	return nil
}

func (p *Policy) check() error {
	if err := layout.CheckName(p.Ring); err != nil {
		return err
	}
	if p.FailureBudget != "" {
		if _, err := ParsePercent(p.FailureBudget); err != nil {
			return fmt.Errorf("failure_budget: %w", err)
		}
	}
	if p.Steps != "" {
		if _, err := ParseSteps(p.Steps); err != nil {
			return fmt.Errorf("steps: %w", err)
		}
	}
	if len(p.Steps) > maxText {
		return fmt.Errorf("steps are longer than %d bytes", maxText)
	}
	if p.After != "" {
		if err := layout.CheckName(p.After); err != nil {
			return fmt.Errorf("after: %w", err)
		}
		if p.After == p.Ring {
			return fmt.Errorf("after: a ring does not come after itself")
		}
	}
	if p.Soak < 0 || p.Soak > maxSeconds {
		return fmt.Errorf("soak %d is not a number of seconds up to ten years", p.Soak)
	}
	return nil
}

// ParsePercent reads "2%" or "0.5%".
func ParsePercent(s string) (Percent, error) {
	var p Percent
	number, ok := strings.CutSuffix(s, "%")
	if !ok || number == "null" || p.UnmarshalJSON([]byte(number)) != nil {
		return 0, fmt.Errorf("%w: %q is not like 2%%, from 0%% to 100%% with at most two decimals", ErrBad, s)
	}
	return p, nil
}

// Of returns the policy of a ring; one that demands nothing if there is none.
func (p *Policies) Of(ring string) Policy {
	if p != nil {
		for i := range p.Policies {
			if p.Policies[i].Ring == ring {
				return p.Policies[i]
			}
		}
	}
	return Policy{Ring: ring}
}

// Put sets the policy of a ring.
func (p *Policies) Put(one Policy) {
	for i := range p.Policies {
		if p.Policies[i].Ring == one.Ring {
			p.Policies[i] = one
			return
		}
	}
	p.Policies = append(p.Policies, one)
}

// DefaultSteps are the steps of a rollout that names none.
func (p *Policy) DefaultSteps() []Step {
	if p.Steps == "" {
		return nil
	}
	steps, err := ParseSteps(p.Steps)
	if err != nil {
		return []Step{{}} // checked when it was read; here: nobody
	}
	return steps
}

// String says for people what the policy demands.
func (p Policy) String() string {
	var words []string
	add := func(on bool, format string, args ...any) {
		if on {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	add(p.ChangeRequired, "change record required")
	add(p.RollbackPlanRequired, "with a rollback plan")
	add(p.EvidenceRequired, "with test evidence")
	add(p.AuthorMayNotApprove, "author may not approve")
	add(p.FailureBudget != "", "at most %s may fail", p.FailureBudget)
	add(p.Steps != "", "steps %s", p.Steps)
	add(p.After != "", "after ring %s", p.After)
	add(p.Soak > 0, "soaked for %s", FormatSeconds(p.Soak))
	if len(words) == 0 {
		return "no policy"
	}
	return strings.Join(words, ", ")
}

// Soaked reports whether an entry of another ring has been out to all of that
// ring for the policy's soak time, and since or from when on that is so.
func (p *Policy) Soaked(e *Entry, now time.Time) (from time.Time, err error) {
	if e.Paused {
		return from, fmt.Errorf("it is paused there: %s", orUnknown(e.PausedReason))
	}
	at, ok := e.Complete()
	if !ok {
		return from, fmt.Errorf("its steps there never reach everyone")
	}
	from = at.Add(time.Duration(p.Soak) * time.Second)
	if now.Before(from) {
		return from, fmt.Errorf("it is out to everyone there from %s, and must have been for %s, which is at %s",
			at.UTC().Format(time.RFC3339), FormatSeconds(p.Soak), from.UTC().Format(time.RFC3339))
	}
	return from, nil
}
