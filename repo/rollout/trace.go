package rollout

import (
	"strconv"
	"strings"
	"time"
)

// tracer writes the steps of a decision. Their texts share one piece of memory,
// since an agent decides on each patch of a plan at each poll.
type tracer struct {
	checks [12]Check
	ends   [12]int // of each check's text
	n      int
	words  strings.Builder
}

func (t *tracer) yes(name string) *tracer { return t.add(name, true) }
func (t *tracer) no(name string) *tracer  { return t.add(name, false) }

// add begins a step; what is written goes to the last one.
func (t *tracer) add(name string, ok bool) *tracer {
	t.checks[t.n] = Check{Name: name, OK: ok}
	t.n++
	return t
}

func (t *tracer) text(s string) *tracer {
	t.words.WriteString(s)
	t.ends[t.n-1] = t.words.Len()
	return t
}

func (t *tracer) bytes(b []byte) *tracer {
	t.words.Write(b)
	t.ends[t.n-1] = t.words.Len()
	return t
}

func (t *tracer) short(sum string) *tracer { return t.text(sum[:min(12, len(sum))]) }

func (t *tracer) time(at time.Time) *tracer {
	var room [len(time.RFC3339) + 8]byte
	return t.bytes(at.AppendFormat(room[:0], time.RFC3339))
}

func (t *tracer) percent(p Percent) *tracer {
	var room [8]byte
	return t.bytes(p.append(room[:0]))
}

// end returns whether the last step says yes.
func (t *tracer) end() bool { return t.checks[t.n-1].OK }

// trace gives the steps away.
func (t *tracer) trace() []Check {
	all := t.words.String()
	list := make([]Check, t.n)
	from := 0
	for i := range list {
		list[i] = t.checks[i]
		list[i].Why = all[from:t.ends[i]]
		from = t.ends[i]
	}
	return list
}

// append writes the percent without its sign: "12.5".
func (p Percent) append(b []byte) []byte {
	b = strconv.AppendInt(b, int64(p/100), 10)
	if p%100 != 0 {
		b = append(b, '.', byte('0'+p/10%10))
		if p%10 != 0 {
			b = append(b, byte('0'+p%10))
		}
	}
	return b
}
