// Package rollout is what a ring's approvers and the people on call say about
// patches, and the pure decision that a machine takes on it: may this patch be
// installed here, now? No server decides anything; see Decide.
package rollout

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/patchkeep/patchkeep/repo/internal/document"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// Format is the version of the formats that this package writes.
const Format = 1

// Bounds on what is read; beyond them a document is refused.
const (
	MaxPlanSize   = 4 << 20 // bytes of a plan
	MaxHaltsSize  = 1 << 20 // bytes of a halt list
	MaxChangeSize = 1 << 20 // bytes of a change record
	maxEntries    = 10_000
	maxSteps      = 100
	maxWindows    = 32
	maxText       = 4 << 10
)

// ErrBad is wrapped by every error about a document that is refused.
var ErrBad = errors.New("bad rollout document")

// DefaultRings are the rings that init makes.
var DefaultRings = []string{"users", "key-users", "servers"}

// Plan is rings/<ring>/plan.json: which patches may go to the machines of the
// ring, signed by the ring's approvers.
type Plan struct {
	Format  int     `json:"format"`
	Ring    string  `json:"ring"`
	Entries []Entry `json:"entries"`

	// MinimumSafe maps a product to the version that it must not fall below
	// on this ring's machines: the only door to a signed downgrade.
	MinimumSafe map[string]string `json:"minimum_safe,omitempty"`

	// Lifts names the halts, by id, that no longer hold for this ring. A halt
	// is lifted here, by the ring's threshold, and never by its absence.
	Lifts []string `json:"lifts,omitempty"`

	// Holds are patches that the ring leaves as they are for now, and why.
	Holds []Hold `json:"holds,omitempty"`

	Unknown document.Unknown `json:"-"`

	places map[string]int `json:"-"` // of the entries, as read; see Entry
}

// Hold says in public that a patch is not approved yet, and why. It forbids
// nothing: what is not approved is not installed anyway.
type Hold struct {
	Patch  string    `json:"patch"` // target path
	Since  time.Time `json:"since"`
	Reason string    `json:"reason"`
}

// Entry approves one patch: by path, by content, and by what its product says
// about it.
type Entry struct {
	Patch     string    `json:"patch"`         // target path
	SHA256    string    `json:"sha256"`        // lower-case hex
	Custom    string    `json:"custom_sha256"` // patch.Digest: recipes and applicability are approved with the bytes
	NotBefore time.Time `json:"not_before"`
	Steps     []Step    `json:"steps,omitempty"`   // none: everyone from NotBefore
	Windows   []Window  `json:"windows,omitempty"` // none: at any time

	// MissedWindow is for machines that were away in the whole of a window.
	MissedWindow MissedWindow `json:"missed_window,omitempty"`

	// Deadline counts from the moment the machine first saw the patch, or from
	// its turn if that comes later; after it windows no longer hold the patch
	// back, and after Grace more the machine may be rebooted. Seconds; 0: none.
	Deadline int64 `json:"deadline,omitempty"`
	Grace    int64 `json:"grace,omitempty"`

	Paused       bool      `json:"paused,omitempty"`
	PausedReason string    `json:"paused_reason,omitempty"`
	PausedSince  time.Time `json:"paused_since,omitzero"`

	// Expedite is for emergencies: everyone from NotBefore, whatever Steps and
	// Windows say.
	Expedite       bool   `json:"expedite,omitempty"`
	ExpediteReason string `json:"expedite_reason,omitempty"`

	Change string `json:"change,omitempty"` // id of the change record

	Unknown document.Unknown `json:"-"`
}

// plainEntry and plainHalt are the types without the methods, which would call
// themselves.
type (
	plainEntry Entry
	plainHalt  Halt
)

// UnmarshalJSON keeps the fields that it does not know: entries are written
// again whenever their plan changes.
func (e *Entry) UnmarshalJSON(data []byte) (err error) {
	e.Unknown, err = document.Decode(data, MaxPlanSize, (*plainEntry)(e))
	return err
}

// MarshalJSON writes the fields that it does not know too.
func (e Entry) MarshalJSON() ([]byte, error) { return document.Encode(plainEntry(e), e.Unknown) }

