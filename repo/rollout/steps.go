package rollout

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Step lets Percent of the ring's machines in, At seconds after NotBefore. With
// Ramp the share has grown evenly until then, from the step before, or from
// nobody at NotBefore. Who does not know ramps lets machines in later, never
// earlier.
type Step struct {
	At      int64   `json:"at"`
	Percent Percent `json:"percent"`
	Ramp    bool    `json:"ramp,omitempty"`
}

// Share returns the part of the ring that the steps let in at now. Halts, a
// pause and windows are not asked.
func (e *Entry) Share(now time.Time) Percent {
	if now.Before(e.NotBefore) {
		return 0
	}
	if len(e.Steps) == 0 || e.Expedite {
		return All
	}
	passed := int64(now.Sub(e.NotBefore) / time.Second)
	var last Step
	for _, s := range e.Steps {
		if passed < s.At {
			if s.Ramp {
				return last.Percent + Percent(int64(s.Percent-last.Percent)*(passed-last.At)/(s.At-last.At))
			}
			break
		}
		last = s
	}
	return last.Percent
}

// Turn returns when the steps let a bucket in, to the second; not ok: never.
func (e *Entry) Turn(bucket int) (at time.Time, ok bool) {
	if len(e.Steps) == 0 || e.Expedite {
		return e.NotBefore, true
	}
	var last Step
	for _, s := range e.Steps {
		if bucket < int(s.Percent) {
			after := s.At
			if s.Ramp {
				// The first second in which Share is more than the bucket.
				grows, over := int64(s.Percent-last.Percent), s.At-last.At
				after = last.At + ((int64(bucket)+1-int64(last.Percent))*over+grows-1)/grows
			}
			return e.NotBefore.Add(time.Duration(after) * time.Second), true
		}
		last = s
	}
	return time.Time{}, false
}

// NextStep returns the next step that lets more machines in; nil: there is none.
func (e *Entry) NextStep(now time.Time) *Step {
	if e.Expedite {
		return nil
	}
	share := e.Share(now)
	for i := range e.Steps {
		s := &e.Steps[i]
		if s.Percent > share && now.Before(e.NotBefore.Add(time.Duration(s.At)*time.Second)) {
			return s
		}
	}
	return nil
}

// Complete returns when everyone is in; not ok: never.
func (e *Entry) Complete() (at time.Time, ok bool) { return e.Turn(Buckets - 1) }

// Pause stops the rollout for whoever is not in yet.
func (e *Entry) Pause(reason string, now time.Time) {
	e.Paused, e.PausedReason, e.PausedSince = true, reason, now
}

// Resume lets a paused rollout go on. What was to come goes on where it stood,
// so that the end of a long pause does not let all in at once; with catchUp it
// goes by its first times.
func (e *Entry) Resume(catchUp bool, now time.Time) {
	since := e.PausedSince
	e.Paused, e.PausedReason, e.PausedSince = false, "", time.Time{}
	if catchUp || since.IsZero() || !now.After(since) || !now.After(e.NotBefore) {
		return
	}
	if !since.After(e.NotBefore) { // it had not begun
		e.NotBefore = now
		return
	}
	share := e.Share(since)
	stood := int64(since.Sub(e.NotBefore) / time.Second)
	back := int64(now.Sub(e.NotBefore) / time.Second)
	var steps []Step
	for _, s := range e.Steps {
		switch {
		case s.At <= stood:
			steps = append(steps, s)
			continue
		case s.Ramp && (len(steps) == 0 || steps[len(steps)-1].At < back): // in the middle of it
			if stood > 0 && (len(steps) == 0 || steps[len(steps)-1].At < stood) {
				steps = append(steps, Step{At: stood, Percent: share, Ramp: true})
			}
			if back > stood {
				steps = append(steps, Step{At: back, Percent: share})
			}
		}
		s.At += back - stood
		steps = append(steps, s)
	}
	e.Steps = steps
}

// checkSteps names the first step that is wrong.
func checkSteps(steps []Step) error {
	if len(steps) > maxSteps {
		return fmt.Errorf("more than %d steps", maxSteps)
	}
	var last Step
	for i, s := range steps {
		switch {
		case s.Percent < 0 || s.Percent > All:
			return fmt.Errorf("step %d: %s %% is not a share from 0 to 100 %%", i+1, s.Percent)
		case s.At < 0 || s.At > maxSeconds:
			return fmt.Errorf("step %d: at %d is not a number of seconds up to ten years", i+1, s.At)
		case i > 0 && s.At <= last.At:
			return fmt.Errorf("step %d: it overlaps step %d: at %d s does not come after %d s", i+1, i, s.At, last.At)
		case s.Ramp && s.At <= last.At:
			return fmt.Errorf("step %d: a ramp takes time, and this one ends as it begins", i+1)
		case s.Percent < last.Percent:
			return fmt.Errorf("step %d: shares never fall, and %s %% is less than the %s %% of step %d", i+1, s.Percent, last.Percent, i)
		}
		last = s
	}
	return nil
}

// ParseSteps reads steps as people write them: "10%@0h,50%@24h,100%@3d". Two
// dots make the share grow evenly from one to the next: "0%@0h..100%@72h".
// Times are counted from the start, as time.ParseDuration reads them, or in
// days.
func ParseSteps(s string) ([]Step, error) {
	var steps []Step
	for run := range strings.SplitSeq(s, ",") {
		ramp := false
		for part := range strings.SplitSeq(run, "..") {
			step, err := parseStep(strings.TrimSpace(part))
			if err != nil {
				return nil, fmt.Errorf("%w: step %d, %q: %w", ErrBad, len(steps)+1, part, err)
			}
			step.Ramp = ramp
			steps = append(steps, step)
			ramp = true
		}
	}
	if err := checkSteps(steps); err != nil {
		return nil, fmt.Errorf("%w: steps %q: %w", ErrBad, s, err)
	}
	return steps, nil
}

func parseStep(s string) (step Step, err error) {
	percent, at, ok := strings.Cut(s, "%@")
	if !ok {
		return step, fmt.Errorf("it is not like 10%%@24h")
	}
	if step.Percent, err = ParsePercent(percent + "%"); err != nil {
		return step, err
	}
	d, err := ParseDuration(at)
	if err != nil {
		return step, fmt.Errorf("%q is not a time like 24h or 3d", at)
	}
	step.At = int64(d / time.Second)
	return step, nil
}

// FormatSteps writes steps as ParseSteps reads them; none are "everyone".
func FormatSteps(steps []Step) string {
	if len(steps) == 0 {
		return "everyone"
	}
	var b strings.Builder
	for i, s := range steps {
		switch {
		case i == 0 && s.Ramp:
			b.WriteString("0%@0s..")
		case s.Ramp:
			b.WriteString("..")
		case i > 0:
			b.WriteString(",")
		}
		fmt.Fprintf(&b, "%s%%@%s", s.Percent, FormatSeconds(s.At))
	}
	return b.String()
}

// FormatSeconds writes a number of seconds in the largest unit that divides it.
func FormatSeconds(s int64) string {
	switch {
	case s == 0:
		return "0h"
	case s%86400 == 0:
		return strconv.FormatInt(s/86400, 10) + "d"
	case s%3600 == 0:
		return strconv.FormatInt(s/3600, 10) + "h"
	case s%60 == 0:
		return strconv.FormatInt(s/60, 10) + "m"
	}
	return strconv.FormatInt(s, 10) + "s"
}

// ParseDuration reads what time.ParseDuration does, or days: "14d".
func ParseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 12)
		return time.Duration(n) * 24 * time.Hour, err
	}
	return time.ParseDuration(s)
}
