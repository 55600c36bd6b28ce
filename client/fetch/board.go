package fetch

import (
	"slices"
	"time"

	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	maxRun   = 16          // blocks that a mirror is asked for at once …
	runTime  = time.Second // … or about so much work, whichever is less
	maxAhead = 128         // blocks beyond the first missing one: the whole hash follows behind that
	guess    = 1 << 20     // bytes per second of a mirror that was not seen at work
)

// board says which blocks of a file are there, and who brings which of the
// others. It is not safe for concurrent use.
type board struct {
	length int64
	count  int64
	have   bitmap
	left   int64 // blocks missing
	low    int64 // none before it is missing
	claims []*claim
}

// claim is a run of blocks that one mirror was asked for: those from next to
// end are still to come. Nobody else is, but for the one on its way if it is
// late.
type claim struct {
	src       *source
	next, end int64
	second    bool // another brings the block already

	got   int   // bytes of next
	read  int64 // bytes of this claim
	since time.Time
	last  time.Time // when something came last
}

func newBoard(length int64) *board {
	n := layout.BlockCount(length)
	return &board{length: length, count: n, have: newBitmap(n), left: n}
}

// size is the length of a block.
func (b *board) size(i int64) int { return int(min(layout.BlockSize, b.length-i*layout.BlockSize)) }

// set notes that a block is there. It reports whether that is news.
func (b *board) set(i int64) bool {
	if b.have.has(i) {
		return false
	}
	b.have.set(i)
	b.left--
	for b.low < b.count && b.have.has(b.low) {
		b.low++
	}
	return true
}

// bytes is how much is there, with what is on its way.
func (b *board) bytes() int64 {
	n := (b.count - b.left) * layout.BlockSize
	if b.count > 0 && b.have.has(b.count-1) {
		n -= b.count*layout.BlockSize - b.length
	}
	for _, c := range b.claims {
		if !c.second && c.next < b.count && !b.have.has(c.next) {
			n += int64(c.got)
		}
	}
	return n
}

// take gives a mirror work: the first blocks that nobody brings, at best those
// from want on; or else what another brings too late. nil: it is not needed
// now. A mirror that is alone gets all it can bring in one go.
func (b *board) take(src *source, want int64, alone bool, now time.Time) *claim {
	limit, run := b.count, b.count
	if !alone || len(b.claims) > 0 {
		limit, run = min(b.count, b.low+maxAhead), b.run(src)
		for _, c := range b.claims { // those who were alone are no more
			c.end = min(c.end, c.next+maxRun)
		}
	}
	first := b.low
	if want >= 0 && b.free(want) {
		first = want
	}
	for first < limit && !b.free(first) {
		first++
	}
	if first >= limit {
		return b.relieve(src, now)
	}
	end := first + 1
	for end < limit && end < first+run && b.free(end) {
		end++
	}
	return b.claim(&claim{src: src, next: first, end: end, since: now, last: now})
}

func (b *board) claim(c *claim) *claim {
	b.claims = append(b.claims, c)
	return c
}

// drop gives back what is left of a claim.
func (b *board) drop(c *claim) {
	b.claims = slices.DeleteFunc(b.claims, func(x *claim) bool { return x == c })
}

// free reports whether a block is missing and on nobody's way.
func (b *board) free(i int64) bool {
	return !b.have.has(i) && !slices.ContainsFunc(b.claims, func(c *claim) bool { return c.next <= i && i < c.end })
}

// run is how many blocks a mirror should be asked for. Towards the end it gets
// less, so that all end together.
func (b *board) run(src *source) int64 {
	unclaimed := b.left
	for _, c := range b.claims {
		unclaimed -= c.end - c.next
	}
	n := int64(src.rate * runTime.Seconds() / layout.BlockSize)
	return max(1, min(n, maxRun, unclaimed/int64(2*len(b.claims)+2)))
}

// relieve takes over from whoever will be the last to deliver, if src would be
// done in half the time: of several blocks the later ones, so that both end
// together, or the very block that is on its way.
func (b *board) relieve(src *source, now time.Time) *claim {
	var slow *claim
	var longest time.Duration
	for _, c := range b.claims {
		if c.src == src || c.end == c.next || b.have.has(c.end-1) { // what came already is on nobody's way
			continue
		}
		if d := b.expected(c.end-1, now); d > longest {
			slow, longest = c, d
		}
	}
	mine := max(src.rate, 1)
	if src.rate == 0 {
		mine = guess
	}
	if slow == nil || longest < 2*seconds(layout.BlockSize/mine) {
		return nil
	}
	first, end := slow.next, slow.end
	if n := end - first; n > 1 {
		theirs := layout.BlockSize * float64(n) / longest.Seconds()
		first = end - min(n-1, maxRun, max(1, int64(float64(n)*mine/(mine+theirs))))
		slow.end = first
	}
	return b.claim(&claim{src: src, next: first, end: end, second: first == slow.next, since: now, last: now})
}

// expected is when a block will be there, if all goes on as it does.
func (b *board) expected(i int64, now time.Time) time.Duration {
	best := time.Duration(1<<63 - 1)
	for _, c := range b.claims {
		if c.next <= i && i < c.end {
			bytes := (i-c.next+1)*layout.BlockSize - int64(c.got)
			// Silence promises more of it.
			best = min(best, seconds(float64(bytes)/c.rate(now))+now.Sub(c.last))
		}
	}
	return best
}

// rate is how fast a claim is served, in bytes per second.
func (c *claim) rate(now time.Time) float64 {
	if d := now.Sub(c.since).Seconds(); c.read >= layout.BlockSize/4 && d > 0 {
		return float64(c.read) / d
	}
	if c.src.rate > 0 {
		return c.src.rate
	}
	return guess
}

func seconds(s float64) time.Duration { return time.Duration(min(s, 1e9) * float64(time.Second)) }
