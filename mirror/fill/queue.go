package fill

import "slices"

// The lanes in which fills wait for their turn. What a sibling is asked for does
// not wait behind what comes over the line, or two mirrors could wait for each
// other's turns. Small objects, such as block lists, plans and halts, do not wait
// behind large ones; what clients wait for never waits behind a prefill.
const (
	nearby = iota
	small
	clients
	prefills
	lanes
)

// smallSize is the length up to which an object goes by the lane of its own.
const smallSize = 1 << 20

// maxNearby is how many objects come from siblings at once.
const maxNearby = 256

// queue says whose turn it is. It is guarded by Filler.mu.
type queue struct {
	max     [lanes]int
	waiting [lanes][]*fill // first come, first served
	running [lanes]int
	in      map[*fill]int // lane of those that wait or run
	idle    chan struct{} // closed when no client's fill is left, nil if nobody waits for that
}

func lane(fl *fill) int {
	switch {
	case fl.nearby:
		return nearby
	case fl.obj.Length <= smallSize:
		return small
	case fl.client:
		return clients
	}
	return prefills
}

func (q *queue) add(fl *fill) {
	l := lane(fl)
	if q.in == nil {
		q.in = map[*fill]int{}
	}
	q.in[fl] = l
	q.waiting[l] = append(q.waiting[l], fl)
	q.next(l)
}

// promote moves a prefill that a client has come for.
func (q *queue) promote(fl *fill) {
	from, ok := q.in[fl]
	to := lane(fl)
	if !ok || from == to {
		return
	}
	q.in[fl] = to
	if i := slices.Index(q.waiting[from], fl); i >= 0 {
		q.waiting[from] = slices.Delete(q.waiting[from], i, i+1)
		q.waiting[to] = append(q.waiting[to], fl)
	} else { // it runs, and goes on, even if that makes one too many
		q.running[from]--
		q.running[to]++
	}
	q.next(from)
	q.next(to)
	q.wake()
}

// end takes a fill out, wherever it is.
func (q *queue) end(fl *fill) {
	l, ok := q.in[fl]
	if !ok {
		return
	}
	delete(q.in, fl)
	if i := slices.Index(q.waiting[l], fl); i >= 0 {
		q.waiting[l] = slices.Delete(q.waiting[l], i, i+1)
	} else {
		q.running[l]--
	}
	q.next(l)
	q.wake()
}

func (q *queue) next(l int) {
	for q.running[l] < q.max[l] && len(q.waiting[l]) > 0 {
		fl := q.waiting[l][0]
		q.waiting[l] = slices.Delete(q.waiting[l], 0, 1)
		q.running[l]++
		close(fl.turn)
	}
}

// mustYield reports that a prefill has to let clients' fills go first, and what
// to wait for before asking again.
func (q *queue) mustYield(fl *fill) (<-chan struct{}, bool) {
	if q.in[fl] != prefills || q.running[clients] == 0 {
		return nil, false
	}
	if q.idle == nil {
		q.idle = make(chan struct{})
	}
	return q.idle, true
}

// wake tells prefills that it may be their time, or that one of them is no
// longer one.
func (q *queue) wake() {
	if q.idle != nil {
		close(q.idle)
		q.idle = nil
	}
}
