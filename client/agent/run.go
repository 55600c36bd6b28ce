package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/client/internal/host"
	"github.com/patchkeep/patchkeep/client/tuf"
)

// RunOptions say how the agent runs on and on.
type RunOptions struct {
	Interval time.Duration                // over the settings'; 0: theirs
	Each     func(res *Result, err error) // told the result of each look; may be nil

	// Reload reads the settings anew, before each look. If it fails, which is
	// its own to tell, the old ones count on. nil: they do not change.
	Reload func() (Settings, error)
	// Wake asks for a look at once; may be nil.
	Wake <-chan struct{}
	// Network names the networks that the machine is in; nil: asks the system.
	Network func() string

	// Host is asked for reboots; see RebootPolicy.
	Host Host
}

// Run applies again and again until ctx is done, which is no error. It goes on
// whatever happens: expired metadata or a server that is away mean that nothing
// is installed until they are well again.
//
// What an earlier run began is finished at once. The first look comes within
// Settings.Spread, so that machines that are switched on together do not all
// ask together; then one each Interval, give or take a quarter. One comes
// sooner after the machine slept or changed its network, when the time of a
// waiting patch comes, and, less and less soon, after a failure of the network.
func (a *Agent) Run(ctx context.Context, o RunOptions) error {
	if o.Network == nil {
		o.Network = host.Network
	}
	a.reload(&o)
	if res, err := a.resumeOnly(ctx); ctx.Err() == nil && o.Each != nil && (len(res.Done) > 0 || err != nil) {
		o.Each(res, err)
	}
	l := &loop{
		interval: func() time.Duration { return a.interval(&o) }, spread: a.Settings().Spread,
		network: o.Network, wake: o.Wake, now: a.opts.Now,
		look: func(ctx context.Context) (*Result, error) {
			a.reload(&o)
			res, err := a.Apply(ctx, ApplyOptions{})
			if ctx.Err() != nil {
				if o.Each != nil && len(res.Done) > 0 { // what was done is told
					o.Each(res, nil)
				}
				return res, err
			}
			if o.Each != nil {
				o.Each(res, err)
			}
			if rerr := a.rebootIfMay(ctx, res.Report, &o.Host); rerr != nil {
				zerolog.Ctx(ctx).Error().Err(rerr).Msg("the machine must be rebooted, and is not")
			}
			return res, err
		},
	}
	l.run(ctx)
	return nil
}

// resumeOnly finishes what earlier runs began; no network is needed for it.
func (a *Agent) resumeOnly(ctx context.Context) (*Result, error) {
	res := &Result{Done: []Applied{}}
	s, err := a.begin(ctx)
	if err != nil {
		return res, err
	}
	defer s.end()
	return res, res.verdict(s.resume(ctx, res))
}

func (a *Agent) reload(o *RunOptions) {
	if o.Reload == nil {
		return
	}
	if set, err := o.Reload(); err == nil {
		_ = a.SetSettings(set) // Reload has checked them
	}
}

func (a *Agent) interval(o *RunOptions) time.Duration {
	every := o.Interval
	if every == 0 {
		every = a.Settings().Interval
	}
	if every == 0 {
		every = time.Hour
	}
	return max(every, time.Second)
}

// The times of the loop.
const (
	tick     = 30 * time.Second // between two glances at the clock and the network
	slept    = 2 * time.Minute  // that the clock went ahead of us: the machine slept
	soon     = 30 * time.Second // within which a look comes after that
	atLeast  = time.Minute      // between two looks that the outside asked for, unless the interval is shorter
	firstTry = time.Minute      // after a failure; doubled each time, up to the interval
	heldFor  = 10 * time.Minute // until the next look, when battery or line hold something back
	latePart = 12               // of the interval: how late a look for a waiting patch may come
)

// loop is when to look.
type loop struct {
	look     func(context.Context) (*Result, error)
	interval func() time.Duration
	spread   time.Duration
	network  func() string
	wake     <-chan struct{}
	now      func() time.Time // wall clock

	failures int // in a row
	last     time.Time
}

