package rollout

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
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
	Overdue bool      // past the deadline: windows no longer hold the patch back
	Force   bool      // past deadline and grace: a needed reboot may be forced
}

// Check is one step of the decision.
type Check struct {
	Name string `json:"name"` // ring, halt, plan, sha256, recipes, paused, not-before, step, window
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
	raw, err := hex.DecodeString(patchSHA256)
	if err != nil {
		return Buckets - 1 // refused elsewhere; here: last of all
	}
	sum := sha256.Sum256(append(append(raw, 0), machineID...))
	return int(binary.BigEndian.Uint64(sum[:8]) % Buckets)
}

// Decide says whether the patch may be installed on the device now. It is
// pure: same input, same answer, on every machine. now carries the machine's
// location, which windows are read in. Whether the patch applies, and whether
// the metadata is fresh, is the caller's to ask.
func Decide(dev Device, st State, c Candidate, now time.Time) Decision {
	var d Decision
	yes := func(name, why string) { d.Trace = append(d.Trace, Check{name, true, why}) }
	no := func(name, why string) Decision {
		d.Trace = append(d.Trace, Check{name, false, why})
		return d
	}

	if st.Plan == nil {
		return no("ring", fmt.Sprintf("no plan is published for ring %s", dev.Ring))
	}
	if st.Plan.Ring != dev.Ring {
		return no("ring", fmt.Sprintf("the plan is for ring %s, and this machine is in %s", st.Plan.Ring, dev.Ring))
	}
	yes("ring", "this machine is in ring "+dev.Ring)

	for i := range st.Halts {
		if h := &st.Halts[i]; h.Matches(c.Product, c.SHA256) && !st.Plan.lifted(h.ID) {
			return no("halt", fmt.Sprintf("stopped since %s by %s: %s", h.Since.UTC().Format(time.RFC3339), orUnknown(h.By), orUnknown(h.Reason)))
		}
	}
	yes("halt", "nobody stopped it")

	e := st.Plan.Entry(c.Path)
	if e == nil {
		return no("plan", fmt.Sprintf("ring %s has not approved it", dev.Ring))
	}
	yes("plan", fmt.Sprintf("ring %s has approved it", dev.Ring))
	if e.SHA256 != c.SHA256 {
		return no("sha256", fmt.Sprintf("ring %s approved other content (sha256 %.12s…) than the product now offers (%.12s…)", dev.Ring, e.SHA256, c.SHA256))
	}
	// The recipes run with all rights: who approves the bytes approves them too.
	yes("sha256", "the approved content is the offered one")
	if e.Custom != c.Custom {
		return no("recipes", fmt.Sprintf("ring %s approved other recipes or applicability than the product now signs for the same content", dev.Ring))
	}
	yes("recipes", "the approved recipes are the offered ones")

	if e.Paused {
		return no("paused", "the rollout is paused: "+orUnknown(e.PausedReason))
	}
	yes("paused", "the rollout is not paused")

	if now.Before(e.NotBefore) {
		d.Next = e.NotBefore
		return no("not-before", fmt.Sprintf("it starts at %s", e.NotBefore.In(now.Location()).Format(time.RFC3339)))
	}
	yes("not-before", fmt.Sprintf("it started at %s", e.NotBefore.In(now.Location()).Format(time.RFC3339)))

	bucket := Bucket(c.SHA256, dev.ID)
	share, turn := e.share(bucket, now)
	if bucket >= int(share) {
		d.Next = turn
		why := fmt.Sprintf("%s %% of the ring are in, and this machine comes at %s %%", share, Percent(bucket+1))
		if !turn.IsZero() {
			why += ", at " + turn.In(now.Location()).Format(time.RFC3339)
		}
		return no("step", why)
	}
	yes("step", fmt.Sprintf("%s %% of the ring are in, and this machine comes at %s %%", share, Percent(bucket+1)))

	if e.Deadline > 0 && !st.FirstSeen.IsZero() {
		due := st.FirstSeen.Add(time.Duration(e.Deadline) * time.Second)
		d.Overdue = !now.Before(due)
		d.Force = d.Overdue && !now.Before(due.Add(time.Duration(e.Grace)*time.Second))
	}
	if in, next := inWindows(e.Windows, now); !in && !d.Overdue {
		d.Next = next
		return no("window", fmt.Sprintf("outside its maintenance windows; the next one begins at %s", next.Format(time.RFC3339)))
	}
	if d.Overdue {
		yes("window", "its deadline has passed, so maintenance windows no longer hold it back")
	} else {
		yes("window", "now is a time to install it")
	}
	d.Install = true
	return d
}

// share returns the part of the ring that is in at now, and when the bucket's
// turn comes, zero if never or already.
func (e *Entry) share(bucket int, now time.Time) (share Percent, turn time.Time) {
	if len(e.Steps) == 0 {
		return All, time.Time{}
	}
	for _, s := range e.Steps {
		at := e.NotBefore.Add(time.Duration(s.At) * time.Second)
		if !now.Before(at) {
			share = s.Percent
		} else if bucket < int(s.Percent) {
			return share, at
		}
	}
	return share, time.Time{}
}

func (p *Plan) lifted(id string) bool { return slices.Contains(p.Lifts, id) }

func orUnknown(s string) string {
	if s == "" {
		return "(not said)"
	}
	return s
}
