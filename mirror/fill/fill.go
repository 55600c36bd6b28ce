// Package fill brings objects from upstream into the cache: one transfer per
// object at a time, however many ask for it, and all of them read along.
//
// A fill belongs to nobody who asks. It has its own goroutine and context, is
// written to the disk at the upstream's speed whatever its readers do, goes on
// when all of them have left, and is resumed where it was after a restart.
//
// Its bytes are an upstream's word until they are verified. With a block list
// readers get each block as soon as it verifies; without one they get what has
// come but for the last part, which waits until length and SHA-256 of the whole
// are those that were signed. So nobody ever completes a wrong object. A cut is
// resumed where it happened, from any upstream; an upstream that sent other
// bytes than the signed ones is not asked for that object again for a while.
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
	"github.com/patchkeep/patchkeep/repo/layout"
)

// Source is an upstream or a sibling. OpenTarget returns the object's bytes
// from offset to its end, and the size of the whole object, or -1 if the source
// does not say. An object that is not there is fs.ErrNotExist. It sees to it
// that neither OpenTarget nor a Read of the body hangs for ever. RequestOf tells
// it from the context what the fill was begun for.
type Source interface {
	OpenTarget(ctx context.Context, object string, offset int64) (body io.ReadCloser, size int64, err error)
	String() string
}

// Limiter holds a transfer back: WaitN returns when n more bytes, 256 KiB at
// most, may have come over the line.
type Limiter interface {
	WaitN(ctx context.Context, n int) error
}

// Object is what was signed: the name in the store, the exact length in bytes,
// and the hash in lower hex. Blocks is its block list, nil if it has none.
type Object struct {
	Name   string
	Length int64
	SHA256 string
	Blocks *Object
}

// Request says on whose behalf an object is asked for, if that was a mirror.
type Request struct {
	Hops    []string // ids of the mirrors that it has passed, the first to ask first
	Sibling bool     // it comes from a mirror of the same site
}

// Errors that a caller may want to tell apart; cache.ErrNoSpace is one more.
var (
	// ErrUpstream: no upstream delivered the object that was signed.
	ErrUpstream = errors.New("no upstream has delivered the object")
	// ErrBusy: too many wait already. Nothing was started.
	ErrBusy = errors.New("too many requests are waiting for upstream")
	// ErrLoop: the mirror that asks is the one that we are asking.
	ErrLoop = errors.New("siblings ask each other in a circle")
	// ErrClosed: the Filler has been closed.
	ErrClosed = errors.New("shutting down")
)

// Config bounds the work. Zero fields take the default.
type Config struct {
	Cache       *cache.Cache
	Sources     []Source         // upstreams, in order of preference
	Siblings    []Source         // other mirrors of the site
	Self        string           // what Siblings of the siblings call this one; needed with Siblings
	Line        Limiter          // for what comes from Sources; nil: no limit
	MaxFills    int              // transfers at once that clients wait for: 4
	MaxPrefills int              // transfers at once that nobody waits for: 2
	MaxWaiters  int              // requests that wait for a transfer, or read along: 10000
	Tries       int              // failures in a row, per source, before a fill gives up: 3
	Patience    time.Duration    // how long a fill that has readers is tried without a byte: 30 s
	Backoff     time.Duration    // first pause after all sources have failed, doubled up to 16 times: 250 ms
	Rest        time.Duration    // first rest of a source that fails again and again, doubled up to 64 times: 1 s
	BanFor      time.Duration    // how long a source that sent wrong bytes is not asked for that object: 10 min
	FailFor     time.Duration    // how long a failure is the answer to those who come later: 3 s
	Ended       func(Ending)     // is told of each fill that had begun, by the fill's goroutine; may be nil
	Now         func() time.Time // nil: time.Now
}

// Ending is how a fill ended.
type Ending struct {
	Object  Object
	Prefill bool          // no client asked for it
	Took    time.Duration // since its turn came
	Err     error         // nil: the object is cached; context.Canceled and ErrClosed: it was called off
}

func (c *Config) defaults() {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&c.MaxFills, 4)
	def(&c.MaxPrefills, 2)
	def(&c.MaxWaiters, 10000)
	def(&c.Tries, 3)
	defTime := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	defTime(&c.Patience, 30*time.Second)
	defTime(&c.Backoff, 250*time.Millisecond)
	defTime(&c.Rest, time.Second)
	defTime(&c.BanFor, 10*time.Minute)
	defTime(&c.FailFor, 3*time.Second)
	if c.Now == nil {
		c.Now = time.Now
	}
}

