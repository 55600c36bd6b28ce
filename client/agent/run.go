package agent

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/rs/zerolog"
)

// RunOptions say how the agent runs on and on.
type RunOptions struct {
	Interval time.Duration                // between two looks, ± 25 %; default 1 h, at least 1 s
	Each     func(res *Result, err error) // told the result of each; may be nil
}

// Run applies again and again until ctx is done, which is no error. It goes on
// whatever happens: expired metadata or a server that is away mean that nothing
// is installed until they are well again.
func (a *Agent) Run(ctx context.Context, o RunOptions) error {
	if o.Interval == 0 {
		o.Interval = time.Hour
	}
	o.Interval = max(o.Interval, time.Second)
	for {
		res, err := a.Apply(ctx, ApplyOptions{})
		if ctx.Err() != nil {
			return nil //nolint:nilerr // being told to stop is no error
		}
		if o.Each != nil {
			o.Each(res, err)
		}
		wait := jitter(o.Interval)
		zerolog.Ctx(ctx).Debug().Dur("wait", wait).Msg("next look")
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// jitter spreads a fleet's looks: 75 to 125 % of d.
func jitter(d time.Duration) time.Duration {
	return d - d/4 + rand.N(d/2+1)
}