// UnmarshalJSON keeps the fields that it does not know.
func (h *Halt) UnmarshalJSON(data []byte) (err error) {
	h.Unknown, err = document.Decode(data, MaxHaltsSize, (*plainHalt)(h))
	return err
}

// MarshalJSON writes the fields that it does not know too.
func (h Halt) MarshalJSON() ([]byte, error) { return document.Encode(plainHalt(h), h.Unknown) }

// Percent is a share in hundredths of a percent, 0 to 10 000. In JSON it is a
// number of percent with at most two decimals.
type Percent int

// All is every machine.
const All Percent = 10_000

// MarshalJSON writes the percent as a number.
func (p Percent) MarshalJSON() ([]byte, error) { return []byte(p.String()), nil }

// String writes the percent without its sign: "12.5".
func (p Percent) String() string { return string(p.append(nil)) }

// UnmarshalJSON reads a number of percent.
func (p *Percent) UnmarshalJSON(data []byte) error {
	var f float64
	if err := json.Unmarshal(data, &f); err != nil {
		return err
	}
	h := math.Round(f * 100)
	if math.Abs(h-f*100) > 1e-6 || h < 0 || h > float64(All) {
		return fmt.Errorf("%s is not a percentage from 0 to 100 with at most two decimals", data)
	}
	*p = Percent(h)
	return nil
}

// Halts is halts/halts.json: stopped patches, signed by anyone on call.
type Halts struct {
	Format int    `json:"format"`
	Halts  []Halt `json:"halts"`

	Unknown document.Unknown `json:"-"`
}

// Halt stops one patch (SHA256), all patches of a product (Product), or
// everything (All). Exactly one of the three is set.
type Halt struct {
	ID      string    `json:"id"`
	SHA256  string    `json:"sha256,omitempty"`
	Product string    `json:"product,omitempty"`
	All     bool      `json:"all,omitempty"`
	Since   time.Time `json:"since"`
	Reason  string    `json:"reason"`
	By      string    `json:"by"`

	Unknown document.Unknown `json:"-"`
}

// Matches reports whether the halt stops the patch.
func (h *Halt) Matches(product, sha256 string) bool {
	return h.All || h.Product != "" && h.Product == product || h.SHA256 != "" && h.SHA256 == sha256
}

// Change is rings/<ring>/changes/<id>.json: the formal record under which a
// patch goes to a ring. Its approval is the ring role's signatures.
type Change struct {
	Format       int               `json:"format"`
	ID           string            `json:"id"`
	Ring         string            `json:"ring"`
	What         string            `json:"what"`
	Why          string            `json:"why"`
	Risk         string            `json:"risk,omitempty"` // low, medium, high
	Assessment   string            `json:"assessment,omitempty"`
	PlannedFrom  time.Time         `json:"planned_from,omitzero"`
	PlannedTo    time.Time         `json:"planned_to,omitzero"`
	Preparation  string            `json:"preparation,omitempty"`
	TestEvidence []Evidence        `json:"test_evidence,omitempty"`
	Installation string            `json:"installation,omitempty"`
	RollbackPlan string            `json:"rollback_plan,omitempty"`
	Verification string            `json:"verification,omitempty"`
	Author       string            `json:"author"`
	Patches      map[string]string `json:"patches"` // target path → sha256

	Unknown document.Unknown `json:"-"`
}

// Evidence is a file that shows a test, by its hash.
type Evidence struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
	Note   string `json:"note,omitempty"`
}

// ParsePlan reads and checks a plan.
func ParsePlan(data []byte) (*Plan, error) {
	var p Plan
	unknown, err := document.Decode(data, MaxPlanSize, &p)
	if err != nil {
		return nil, fmt.Errorf("%w: plan: %w", ErrBad, err)
	}
	p.Unknown = unknown
	if err := p.Check(); err != nil {
		return nil, err
	}
	p.places = make(map[string]int, len(p.Entries))
	for i := range p.Entries {
		p.places[p.Entries[i].Patch] = i
	}
	return &p, nil
}

// Encode checks the plan and writes it.
func (p *Plan) Encode() ([]byte, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	return encode(p, p.Unknown, MaxPlanSize)
}