// Filler runs fills. Use New.
type Filler struct {
	cfg     Config
	sources []*source // upstreams, then siblings
	stop    context.CancelFunc
	wg      sync.WaitGroup // of fills

	mu      sync.Mutex // guards all below
	base    context.Context
	closed  bool
	fills   map[key]*fill
	queue   queue
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

// fill is one object on its way. Its fields are guarded by Filler.mu, but for
// those that never change and what done announces.
type fill struct {
	key    key
	obj    Object
	req    Request // of who began it
	cancel context.CancelFunc

	begun   time.Time     // zero while it waits for its turn
	turn    chan struct{} // closed when it may begin
	client  bool          // a client has asked for it, not only a prefill
	direct  bool          // its bytes do not come from a sibling
	nearby  bool          // it was begun for a sibling to be asked, which takes nothing of the line
	waiters int           // who wait for it or read along; Prefill too
	over    bool          // it has ended; waiters only keep the pin
	w       *cache.Writer // nil before the first byte and after the last
	flow    *flow         // what its readers see
	from    string
	resumed int64
	rate    meter

	done chan struct{}
	err  error         // set before done is closed
	pin  *cache.Handle // keeps the object in the cache until all who waited have it
}

// New starts a Filler, which works until Close or until ctx is done. Its log
// is that of ctx.
func New(ctx context.Context, cfg Config) *Filler {
	cfg.defaults()
	f := &Filler{
		cfg:    cfg,
		fills:  map[key]*fill{},
		failed: map[key]failure{},
		bans:   map[ban]time.Time{},
	}
	f.queue.max = [lanes]int{nearby: maxNearby, small: 2 * cfg.MaxFills, clients: cfg.MaxFills, prefills: cfg.MaxPrefills}
	for _, s := range cfg.Sources {
		f.sources = append(f.sources, &source{Source: s})
	}
	for _, s := range cfg.Siblings {
		f.sources = append(f.sources, &source{Source: s, sibling: true})
	}
	f.base, f.stop = context.WithCancel(ctx)
	return f
}

// Close ends all fills and all waits, and returns when nothing runs any more.
// What has come of the fills is kept in the cache for the next run.
func (f *Filler) Close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.stop()
	f.wg.Wait()
}

// Open opens the object: as a file if it is cached, else as a reader that
// follows its fill, which is started unless one is under way. It returns when
// the first bytes can be read, or with the reason why they did not come; to
// another mirror it returns at once. ctx ends the wait and the reader, not the
// fill. The caller closes the Reader.
func (f *Filler) Open(ctx context.Context, obj Object, req Request) (*Reader, error) {
	for tries := 0; ; tries++ {
		r, err := f.open(ctx, obj, req)
		if (errors.Is(err, errGone) || errors.Is(err, errCached)) && tries < 3 {
			continue // it was evicted, or damaged, or a fill ended, in between
		}
		if err != nil {
			return nil, fmt.Errorf("fill %s: %w", obj.Name, err)
		}
		return r, nil
	}
}

func (f *Filler) open(ctx context.Context, obj Object, req Request) (*Reader, error) {
	if h, ok := f.cfg.Cache.Get(ctx, obj.SHA256, obj.Length); ok {
		return &Reader{file: h.File, size: h.Size, hit: true, close: h.Close}, nil
	}
	if err := ctx.Err(); err != nil { // while it was hashed again
		return nil, err
	}
	fl, joined, err := f.join(obj, req, true)
	if err != nil {
		return nil, err
	}
	r := &Reader{f: f, fl: fl, ctx: ctx, size: obj.Length, joined: joined}
	r.close = func() error { f.leave(fl); return nil }
	if len(req.Hops) > 0 && obj.Length > 0 {
		return r, nil
	}
	if err := r.attach(); err != nil {
		_ = r.Close() // it has no file yet
		return nil, err
	}
	return r, nil
}

// Prefill brings the object into the cache, unless it is there, and gives way
// to whatever clients wait for.
func (f *Filler) Prefill(ctx context.Context, obj Object) error {
	if f.cfg.Cache.Has(obj.SHA256, obj.Length) {
		return nil
	}
	fl, _, err := f.join(obj, Request{}, false)
	if errors.Is(err, errCached) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("prefill %s: %w", obj.Name, err)
	}
	defer f.leave(fl)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-fl.done:
	}
	if fl.err != nil {
		return fmt.Errorf("prefill %s: %w", obj.Name, fl.err)
	}
	return nil
}

