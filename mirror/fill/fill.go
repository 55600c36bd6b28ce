// Package fill brings objects from upstream into the cache: one transfer per
// object at a time, however many ask for it.
//
// A fill belongs to nobody who asks. It has its own goroutine and context,
// goes on when all of them have left, and is shared by all who come while it
// runs. Its bytes are an upstream's word until length and SHA-256 are
// those that were signed; only then does anybody see them. A cut is resumed
// where it happened, from any upstream; an upstream that sent other bytes than
// the signed ones is not asked for that object again for a while.
package fill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/mirror/cache"
)

// Source is an upstream. OpenTarget returns the object's bytes from offset to
// its end, and the size of the whole object, or -1 if the upstream does not
// say. An object that is not there is fs.ErrNotExist. It sees to it that
// neither OpenTarget nor a Read of the body hangs for ever.
type Source interface {
	OpenTarget(ctx context.Context, object string, offset int64) (body io.ReadCloser, size int64, err error)
	String() string
}

// Object is what was signed: the name in the store, the exact length in bytes,
// and the hash in lower hex.
type Object struct {
	Name   string
	Length int64
	SHA256 string
}

// Errors that a caller may want to tell apart; cache.ErrNoSpace is the third.
var (
	// ErrUpstream: no upstream delivered the object that was signed.
	ErrUpstream = errors.New("no upstream has delivered the object")
	// ErrBusy: too many wait already. Nothing was started.
	ErrBusy = errors.New("too many requests are waiting for upstream")
	// ErrClosed: the Filler has been closed.
	ErrClosed = errors.New("shutting down")
)

// Config bounds the work. Zero fields take the default.
type Config struct {
	Cache      *cache.Cache
	Sources    []Source         // in order of preference
	MaxFills   int              // transfers at once: 8
	MaxWaiters int              // requests waiting for a transfer: 10000
	Tries      int              // failures in a row, per source, before a fill gives up: 3
	Backoff    time.Duration    // first pause after all sources have failed, doubled up to 16 times: 250 ms
	BanFor     time.Duration    // how long a source that sent wrong bytes is not asked for that object: 10 min
	FailFor    time.Duration    // how long a failure is the answer to those who come later: 3 s
	Now        func() time.Time // nil: time.Now
}

// Filler runs fills. Use New.
type Filler struct {
	cfg     Config
	sources []*source
	slots   chan struct{} // one token a running transfer
	stop    context.CancelFunc
	wg      sync.WaitGroup // of fills

	mu      sync.Mutex // guards all below
	base    context.Context
	closed  bool
	fills   map[key]*fill
	failed  map[key]failure
	bans    map[ban]time.Time // until
	waiters int
	stats   Stats
}

// key tells objects apart. The length belongs to it, so that a role that signs
// a wrong length for known content spoils nobody's fill but its own.
type key struct {
	sum    string
	length int64
}

type failure struct {
	err   error
	until time.Time
}

type ban struct {
	src *source
	key key
}

// fill is one object on its way. Its fields are guarded by Filler.mu, but for
// those that never change and what done announces.
type fill struct {
	key     key
	obj     Object
	begun   time.Time // zero while it waits for a slot
	waiters int
	cancel  context.CancelFunc
	w       *cache.Writer // nil before the first byte and after the last
	from    string

	done chan struct{}
	err  error         // set before done is closed
	pin  *cache.Handle // keeps the object in the cache until all who waited have it
}

// New starts a Filler, which works until Close or until ctx is done. Its log
// is that of ctx.
func New(ctx context.Context, cfg Config) *Filler {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&cfg.MaxFills, 8)
	def(&cfg.MaxWaiters, 10000)
	def(&cfg.Tries, 3)
	defTime := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	defTime(&cfg.Backoff, 250*time.Millisecond)
	defTime(&cfg.BanFor, 10*time.Minute)
	defTime(&cfg.FailFor, 3*time.Second)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	f := &Filler{
		cfg:    cfg,
		slots:  make(chan struct{}, cfg.MaxFills),
		fills:  map[key]*fill{},
		failed: map[key]failure{},
		bans:   map[ban]time.Time{},
	}
	for _, s := range cfg.Sources {
		f.sources = append(f.sources, &source{Source: s})
	}
	f.base, f.stop = context.WithCancel(ctx)
	return f
}

// Close ends all fills and all waits, and returns when nothing runs any more.
func (f *Filler) Close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.stop()
	f.wg.Wait()
}

// Get opens the object: at once if it is cached, else when a fill, which it
// starts unless one is under way, has brought and verified it. ctx ends only
// this wait. The caller closes the handle.
func (f *Filler) Get(ctx context.Context, obj Object) (h *cache.Handle, hit bool, err error) {
	if h, ok := f.cfg.Cache.Get(ctx, obj.SHA256, obj.Length); ok {
		return h, true, nil
	}
	fl, err := f.join(obj)
	if err != nil {
		return nil, false, fmt.Errorf("fill %s: %w", obj.Name, err)
	}
	defer f.leave(fl)
	select {
	case <-ctx.Done():
		return nil, false, ctx.Err()
	case <-fl.done:
	}
	if fl.err != nil {
		return nil, false, fmt.Errorf("fill %s: %w", obj.Name, fl.err)
	}
	h, ok := f.cfg.Cache.Get(ctx, obj.SHA256, obj.Length)
	if !ok {
		return nil, false, fmt.Errorf("fill %s: object has left the cache at once: %w", obj.Name, cache.ErrNoSpace)
	}
	return h, false, nil
}

