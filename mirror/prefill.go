package mirror

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/mirror/fill"
)

// Prefill brings what the machines of some rings will ask for into the cache
// before they may, and pins it there; see prefillplan.go for what that is. What
// an earlier run left unfinished comes last. It decides nothing: no machine
// installs a patch because it is here.
const (
	maxPrefills = 2                // at once
	planAgain   = 10 * time.Minute // without a new view: time goes by, and objects get lost

	// After failures in a row nothing is begun for up to maxPause, which a new
	// view ends. What has failed comes after what has not.
	maxPause = 10 * time.Minute

	maxPrefillWarnings = 4 // of failures, in the status of a ring
)

// PrefillStatus is how far the patches of a ring are.
type PrefillStatus struct {
	Ring        string    `json:"ring"`
	Objects     int       `json:"objects"`          // patches of its plan, but for those paused or halted
	Cached      int       `json:"cached"`           // of Objects, whole
	Bytes       int64     `json:"bytes"`            // of Objects with their block lists
	CachedBytes int64     `json:"cached_bytes"`     // of Bytes, in whole objects
	Next        string    `json:"next,omitempty"`   // target path of the first that is to come
	NextAt      time.Time `json:"next_at,omitzero"` // when the first machine may ask for it
	Warnings    []string  `json:"warnings,omitempty"`
}

// prefiller is what runPrefill shares with others. The zero value is ready.
type prefiller struct {
	once   sync.Once
	signal chan struct{} // made by once; holds one wish to look anew

	mu     sync.Mutex // guards all below
	rings  []ringWants
	failed map[objectKey]error // last error of what could not be had
}

// wake has the prefill look at the view anew, and forget its failures.
func (p *prefiller) wake() {
	select {
	case p.woken() <- struct{}{}:
	default:
	}
}

func (p *prefiller) woken() chan struct{} {
	p.once.Do(func() { p.signal = make(chan struct{}, 1) })
	return p.signal
}

// prefillStatus tells how far each ring is, in the order of their names.
func (m *Mirror) prefillStatus() []PrefillStatus {
	p := &m.prefill
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []PrefillStatus
	for _, r := range p.rings {
		s := PrefillStatus{Ring: r.ring, Objects: len(r.wants), Warnings: slices.Clone(r.warnings)}
		failures := 0
		for _, w := range r.wants {
			whole := true
			for _, o := range w.objects {
				s.Bytes += o.Length
				if m.cache.Has(o.SHA256, o.Length) {
					s.CachedBytes += o.Length
					continue
				}
				whole = false
				if err := p.failed[keyOf(o)]; err != nil {
					if failures++; failures <= maxPrefillWarnings {
						s.Warnings = append(s.Warnings, err.Error())
					}
				}
			}
			if whole {
				s.Cached++
			} else if s.Next == "" && !w.left {
				s.Next, s.NextAt = w.path, w.start
			}
		}
		if failures > maxPrefillWarnings {
			s.Warnings = append(s.Warnings, fmt.Sprintf("prefill: %d more objects could not be had", failures-maxPrefillWarnings))
		}
		out = append(out, s)
	}
	return out
}

// runPrefill works until ctx is done.
func (m *Mirror) runPrefill(ctx context.Context) {
	r := &prefillRun{
		m: m, docs: map[string]signedDoc{}, running: map[objectKey]*prefillJob{},
		done: make(chan *prefillJob, maxPrefills),
	}
	r.forgive()
	for ctx.Err() == nil {
		r.work(ctx, r.plan(ctx))
	}
	for len(r.running) > 0 {
		delete(r.running, (<-r.done).key())
	}
}

// prefillRun is the state of runPrefill, which alone uses it.
type prefillRun struct {
	m       *Mirror
	docs    map[string]signedDoc // plans and halts as last read, by target path
	jobs    []*prefillJob        // to be done or running, the most urgent first
	running map[objectKey]*prefillJob
	done    chan *prefillJob

	pause  *backoff.ExponentialBackOff // after failures in a row
	resume time.Time                   // nothing begins before
	misses map[objectKey]int           // failures of each
}

// prefillJob brings one object.
type prefillJob struct {
	obj      fill.Object
	leftover bool // no plan wants it
	cancel   context.CancelFunc
	err      error // valid once it came through prefillRun.done
}

func (j *prefillJob) key() objectKey { return keyOf(j.obj) }

// forgive lets everything be tried at once.
func (r *prefillRun) forgive() {
	first := 4 * r.m.cfg.Backoff
	if first <= 0 {
		first = time.Second
	}
	r.pause = &backoff.ExponentialBackOff{InitialInterval: first, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: maxPause}
	r.resume, r.misses = time.Time{}, map[objectKey]int{}
}

// sort puts leftovers after what plans want, and what failed after what did not.
func (r *prefillRun) sort() {
	rank := func(j *prefillJob) int {
		if j.leftover {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(r.jobs, func(a, b *prefillJob) int {
		return cmp.Or(rank(a)-rank(b), r.misses[a.key()]-r.misses[b.key()])
	})
}

// work does the jobs until it is time to plan anew. If the plan is not complete
// that is soon.
func (r *prefillRun) work(ctx context.Context, complete bool) {
	replan := planAgain
	if !complete {
		replan = r.pause.NextBackOff()
	}
	again := time.NewTimer(replan)
	defer again.Stop()
	for {
		var resume <-chan time.Time
		if wait := time.Until(r.resume); wait > 0 {
			resume = time.After(wait)
		} else {
			r.begin(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-r.m.prefill.woken():
			r.forgive()
			return
		case <-again.C:
			return
		case j := <-r.done:
			r.end(ctx, j)
		case <-resume:
		}
	}
}

// begin begins as many jobs as may run. Of leftovers that is one, so that no
// plan waits behind two of them.
func (r *prefillRun) begin(ctx context.Context) {
	leftover := false
	for _, j := range r.running {
		leftover = leftover || j.leftover
	}
	for _, j := range r.jobs {
		if len(r.running) >= maxPrefills {
			return
		}
		if r.running[j.key()] != nil || j.leftover && leftover {
			continue
		}
		leftover = leftover || j.leftover
		r.running[j.key()] = j
		jctx, cancel := context.WithCancel(ctx)
		j.cancel = cancel
		go func() {
			defer cancel()
			j.err = r.m.filler.Prefill(jctx, j.obj)
			r.done <- j
		}()
	}
}

// end takes note of what became of a job.
func (r *prefillRun) end(ctx context.Context, j *prefillJob) {
	delete(r.running, j.key())
	at := slices.Index(r.jobs, j)
	p := &r.m.prefill
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case j.err == nil:
		r.pause.Reset()
		r.resume = time.Time{}
		delete(r.misses, j.key())
		delete(p.failed, j.key())
		if at >= 0 {
			r.jobs = slices.Delete(r.jobs, at, at+1)
		}
	case at < 0 || ctx.Err() != nil: // it was cancelled
	default:
		r.resume = time.Now().Add(r.pause.NextBackOff())
		r.misses[j.key()]++
		r.sort()
		if p.failed == nil {
			p.failed = map[objectKey]error{}
		}
		p.failed[j.key()] = j.err
		zerolog.Ctx(ctx).Debug().Err(j.err).Str("object", j.obj.Name).Msg("cannot prefill yet")
	}
}