// Check reports the first thing that is wrong with the plan.
func (p *Plan) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: plan: "+format, append([]any{ErrBad}, args...)...)
	}
	if p.Format != Format {
		return bad("format %d is not known to this version (it knows %d)", p.Format, Format)
	}
	if err := layout.CheckName(p.Ring); err != nil {
		return bad("ring: %w", err)
	}
	if len(p.Entries) > maxEntries || len(p.Lifts) > maxEntries || len(p.MinimumSafe) > maxEntries || len(p.Holds) > maxEntries {
		return bad("more than %d entries", maxEntries)
	}
	seen := make(map[string]bool, len(p.Entries))
	for i := range p.Entries {
		e := &p.Entries[i]
		if err := e.check(); err != nil {
			return bad("entry %d (%.200s): %w", i+1, e.Patch, err)
		}
		if seen[e.Patch] {
			return bad("entry %d: %s stands twice", i+1, e.Patch)
		}
		seen[e.Patch] = true
	}
	for product, version := range p.MinimumSafe {
		if layout.CheckName(product) != nil || layout.CheckName(version) != nil {
			return bad("minimum_safe: %q: %q is not a product and a version", product, version)
		}
	}
	for _, id := range p.Lifts {
		if err := layout.CheckName(id); err != nil {
			return bad("lifts: %w", err)
		}
	}
	for i := range p.Holds {
		h := &p.Holds[i]
		if _, _, _, _, ok := layout.SplitPatchPath(h.Patch); !ok {
			return bad("hold %d: %q is not a patch's target path", i+1, h.Patch)
		}
		if h.Since.IsZero() || len(h.Reason) > maxText {
			return bad("hold %d: since is missing, or reason is longer than %d bytes", i+1, maxText)
		}
	}
	return nil
}

func (e *Entry) check() error {
	if _, _, _, _, ok := layout.SplitPatchPath(e.Patch); !ok {
		return fmt.Errorf("%q is not a patch's target path", e.Patch)
	}
	if !layout.IsSHA256(e.SHA256) {
		return fmt.Errorf("%q is not a SHA-256", e.SHA256)
	}
	if !layout.IsSHA256(e.Custom) {
		return fmt.Errorf("custom_sha256 %q is not a SHA-256", e.Custom)
	}
	if e.NotBefore.IsZero() {
		return errors.New("not_before is missing")
	}
	if err := checkSteps(e.Steps); err != nil {
		return err
	}
	if len(e.Windows) > maxWindows {
		return fmt.Errorf("more than %d windows", maxWindows)
	}
	for i := range e.Windows {
		if err := e.Windows[i].check(); err != nil {
			return fmt.Errorf("window %d: %w", i+1, err)
		}
	}
	if err := e.MissedWindow.check(); err != nil {
		return err
	}
	if e.Deadline < 0 || e.Deadline > maxSeconds || e.Grace < 0 || e.Grace > maxSeconds {
		return errors.New("deadline or grace is out of bounds")
	}
	if len(e.PausedReason) > maxText || len(e.ExpediteReason) > maxText {
		return fmt.Errorf("paused_reason or expedite_reason is longer than %d bytes", maxText)
	}
	if e.Change != "" {
		if err := layout.CheckName(e.Change); err != nil {
			return fmt.Errorf("change: %w", err)
		}
	}
	return nil
}

const maxSeconds = 10 * 366 * 24 * 3600 // ten years

// Entry returns the entry of a patch, nil if the plan has none.
func (p *Plan) Entry(targetPath string) *Entry {
	if p == nil {
		return nil
	}
	// Entries may have changed since they were read.
	if i, ok := p.places[targetPath]; ok && i < len(p.Entries) && p.Entries[i].Patch == targetPath {
		return &p.Entries[i]
	}
	for i := range p.Entries {
		if p.Entries[i].Patch == targetPath {
			return &p.Entries[i]
		}
	}
	return nil
}

// Hold returns what the ring says about a patch that it leaves as it is; nil if
// nothing.
func (p *Plan) Hold(targetPath string) *Hold {
	for i := range p.Holds {
		if p.Holds[i].Patch == targetPath {
			return &p.Holds[i]
		}
	}
	return nil
}