// join adds a waiter to the object's fill, starting it if there is none.
func (f *Filler) join(obj Object) (*fill, error) {
	k := key{obj.SHA256, obj.Length}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return nil, ErrClosed
	case f.waiters >= f.cfg.MaxWaiters:
		f.stats.Refused++
		return nil, ErrBusy
	}
	fl := f.fills[k]
	if fl == nil {
		if fail, ok := f.failed[k]; ok {
			if f.cfg.Now().Before(fail.until) {
				return nil, fail.err
			}
			delete(f.failed, k)
		}
		// A fill is not the child of any request: it outlives all of them.
		ctx, cancel := context.WithCancel(f.base)
		fl = &fill{key: k, obj: obj, cancel: cancel, done: make(chan struct{})}
		f.fills[k] = fl
		f.wg.Go(func() { f.run(ctx, fl) })
	}
	fl.waiters++
	f.waiters++
	return fl, nil
}

// leave takes a waiter away. A fill that nobody waits for is dropped if it has
// not begun, so that strangers who come and go cannot pile up work.
func (f *Filler) leave(fl *fill) {
	f.mu.Lock()
	fl.waiters--
	f.waiters--
	last := fl.waiters == 0
	if last && fl.begun.IsZero() && f.fills[fl.key] == fl {
		delete(f.fills, fl.key)
		fl.cancel()
	}
	pin := fl.pin
	if last {
		fl.pin = nil
	}
	f.mu.Unlock()
	if last && pin != nil {
		pin.Close()
	}
}

// run is the fill's goroutine.
func (f *Filler) run(ctx context.Context, fl *fill) {
	defer fl.cancel()
	log := zerolog.Ctx(ctx).With().Str("object", fl.obj.Name).Logger()
	h, err := f.wait(ctx, fl)
	took := f.cfg.Now().Sub(fl.begun)

	f.mu.Lock()
	fl.err, fl.w = err, nil
	switch {
	case err == nil:
		f.stats.Done++
		if fl.waiters > 0 {
			fl.pin, h = h, nil
		}
	case ctx.Err() != nil:
		if f.base.Err() != nil {
			fl.err = ErrClosed
		}
	default:
		f.stats.Failed++
		f.remember(fl.key, err)
	}
	if f.fills[fl.key] == fl {
		delete(f.fills, fl.key)
	}
	f.mu.Unlock()
	close(fl.done)
	if h != nil {
		h.Close()
	}
	switch {
	case err == nil:
		log.Info().Int64("bytes", fl.obj.Length).Dur("took", took).Str("from", fl.from).Msg("filled")
	case ctx.Err() == nil:
		log.Error().Err(err).Msg("cannot fill object")
	}
}

// remember makes err the answer for FailFor. The caller holds mu.
func (f *Filler) remember(k key, err error) {
	now := f.cfg.Now()
	if len(f.failed) >= 1024 {
		for k, fail := range f.failed {
			if !now.Before(fail.until) {
				delete(f.failed, k)
			}
		}
	}
	if len(f.failed) < 4096 {
		f.failed[k] = failure{err, now.Add(f.cfg.FailFor)}
	}
}

// wait runs the transfer when a slot is free.
func (f *Filler) wait(ctx context.Context, fl *fill) (*cache.Handle, error) {
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	f.mu.Lock()
	dropped := f.fills[fl.key] != fl // by leave, while we got the slot
	if !dropped {
		fl.begun = f.cfg.Now()
		f.stats.Started++
	}
	f.mu.Unlock()
	if dropped {
		return nil, context.Canceled
	}
	w, err := f.cfg.Cache.Create(ctx, fl.obj.SHA256, fl.obj.Length)
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	f.mu.Lock()
	fl.w = w
	f.mu.Unlock()
	if err := f.transfer(ctx, fl, w); err != nil {
		return nil, err
	}
	return w.Commit(ctx)
}

// Progress is a fill under way.
type Progress struct {
	Object  string    `json:"object"`
	Bytes   int64     `json:"bytes"` // written so far
	Length  int64     `json:"length"`
	Waiting int       `json:"waiting"`        // requests
	Begun   time.Time `json:"begun,omitzero"` // zero: waits for its turn
	From    string    `json:"from,omitempty"` // upstream in use
}

// Stats are numbers since New, and of now.
type Stats struct {
	Started  int64 `json:"started"`
	Done     int64 `json:"done"`
	Failed   int64 `json:"failed"`
	Refused  int64 `json:"refused"` // requests, ErrBusy
	BytesIn  int64 `json:"bytes_in"`
	Waiting  int   `json:"waiting"`  // requests, now
	Transfer int   `json:"transfer"` // fills, now
	Queued   int   `json:"queued"`   // fills without a slot, now
}

// Stats returns the numbers.
func (f *Filler) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.stats
	s.Waiting = f.waiters
	for _, fl := range f.fills {
		if fl.begun.IsZero() {
			s.Queued++
		} else {
			s.Transfer++
		}
	}
	for _, src := range f.sources {
		s.BytesIn += src.bytes
	}
	return s
}

// InProgress lists the fills under way, by name.
func (f *Filler) InProgress() []Progress {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]Progress, 0, len(f.fills))
	for _, fl := range f.fills {
		p := Progress{Object: fl.obj.Name, Length: fl.obj.Length, Waiting: fl.waiters, Begun: fl.begun, From: fl.from}
		if fl.w != nil {
			p.Bytes = fl.w.Written()
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Progress) int { return strings.Compare(a.Object, b.Object) })
	return out
}
