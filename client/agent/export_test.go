package agent

import (
	"context"
	"time"
)

// OnStep sets what is called before and after each step is written down.
func OnStep(f func(point string)) { atStep = f }

// Loop lets tests run the loop of Run over another look.
type Loop struct {
	Look     func(context.Context) (*Result, error)
	Interval time.Duration
	Spread   time.Duration
	Network  func() string
	Wake     <-chan struct{}
	Now      func() time.Time
}

// Run is what Agent.Run does.
func (l *Loop) Run(ctx context.Context) {
	in := &loop{look: l.Look, interval: func() time.Duration { return l.Interval }, spread: l.Spread, network: l.Network, wake: l.Wake, now: l.Now}
	in.run(ctx)
}