// ParseHalts reads and checks a halt list.
func ParseHalts(data []byte) (*Halts, error) {
	var h Halts
	unknown, err := document.Decode(data, MaxHaltsSize, &h)
	if err != nil {
		return nil, fmt.Errorf("%w: halts: %w", ErrBad, err)
	}
	h.Unknown = unknown
	if err := h.Check(); err != nil {
		return nil, err
	}
	return &h, nil
}

// Encode checks the halt list and writes it.
func (h *Halts) Encode() ([]byte, error) {
	if err := h.Check(); err != nil {
		return nil, err
	}
	return encode(h, h.Unknown, MaxHaltsSize)
}

// Check reports the first thing that is wrong with the halt list.
func (h *Halts) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: halts: "+format, append([]any{ErrBad}, args...)...)
	}
	if h.Format != Format {
		return bad("format %d is not known to this version (it knows %d)", h.Format, Format)
	}
	if len(h.Halts) > maxEntries {
		return bad("more than %d entries", maxEntries)
	}
	seen := make(map[string]bool, len(h.Halts))
	for i := range h.Halts {
		e := &h.Halts[i]
		n := 0
		for _, set := range []bool{e.SHA256 != "", e.Product != "", e.All} {
			if set {
				n++
			}
		}
		switch {
		case layout.CheckName(e.ID) != nil || seen[e.ID]:
			return bad("entry %d: id %q is bad or stands twice", i+1, e.ID)
		case n != 1:
			return bad("entry %d: it needs exactly one of sha256, product and all", i+1)
		case e.SHA256 != "" && !layout.IsSHA256(e.SHA256):
			return bad("entry %d: %q is not a SHA-256", i+1, e.SHA256)
		case e.Product != "" && layout.CheckName(e.Product) != nil:
			return bad("entry %d: %q is not a product", i+1, e.Product)
		case e.Since.IsZero():
			return bad("entry %d: since is missing", i+1)
		case len(e.Reason) > maxText || len(e.By) > maxText:
			return bad("entry %d: reason or by is longer than %d bytes", i+1, maxText)
		}
		seen[e.ID] = true
	}
	return nil
}

// ParseChange reads and checks a change record.
func ParseChange(data []byte) (*Change, error) {
	var c Change
	unknown, err := document.Decode(data, MaxChangeSize, &c)
	if err != nil {
		return nil, fmt.Errorf("%w: change: %w", ErrBad, err)
	}
	c.Unknown = unknown
	if err := c.Check(); err != nil {
		return nil, err
	}
	return &c, nil
}

// Encode checks the change record and writes it.
func (c *Change) Encode() ([]byte, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	return encode(c, c.Unknown, MaxChangeSize)
}

// Check reports the first thing that is wrong with the change record's form.
// What a ring's policy demands of its content is not asked here.
func (c *Change) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: change: "+format, append([]any{ErrBad}, args...)...)
	}
	if c.Format != Format {
		return bad("format %d is not known to this version (it knows %d)", c.Format, Format)
	}
	if err := layout.CheckName(c.ID); err != nil {
		return bad("id: %w", err)
	}
	if err := layout.CheckName(c.Ring); err != nil {
		return bad("ring: %w", err)
	}
	if len(c.Patches) == 0 || len(c.Patches) > maxEntries || len(c.TestEvidence) > maxEntries {
		return bad("no patches, or more than %d entries", maxEntries)
	}
	for p, sum := range c.Patches {
		if _, _, _, _, ok := layout.SplitPatchPath(p); !ok || !layout.IsSHA256(sum) {
			return bad("%q: %q is not a patch and its SHA-256", p, sum)
		}
	}
	for _, e := range c.TestEvidence {
		if !layout.IsSHA256(e.SHA256) {
			return bad("test evidence %q: %q is not a SHA-256", e.Name, e.SHA256)
		}
	}
	return nil
}

func encode(v any, unknown document.Unknown, limit int) ([]byte, error) {
	data, err := document.Encode(v, unknown)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	if len(data) > limit {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrBad, len(data), limit)
	}
	return data, nil
}