// join adds a waiter to the object's fill, starting it unless there is one: then
// joined is true.
func (f *Filler) join(obj Object, req Request, client bool) (fl *fill, joined bool, err error) {
	k := key{obj.SHA256, obj.Length}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return nil, false, ErrClosed
	case f.waiters >= f.cfg.MaxWaiters:
		f.stats.Refused++
		return nil, false, ErrBusy
	}
	fl = f.fills[k]
	joined = fl != nil
	if fl != nil && req.Sibling && !fl.direct {
		return nil, false, ErrLoop // each would wait for the other
	}
	if fl == nil {
		if f.cfg.Cache.Has(k.sum, k.length) { // its fill has ended since we looked
			return nil, false, errCached
		}
		if fail, ok := f.failed[k]; ok {
			if f.cfg.Now().Before(fail.until) {
				return nil, false, fail.err
			}
			delete(f.failed, k)
		}
		// A fill is not the child of any request: it outlives all of them.
		ctx, cancel := context.WithCancel(context.WithValue(f.base, requestKey{}, req))
		fl = &fill{
			key: k, obj: obj, req: req, cancel: cancel, flow: newFlow(),
			turn: make(chan struct{}), done: make(chan struct{}),
		}
		fl.direct = req.Sibling || f.owner(k) == nil
		fl.nearby = !fl.direct
		f.fills[k] = fl
		f.wg.Go(func() { f.run(ctx, fl) })
	}
	if client && !fl.client {
		fl.client = true
		f.queue.promote(fl)
	}
	fl.waiters++
	f.waiters++
	return fl, joined, nil
}

// errCached: there is nothing to join, the object is there.
var errCached = errors.New("the object is in the cache")

type requestKey struct{}

// RequestOf is the request that a fill was begun for, from the context that a
// Source gets.
func RequestOf(ctx context.Context) Request {
	req, _ := ctx.Value(requestKey{}).(Request)
	return req
}

