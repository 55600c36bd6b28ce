package agent

import (
	"errors"
	"slices"
	"time"
)

const (
	looksFile = "looks.json"
	maxLooks  = 1000
)

// looks are the minutes at which this machine looked for patches, ready to
// install: what tells whether it was there in a window. Those after now are of
// a clock that was wrong. If they are lost, nothing was missed.
func (a *Agent) looks(now time.Time) ([]time.Time, error) {
	var minutes []int64
	if err := readJSON(a.path(looksFile), &minutes); err != nil && !errors.Is(err, ErrDamaged) {
		return nil, err
	}
	out := make([]time.Time, 0, len(minutes)+1)
	for _, m := range minutes {
		if at := time.Unix(m*60, 0); !at.After(now) {
			out = append(out, at)
		}
	}
	slices.SortFunc(out, time.Time.Compare)
	return out[max(0, len(out)-maxLooks):], nil
}

// noteLook adds one. Windows begin and end with a minute, so a look is written
// down as its minute.
func (a *Agent) noteLook(now time.Time) error {
	before, err := a.looks(now)
	if err != nil {
		return err
	}
	this := now.Unix() / 60
	if n := len(before); n > 0 && before[n-1].Unix()/60 == this {
		return nil
	}
	minutes := make([]int64, 0, len(before)+1)
	for _, t := range before {
		minutes = append(minutes, t.Unix()/60)
	}
	minutes = append(minutes, this)
	return writeJSON(a.path(looksFile), minutes[max(0, len(minutes)-maxLooks):])
}
