package rollout

import "time"

// Point is how far a rollout is at one moment.
type Point struct {
	At       time.Time `json:"at"`
	After    int64     `json:"after"` // seconds after the start
	Percent  Percent   `json:"percent"`
	Machines int       `json:"machines"`          // in by then
	New      int       `json:"new"`               // since the point before
	IDs      []string  `json:"new_ids,omitempty"` // who they are, if that is known
}

// rampPoints is in how many parts a ramp is shown.
const rampPoints = 8

// Forecast says when how many machines, or which, are let in by the steps of an
// entry: at each step, and at even distances on ramps. Without ids it is about
// so many machines of which nothing is known.
func Forecast(e *Entry, ids []string, machines int) []Point {
	var points []Point
	left := ids
	add := func(after int64) {
		p := Point{At: e.NotBefore.Add(time.Duration(after) * time.Second), After: after}
		p.Percent = e.Share(p.At)
		if n := len(points); n > 0 && (points[n-1].After >= after || points[n-1].Percent == p.Percent) {
			return
		}
		if ids != nil {
			var out []string
			for _, id := range left {
				if Bucket(e.SHA256, id) < int(p.Percent) {
					p.IDs = append(p.IDs, id)
				} else {
					out = append(out, id)
				}
			}
			left = out
			p.Machines = len(ids) - len(left)
		} else {
			p.Machines = int((int64(machines)*int64(p.Percent) + int64(All)/2) / int64(All))
		}
		p.New = p.Machines
		if n := len(points); n > 0 {
			p.New -= points[n-1].Machines
		}
		points = append(points, p)
	}
	if len(e.Steps) == 0 || e.Expedite {
		add(0)
		return points
	}
	var last int64
	if e.Steps[0].At > 0 {
		add(0)
	}
	for _, s := range e.Steps {
		if s.Ramp {
			for i := int64(1); i < rampPoints; i++ {
				add(last + (s.At-last)*i/rampPoints)
			}
		}
		add(s.At)
		last = s.At
	}
	return points
}
