package s3store

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Time limits. An endpoint that does not answer is given up within about 15
// seconds: connectTimeout and its retries within lightRetries.maxElapsed.
const (
	connectTimeout  = 4 * time.Second  // with the look-up of the name
	lightTimeout    = 10 * time.Second // to the answer to a request without a large body
	stallTimeout    = time.Minute      // without a byte of a body that is read
	cleanupTimeout  = 10 * time.Second // to undo what failed, also when the caller's context has ended
	completeTimeout = 5 * time.Minute  // some services copy all parts together now
)

// retries bounds the tries of one request.
type retries struct {
	tries      uint
	maxElapsed time.Duration // no new try after it
}

var (
	lightRetries    = retries{tries: 4, maxElapsed: 9 * time.Second}
	partRetries     = retries{tries: 5, maxElapsed: 5 * time.Minute}
	completeRetries = retries{tries: 4, maxElapsed: 2 * completeTimeout}
)

// retry calls fn, which makes one request, until it succeeds, fails for good, or
// the bounds are reached. It returns the error as explain puts it, and whether
// an earlier try failed with its outcome unknown: a write may have been done.
func (s *Store) retry(ctx context.Context, r retries, fn func() error) (unsure bool, err error) {
	policy := backoff.NewExponentialBackOff()
	policy.InitialInterval = 200 * time.Millisecond
	policy.MaxInterval = 2 * time.Second
	_, err = backoff.Retry(ctx, func() (struct{}, error) {
		err := fn()
		switch v := judge(err); {
		case err == nil:
			s.bucketSeen.Store(true)
			return struct{}{}, nil
		case ctx.Err() != nil:
			return struct{}{}, ctx.Err()
		case v.again:
			unsure = unsure || v.unsure
			return struct{}{}, &tryError{err}
		default:
			return struct{}{}, backoff.Permanent(&tryError{err})
		}
	}, backoff.WithBackOff(policy), backoff.WithMaxTries(r.tries), backoff.WithMaxElapsedTime(r.maxElapsed))
	if t, ok := errors.AsType[*tryError](err); ok {
		err = s.explain(t.error)
	}
	return unsure, err // or that of the context
}

// stall cancels a request that does not get on.
type stall struct {
	cancel context.CancelFunc
	timer  *time.Timer
}

// withStall returns a context that ends after d, unless the stall is armed
// anew or paused before.
func withStall(ctx context.Context, d time.Duration) (context.Context, *stall) {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &stall{cancel: func() { cancel(nil) }}
	s.timer = time.AfterFunc(d, func() { cancel(errStalled) })
	return ctx, s
}

// patience is how long an upload may take without progress: n bytes may still
// lie in buffers on the way of a slow line.
func patience(n int) time.Duration {
	return lightTimeout + time.Duration(n>>16)*time.Second
}

func (s *stall) arm(d time.Duration) { s.timer.Reset(d) }
func (s *stall) pause()              { s.timer.Stop() }

func (s *stall) end() {
	s.timer.Stop()
	s.cancel()
}
