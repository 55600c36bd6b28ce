package rollout

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"time"
)

// Device is what the decision asks of a machine.
type Device struct {
	ID   string // machine id; only its bucket matters
	Ring string // pinned at enrolment
}

// State is the signed data and the little history that the decision rests on.
type State struct {
	Plan      *Plan     // of the machine's ring; nil: none is published
	Halts     []Halt    // published now or ever seen by this machine
	FirstSeen time.Time // when the machine first saw the patch in its plan

	// Looks are the moments at which the machine looked for patches, of
	// metadata that was fresh, ready to install: what tells whether it was
	// there in a window. In order; those long ago may be left out.
	Looks []time.Time

	// Windows are the machine's own. They narrow the plan's, until the
	// deadline; MissedWindow says what happens when one of them was missed.
	Windows      []Window
	MissedWindow MissedWindow
}

// Candidate is the patch in question, as its product's role vouches for it.
type Candidate struct {
	Path    string // target path
	SHA256  string // lower-case hex
	Custom  string // patch.Digest of what the product says about it
	Product string
}

// Decision is the answer, with the steps that led to it.
type Decision struct {
	Install bool
	Trace   []Check   // up to and including the first that says no
	Next    time.Time // when a no may become a yes by time alone; zero: it will not
	Due     time.Time // the deadline; zero: none, or its time has not begun
	Overdue bool      // past the deadline: windows no longer hold the patch back
	Force   bool      // past deadline and grace: a needed reboot may be forced
}

// Check is one step of the decision.
type Check struct {
	Name string `json:"name"` // ring, halt, plan, sha256, recipes, paused, not-before, step, window, own-window
	OK   bool   `json:"ok"`
	Why  string `json:"why"` // for people
}

// Why returns the last check's words.
func (d *Decision) Why() string {
	if len(d.Trace) == 0 {
		return ""
	}
	return d.Trace[len(d.Trace)-1].Why
}

// Buckets is how many buckets machines fall into.
const Buckets = 10_000

// Bucket is the machine's place for this patch: the first 8 bytes, big-endian,
// of SHA-256(patch sha256 ‖ 0x00 ‖ machine id), modulo Buckets. patchSHA256 is
// hex; its raw bytes are hashed.
func Bucket(patchSHA256, machineID string) int {
	if hex.DecodedLen(len(patchSHA256)) != sha256.Size {
		return Buckets - 1 // refused elsewhere; here: last of all
	}
	var room [256]byte // for all but very long ids
	buf := append(room[:0], patchSHA256...)
	if _, err := hex.Decode(buf, buf); err != nil {
		return Buckets - 1
	}
	buf = append(append(buf[:sha256.Size], 0), machineID...)
	sum := sha256.Sum256(buf)
	return int(binary.BigEndian.Uint64(sum[:8]) % Buckets)
}

// Decide says whether the patch may be installed on the device now. It is
// pure: same input, same answer, on every machine. now carries the machine's
// location, which windows are read in. Whether the patch applies, and whether
// the metadata is fresh, is the caller's to ask.
func Decide(dev Device, st State, c Candidate, now time.Time) Decision {
	var d Decision
	var t tracer
	t.words.Grow(512) // more than what it has to say, as a rule
	d.Install = t.decide(&d, &dev, &st, &c, now)
	d.Trace = t.trace()
	return d
}