func (l *loop) run(ctx context.Context) {
	due := l.wall().Add(upTo(l.spread))
	for {
		if !l.sleep(ctx, due) {
			return
		}
		res, err := l.look(ctx)
		if ctx.Err() != nil {
			return
		}
		l.last = l.wall()
		wait := l.next(res, err)
		due = l.last.Add(wait)
		zerolog.Ctx(ctx).Debug().Dur("wait", wait).Msg("next look")
	}
}

// wall is the time without Go's own measure of what passed: that stands still
// while the machine sleeps.
func (l *loop) wall() time.Time { return l.now().Round(0) }

// sleep waits until the wall clock says due, or there is a reason to look
// sooner. It reports whether to look: false once ctx is done.
func (l *loop) sleep(ctx context.Context, due time.Time) bool {
	network := l.network()
	for {
		before, began := l.wall(), time.Now()
		left := due.Sub(before)
		if left <= 0 {
			return ctx.Err() == nil
		}
		timer := time.NewTimer(min(left, tick))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-l.wake:
			timer.Stop()
			return true
		case <-timer.C:
		}
		now := l.wall()
		jump := now.Sub(before) - time.Since(began)
		sooner := ""
		switch {
		case jump > slept:
			sooner = "the machine slept, or its clock was set"
		case jump < -slept: // set back: due would come too late
			due = due.Add(jump)
		}
		if is := l.network(); is != network {
			if network = is; is != "" {
				sooner = "the network is another one"
			}
		}
		if sooner != "" {
			due = earlier(due, l.soon(now))
			zerolog.Ctx(ctx).Debug().Time("at", due).Msg("look soon: " + sooner)
		}
	}
}

// soon is a moment from 5 s from now on, when a network that just came is up,
// and not too close to the last look.
func (l *loop) soon(now time.Time) time.Time {
	at := now.Add(5*time.Second + upTo(soon))
	if first := l.last.Add(min(atLeast, l.interval())); at.Before(first) && first.Before(now.Add(atLeast)) {
		return first
	}
	return at
}

// next is how long to wait after a look.
func (l *loop) next(res *Result, err error) time.Duration {
	every := l.interval()
	if err != nil && passing(err) {
		l.failures++
		wait := every
		if n := l.failures - 1; n < 20 {
			wait = min(every, firstTry<<n)
		}
		return jitter(wait)
	}
	l.failures = 0
	wait := jitter(every)
	if held(res) {
		wait = min(wait, jitter(min(every, heldFor)))
	}
	if at := until(res, l.wall()); !at.IsZero() {
		// Not all machines of a ring in the same second.
		at = at.Add(upTo(every / latePart))
		wait = min(wait, max(at.Sub(l.wall()), min(atLeast, every)))
	}
	return wait
}

// passing reports whether the failure is one that may be over in a moment.
func passing(err error) bool {
	return errors.Is(err, tuf.ErrOffline) || errors.Is(err, ErrBusy) || errors.Is(err, tuf.ErrLocked)
}

// until is when the first of the waiting patches may be told yes.
func until(res *Result, now time.Time) (first time.Time) {
	if res == nil || res.Report == nil {
		return first
	}
	for i := range res.Report.Patches {
		if at := res.Report.Patches[i].Until; at.After(now) {
			first = earlier(at, first)
		}
	}
	return first
}

// held reports whether the battery or the line holds something back: nobody
// tells when that ends.
func held(res *Result) bool {
	if res == nil || res.Report == nil {
		return false
	}
	return slices.ContainsFunc(res.Report.In(StateWaiting), func(it *Item) bool {
		last := it.Trace[len(it.Trace)-1].Name
		return last == "power" || last == "metered"
	})
}

// earlier returns the earlier of two moments, of which b may be unset.
func earlier(a, b time.Time) time.Time {
	if !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// jitter spreads a fleet's looks: 75 to 125 % of d.
func jitter(d time.Duration) time.Duration { return d - d/4 + upTo(d/2) }

// upTo is a random time from 0 to d.
func upTo(d time.Duration) time.Duration { return rand.N(max(d, 0) + 1) }