// leave takes a waiter away. A fill that nobody waits for is dropped if it has
// not begun, so that strangers who come and go cannot pile up work.
func (f *Filler) leave(fl *fill) {
	f.mu.Lock()
	fl.waiters--
	if !fl.over {
		f.waiters--
	}
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
	h, err := f.work(ctx, fl)

	f.mu.Lock()
	f.queue.end(fl)
	switch {
	case err == nil:
		f.stats.Done++
	case ctx.Err() != nil:
		if err = context.Canceled; f.base.Err() != nil {
			err = ErrClosed
		}
	default:
		f.stats.Failed++
		f.remember(fl.key, err)
	}
	fl.err, fl.w, fl.over = err, nil, true
	if err == nil && fl.waiters > 0 {
		fl.pin, h = h, nil
	}
	f.waiters -= fl.waiters
	if f.fills[fl.key] == fl {
		delete(f.fills, fl.key)
	}
	took, resumed, from := f.cfg.Now().Sub(fl.begun), fl.resumed, fl.from
	ending, begun := Ending{fl.obj, !fl.client, took, err}, !fl.begun.IsZero()
	f.mu.Unlock()
	if begun && f.cfg.Ended != nil { // before those who wait hear of it
		f.cfg.Ended(ending)
	}
	fl.flow.end(err)
	close(fl.done)
	if h != nil {
		h.Close()
	}
	switch {
	case err == nil:
		log.Info().Int64("bytes", fl.obj.Length).Int64("resumed", resumed).Dur("took", took).Str("from", from).Msg("filled")
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

// work waits for the fill's turn and brings the object into the cache.
func (f *Filler) work(ctx context.Context, fl *fill) (*cache.Handle, error) {
	blocks := f.blockList(ctx, fl.obj)
	f.mu.Lock()
	f.queue.add(fl)
	f.mu.Unlock()
	select {
	case <-fl.turn:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	f.mu.Lock()
	dropped := f.fills[fl.key] != fl // by leave, while its turn came
	if !dropped {
		fl.begun = f.cfg.Now()
		f.stats.Started++
	}
	f.mu.Unlock()
	if dropped {
		return nil, context.Canceled
	}
	h, err := f.into(ctx, fl, blocks)
	if errors.Is(err, errBlockList) {
		zerolog.Ctx(ctx).Error().Str("object", fl.obj.Name).Msg("block list and hash that were signed contradict each other: the hash counts")
		f.begin(fl)
		h, err = f.into(ctx, fl, nil)
	}
	return h, err
}

// into runs the transfer into a writer of the cache. What has come of an
// object that did not come whole is kept for the next fill of it.
func (f *Filler) into(ctx context.Context, fl *fill, blocks []byte) (*cache.Handle, error) {
	w, err := f.create(ctx, cache.Object{SHA256: fl.obj.SHA256, Size: fl.obj.Length, Blocks: blocks})
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	f.mu.Lock()
	fl.w, fl.resumed = w, w.Written()
	f.mu.Unlock()
	fl.flow.sure.Store(blocks != nil)
	fl.flow.publish(w.Released())
	t := &transfer{f: f, fl: fl, w: w, blocks: blocks != nil}
	if err := t.run(ctx); err != nil {
		if w.Written() >= minProgress && !errors.Is(err, errBlockList) { // less is not worth a doubt
			w.Suspend()
		}
		return nil, err
	}
	fl.flow.finish(w.Released())
	return w.Commit(ctx)
}

// create makes room for the object. When all of the cache is in use, that may
// be over in a moment: an object's readers have its last bytes before it is
// committed.
func (f *Filler) create(ctx context.Context, obj cache.Object) (w *cache.Writer, err error) {
	for round := 1; ; round++ {
		w, err = f.cfg.Cache.Create(ctx, obj)
		if !errors.Is(err, cache.ErrNoSpace) || round > 6 {
			return w, err
		}
		if largest := f.cfg.Cache.Stats().Max; largest > 0 && obj.Size > largest {
			return nil, err
		}
		if err := pause(ctx, 20*time.Millisecond, round); err != nil {
			return nil, err
		}
	}
}

// begin gives the fill a new flow: what readers of the present one have seen
// was wrong. Those who have seen nothing move on to the new one.
func (f *Filler) begin(fl *fill) {
	f.mu.Lock()
	old := fl.flow
	fl.flow = newFlow()
	f.mu.Unlock()
	old.end(errSuperseded)
}

// blockList brings an object's block list, which is a small object by itself.
// Without it the object can be had all the same.
func (f *Filler) blockList(ctx context.Context, obj Object) []byte {
	if obj.Blocks == nil {
		return nil
	}
	data, err := func() ([]byte, error) {
		if want := layout.BlockListLen(obj.Length); obj.Blocks.Length != want {
			return nil, fmt.Errorf("it has %d bytes instead of %d", obj.Blocks.Length, want)
		}
		r, err := f.Open(ctx, *obj.Blocks, Request{Sibling: RequestOf(ctx).Sibling})
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	}()
	if err != nil {
		if ctx.Err() == nil {
			zerolog.Ctx(ctx).Warn().Err(err).Str("object", obj.Name).Msg("no block list: readers wait longer")
		}
		return nil
	}
	return data
}

// Progress is a fill under way.
type Progress struct {
	Object  string    `json:"object"`
	Bytes   int64     `json:"bytes"` // written so far
	Length  int64     `json:"length"`
	Resumed int64     `json:"resumed,omitempty"` // bytes that an earlier fill had brought
	Waiting int       `json:"waiting"`           // requests that wait or read along
	Begun   time.Time `json:"begun,omitzero"`    // zero: waits for its turn
	From    string    `json:"from,omitempty"`    // upstream in use
	Rate    float64   `json:"rate"`              // bytes/s lately
	ETA     time.Time `json:"eta,omitzero"`      // when it will be whole at that rate
	Prefill bool      `json:"prefill,omitempty"` // no client has asked for it yet
}

// Stats are numbers since New, and of now.
type Stats struct {
	Started  int64 `json:"started"`
	Done     int64 `json:"done"`
	Failed   int64 `json:"failed"`
	Refused  int64 `json:"refused"` // requests, ErrBusy
	BytesIn  int64 `json:"bytes_in"`
	Waiting  int   `json:"waiting"`  // requests that wait or read along, now
	Transfer int   `json:"transfer"` // fills, now
	Queued   int   `json:"queued"`   // fills that wait for their turn, now
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
		s.BytesIn += src.bytes.Load()
	}
	return s
}

// InProgress lists the fills under way, by name.
func (f *Filler) InProgress() []Progress {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.cfg.Now()
	out := make([]Progress, 0, len(f.fills))
	for _, fl := range f.fills {
		p := Progress{
			Object: fl.obj.Name, Length: fl.obj.Length, Resumed: fl.resumed, Waiting: fl.waiters,
			Begun: fl.begun, From: fl.from, Prefill: !fl.client,
		}
		if fl.w != nil {
			p.Bytes = fl.w.Written()
			if p.Rate = fl.rate.lately(); p.Rate > 0 {
				p.ETA = now.Add(time.Duration(float64(p.Length-p.Bytes) / p.Rate * float64(time.Second)))
			}
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Progress) int { return strings.Compare(a.Object, b.Object) })
	return out
}