func (t *tracer) decide(d *Decision, dev *Device, st *State, c *Candidate, now time.Time) bool {
	loc := now.Location()
	if st.Plan == nil {
		return t.no("ring").text("no plan is published for ring ").text(dev.Ring).end()
	}
	if st.Plan.Ring != dev.Ring {
		return t.no("ring").text("the plan is for ring ").text(st.Plan.Ring).text(", and this machine is in ").text(dev.Ring).end()
	}
	t.yes("ring").text("this machine is in ring ").text(dev.Ring)

	for i := range st.Halts {
		if h := &st.Halts[i]; h.Matches(c.Product, c.SHA256) && !st.Plan.lifted(h.ID) {
			return t.no("halt").text("stopped since ").time(h.Since.UTC()).text(" by ").text(orUnknown(h.By)).text(": ").text(orUnknown(h.Reason)).end()
		}
	}
	t.yes("halt").text("nobody stopped it")

	e := st.Plan.Entry(c.Path)
	if e == nil {
		t.no("plan").text("ring ").text(dev.Ring).text(" has not approved it")
		if h := st.Plan.Hold(c.Path); h != nil {
			t.text(", since ").time(h.Since.UTC()).text(": ").text(orUnknown(h.Reason))
		}
		return false
	}
	t.yes("plan").text("ring ").text(dev.Ring).text(" has approved it")
	if e.SHA256 != c.SHA256 {
		return t.no("sha256").text("ring ").text(dev.Ring).text(" approved other content (sha256 ").short(e.SHA256).text("…) than the product now offers (").short(c.SHA256).text("…)").end()
	}
	// The recipes run with all rights: who approves the bytes approves them too.
	t.yes("sha256").text("the approved content is the offered one")
	if e.Custom != c.Custom {
		return t.no("recipes").text("ring ").text(dev.Ring).text(" approved other recipes or applicability than the product now signs for the same content").end()
	}
	t.yes("recipes").text("the approved recipes are the offered ones")

	if e.Paused {
		return t.no("paused").text("the rollout is paused: ").text(orUnknown(e.PausedReason)).end()
	}
	t.yes("paused").text("the rollout is not paused")

	if now.Before(e.NotBefore) {
		d.Next = e.NotBefore
		return t.no("not-before").text("it starts at ").time(e.NotBefore.In(loc)).end()
	}
	t.yes("not-before").text("it started at ").time(e.NotBefore.In(loc))

	bucket := Bucket(c.SHA256, dev.ID)
	share := e.Share(now)
	switch in := bucket < int(share); {
	case e.Expedite:
		t.yes("step").text("the ring has sent it out to everyone at once: ").text(orUnknown(e.ExpediteReason))
	case in:
		t.yes("step").percent(share).text(" % of the ring are in, and this machine comes at ").percent(Percent(bucket + 1)).text(" %")
	default:
		t.no("step").percent(share).text(" % of the ring are in, and this machine comes at ").percent(Percent(bucket + 1)).text(" %")
		if turn, ok := e.Turn(bucket); ok {
			d.Next = turn
			t.text(", at ").time(turn.In(loc))
		}
		return false
	}

	// A deadline gives the machine time: it counts from when the machine both
	// knew of the patch and was let have it.
	opened, _ := e.Turn(bucket)
	if e.Deadline > 0 && !st.FirstSeen.IsZero() {
		d.Due = opened
		if st.FirstSeen.After(opened) {
			d.Due = st.FirstSeen
		}
		d.Due = d.Due.Add(time.Duration(e.Deadline) * time.Second)
		d.Overdue = !now.Before(d.Due)
		d.Force = d.Overdue && !now.Before(d.Due.Add(time.Duration(e.Grace)*time.Second))
	}
	if e.Expedite {
		t.yes("window").text("maintenance windows do not hold it back")
		return true
	}
	plans := hours{name: "window", windows: e.Windows, missed: e.MissedWindow}
	own := hours{name: "own-window", windows: st.Windows, missed: st.MissedWindow}
	plans.look(opened, st.Looks, now)
	own.look(opened, st.Looks, now)
	if t.open(&plans, d.Overdue) && (len(own.windows) == 0 || t.open(&own, d.Overdue)) {
		return true
	}
	d.Next = d.Due
	if next := nextOpening(&plans, &own, now); !next.IsZero() && (d.Due.IsZero() || next.Before(d.Due)) {
		d.Next = next
	}
	return false
}

func (p *Plan) lifted(id string) bool { return slices.Contains(p.Lifts, id) }

func orUnknown(s string) string {
	if s == "" {
		return "(not said)"
	}
	return s
}
