package line

import (
	"context"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

const (
	// pieceSize is what one waiter may take before it is the next one's turn.
	pieceSize = 32 << 10

	// minBurst is how much may come at once after the line was idle; on fast
	// lines it is what comes in a tenth of a second, so that a hiccup of the
	// machine does not cost throughput.
	minBurst = 64 << 10

	// step is how long a wait goes on without a look at the calendar.
	step = time.Second
)

// Limiter shares a line among transfers, piece by piece in the order in which
// they ask, at the rate of a calendar. All methods are safe for concurrent use.
type Limiter struct {
	now      func() time.Time
	calendar atomic.Pointer[Calendar]
	turn     chan struct{} // held by the one whose piece is next; guards what follows
	bucket   *rate.Limiter
	rate     int64 // of bucket
}

// NewLimiter begins with a calendar, which may be nil. now is the wall clock
// that it is read by, in the mirror's location; nil: time.Now.
func NewLimiter(c *Calendar, now func() time.Time) *Limiter {
	if now == nil {
		now = time.Now
	}
	l := &Limiter{now: now, turn: make(chan struct{}, 1), bucket: rate.NewLimiter(0, minBurst)}
	l.calendar.Store(c)
	return l
}

// SetCalendar makes c count, which may be nil, within a second also for those
// who wait.
func (l *Limiter) SetCalendar(c *Calendar) { l.calendar.Store(c) }

// Calendar returns the one that counts; nil: no limits.
func (l *Limiter) Calendar() *Calendar { return l.calendar.Load() }

// Rate returns the rate of now in bytes/s, or Unlimited, or Paused.
func (l *Limiter) Rate() int64 { return l.calendar.Load().At(l.now()) }

// WaitN returns when n more bytes may be transferred, or with ctx's error.
func (l *Limiter) WaitN(ctx context.Context, n int) error {
	for n > 0 && l.Rate() != Unlimited {
		piece := min(n, pieceSize)
		if err := l.wait(ctx, piece); err != nil {
			return err
		}
		n -= piece
	}
	return ctx.Err()
}

// wait waits for its turn, and then for n bytes. Only the one whose turn it is
// asks the bucket, so that no promise made at an old rate outlives it for long.
func (l *Limiter) wait(ctx context.Context, n int) error {
	select {
	case l.turn <- struct{}{}: // first come, first served
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		switch r := l.Rate(); r {
		case Unlimited:
			return nil
		case Paused:
		default:
			now := time.Now()
			l.set(now, r)
			res := l.bucket.ReserveN(now, n)
			if d := res.DelayFrom(now); d <= step {
				err := sleep(ctx, d)
				if err != nil {
					res.Cancel()
				}
				return err
			}
			res.CancelAt(now)
		}
		if err := sleep(ctx, step); err != nil {
			return err
		}
	}
}

// set gives the bucket another rate.
func (l *Limiter) set(now time.Time, r int64) {
	if r == l.rate {
		return
	}
	l.rate = r
	l.bucket.SetLimitAt(now, rate.Limit(r))
	l.bucket.SetBurstAt(now, burst(r))
}

func burst(r int64) int { return int(max(minBurst, r/10)) }

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
