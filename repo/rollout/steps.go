package rollout

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ParseSteps reads steps as people write them: "10%@0h,50%@24h,100%@3d".
// Times are counted from the start, as time.ParseDuration reads them, or in
// days.
func ParseSteps(s string) ([]Step, error) {
	var steps []Step
	for part := range strings.SplitSeq(s, ",") {
		percent, at, ok := strings.Cut(strings.TrimSpace(part), "%@")
		if !ok {
			return nil, fmt.Errorf("%w: step %q is not like 10%%@24h", ErrBad, part)
		}
		var step Step
		if err := json.Unmarshal([]byte(percent), &step.Percent); err != nil {
			return nil, fmt.Errorf("%w: step %q: %w", ErrBad, part, err)
		}
		d, err := parseDuration(at)
		if err != nil {
			return nil, fmt.Errorf("%w: step %q: %w", ErrBad, part, err)
		}
		step.At = int64(d / time.Second)
		steps = append(steps, step)
	}
	e := Entry{Patch: "patches/p/1/any/f", SHA256: strings.Repeat("0", 64), Custom: strings.Repeat("0", 64), NotBefore: time.Unix(0, 0), Steps: steps}
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("%w: steps %q: %w", ErrBad, s, err)
	}
	return steps, nil
}

func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 12)
		return time.Duration(n) * 24 * time.Hour, err
	}
	return time.ParseDuration(s)
}
