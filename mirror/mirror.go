// Package mirror serves a repository over HTTP: as the origin, when its upstream
// is a bucket or a directory, and as a mirror, when it is another mirror.
//
//	/metadata/…          from memory, out of one verified view
//	/targets/…           from a cache of verified objects, filled on demand
//	/healthz /readyz     alive; fit to serve, with reasons
//	/metrics             for Prometheus
//
// It trusts one pinned root, and no upstream. It is a TUF client itself: it
// verifies the whole of the repository's metadata, and only then shows it, all
// at once. It never shows an older version than before, across restarts too
// (unless a new root took away the keys of the newer one: the recovery that TUF
// has for fast-forward attacks). It fetches only what such a view names, under
// exactly that length and hash, so that nobody can make it fetch, keep or
// serve anything else. What it cannot do is decide for its clients: they
// verify everything again, and a mirror past the expiry of its metadata goes
// on serving it, and says so.
package mirror

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"
	"github.com/rs/zerolog"
	"golang.org/x/sync/singleflight"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/mirror/access"
	"github.com/patchkeep/patchkeep/mirror/cache"
	"github.com/patchkeep/patchkeep/mirror/fill"
	"github.com/patchkeep/patchkeep/mirror/upstream"
)

// ErrLocked says that another mirror uses this directory.
var ErrLocked = errors.New("in use by another mirror")

// Config says what to mirror, and where to keep it. Zero fields take the
// default.
type Config struct {
	// Dir holds everything the mirror keeps, and belongs to one process:
	// cas/ (objects), metadata/ (the view), tuf/ (trusted state), tmp/, lock.
	Dir string
	// Root is the pinned root, the bytes of a <N>.root.json. Required.
	Root []byte
	// Upstreams in order of preference. Metadata is asked of all of them, and
	// the newest counts; objects of the first that has them.
	Upstreams []upstream.Upstream
	CacheSize int64         // bytes of objects; 0: as much as MinFree allows
	MinFree   int64         // bytes of the disk that stay free
	Poll      time.Duration // between looks at the upstreams, give or take a fifth: 30 s
	MinRate   int64         // bytes/s below which a reader is cut off: 8 KiB/s
	Scrub     int64         // bytes/s at which cached objects are read again; 0: they are not

	// Siblings are the other mirrors of the site, which share the work: each
	// object comes over the line through one of them. Self is this one's URL as
	// the siblings are told.
	Siblings []upstream.Upstream
	Self     string

	// PrefillRings are the rings whose patches are fetched before any machine
	// may ask for them, and pinned.
	PrefillRings []string

	Line       fill.Limiter // for objects from Upstreams; nil: no limit
	MaxFills   int          // see fill.Config
	MaxWaiters int
	Patience   time.Duration
	BanFor     time.Duration
	FailFor    time.Duration
	Backoff    time.Duration
	Rest       time.Duration

	Access *access.Gate // for all but the admin handler; nil: everybody may have everything

	Now func() time.Time // nil: time.Now
}

// Mirror is the handler. Use New, keep Run running, and Close it at the end.
type Mirror struct {
	cfg    Config
	id     string // of this process, by which it knows its own requests
	lock   *flock.Flock
	cache  *cache.Cache
	filler *fill.Filler
	router http.Handler
	admin  http.Handler
	public http.Handler
	seen   *counters
	shown  atomic.Pointer[shown] // what is served; nil before the first view

	prefill prefiller

	polling sync.Mutex // held by Refresh; guards what follows
	closed  bool
	client  *tuf.Client
	fetcher *fetcher
	roots   *rootChain
	files   map[string]bool // names in metadata/ that are on the disk
	older   []bool          // by upstream: it was asked for roots before the pinned one

	base        context.Context // New's: of what runs for several requests
	ahead       singleflight.Group
	lookedAhead time.Time // guarded by ahead

	mu    sync.Mutex // guards polls
	polls []poll     // by upstream
}

// poll is what came of the last looks at one upstream.
type poll struct {
	answered time.Time // last success
	err      error     // of the last look
}

// New opens the directory, verifies and shows the view that an earlier process
// left there, and prepares to serve. It asks no upstream: Refresh and Run do.
// The logger is that of ctx; when ctx is done, fills end.
func New(ctx context.Context, cfg Config) (_ *Mirror, err error) {
	if len(cfg.Upstreams) == 0 {
		return nil, errors.New("open mirror: no upstream given")
	}
	// The whole site may be given the same list.
	cfg.Siblings = slices.DeleteFunc(slices.Clone(cfg.Siblings), func(u upstream.Upstream) bool { return u.String() == cfg.Self })
	if len(cfg.Siblings) > 0 && cfg.Self == "" {
		return nil, errors.New("open mirror: with siblings it has to know what they call itself")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Poll <= 0 {
		cfg.Poll = 30 * time.Second
	}
	if cfg.MinRate <= 0 {
		cfg.MinRate = 8 << 10
	}
	m := &Mirror{
		cfg: cfg, base: ctx, id: rand.Text()[:16], fetcher: &fetcher{}, files: map[string]bool{},
		older: make([]bool, len(cfg.Upstreams)), polls: make([]poll, len(cfg.Upstreams)),
	}
	defer func() {
		if err != nil {
			_ = m.Close() // what went wrong went wrong before
			err = fmt.Errorf("open mirror: %w", err)
		}
	}()
	if m.roots, err = newRootChain(cfg.Root); err != nil {
		return nil, fmt.Errorf("pinned root: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, metadataDir), 0o755); err != nil {
		return nil, err
	}
	m.lock = flock.New(filepath.Join(cfg.Dir, "lock"))
	switch ok, err := m.lock.TryLock(); {
	case err != nil:
		return nil, fmt.Errorf("lock %s: %w", cfg.Dir, err)
	case !ok:
		m.lock = nil
		return nil, fmt.Errorf("%s is %w", cfg.Dir, ErrLocked)
	}
	m.cache, err = cache.Open(ctx, cache.Config{Dir: cfg.Dir, MaxBytes: cfg.CacheSize, MinFree: cfg.MinFree, Now: cfg.Now})
	if err != nil {
		return nil, err
	}
	if err := m.loadView(ctx); err != nil {
		zerolog.Ctx(ctx).Warn().Err(err).Msg("no view left by an earlier run: waiting for an upstream")
	}
	m.client, err = tuf.Open(tuf.Config{Dir: filepath.Join(cfg.Dir, "tuf"), Root: cfg.Root, Fetcher: m.fetcher, Now: cfg.Now, PassExpired: true})
	if err != nil {
		return nil, err
	}
	m.seen = newCounters(cfg.Now)
	m.filler = fill.New(ctx, fill.Config{
		Cache: m.cache, Sources: m.sources(cfg.Upstreams, false), Siblings: m.sources(cfg.Siblings, true), Self: cfg.Self,
		Line: cfg.Line, MaxFills: cfg.MaxFills, MaxWaiters: cfg.MaxWaiters, Patience: cfg.Patience,
		BanFor: cfg.BanFor, FailFor: cfg.FailFor, Backoff: cfg.Backoff, Rest: cfg.Rest, Ended: m.seen.fillEnded, Now: cfg.Now,
	})
	m.routes()
	return m, nil
}

// source is an upstream or a sibling that is told which mirrors a request has
// passed.
type source struct {
	upstream.Upstream
	id      string
	sibling bool
}

func (m *Mirror) sources(list []upstream.Upstream, sibling bool) []fill.Source {
	var out []fill.Source
	for _, u := range list {
		out = append(out, source{u, m.id, sibling})
	}
	return out
}

func (s source) OpenTarget(ctx context.Context, object string, offset int64) (io.ReadCloser, int64, error) {
	hops := append(slices.Clone(fill.RequestOf(ctx).Hops), s.id)
	return s.Upstream.OpenTarget(upstream.WithVia(ctx, upstream.Via{Hops: hops, Sibling: s.sibling}), object, offset)
}

// Close ends fills and gives the directory back. Requests still being served
// from open files go on; those that wait for a fill end.
func (m *Mirror) Close() error {
	var errs []error
	if m.filler != nil {
		m.filler.Close()
	}
	m.polling.Lock()
	defer m.polling.Unlock()
	m.closed = true
	if m.client != nil {
		errs = append(errs, m.client.Close())
	}
	if m.cache != nil {
		errs = append(errs, m.cache.Close())
	}
	if m.lock != nil {
		errs = append(errs, m.lock.Unlock())
	}
	return errors.Join(errs...)
}

// scrubEvery is the least time between two readings of the same object.
const scrubEvery = 7 * 24 * time.Hour

// Run looks at the upstreams now and then every Poll, until ctx is done.
// Before the first view it tries more often.
func (m *Mirror) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { m.runPrefill(ctx) })
	if m.cfg.Scrub > 0 {
		wg.Go(func() { m.cache.Scrub(ctx, m.cfg.Scrub, scrubEvery) })
	}
	for tries := 0; ; tries++ {
		if err := m.Refresh(ctx); err != nil && ctx.Err() == nil {
			zerolog.Ctx(ctx).Debug().Err(err).Msg("no upstream has a usable repository")
		}
		delay := m.cfg.Poll
		if m.shown.Load() == nil {
			delay = min(delay, time.Second<<min(tries, 5))
		}
		t := time.NewTimer(delay*4/5 + mathrand.N(delay*2/5+1))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// Refresh looks at all upstreams once and shows the newest view that they
// have. It fails if none of them has a usable one.
func (m *Mirror) Refresh(ctx context.Context) error {
	m.polling.Lock()
	defer m.polling.Unlock()
	if m.closed {
		return fill.ErrClosed
	}
	var errs []error
	for i, u := range m.cfg.Upstreams {
		err := m.refreshFrom(ctx, i, u, false)
		for n := 1; cache.DiskFull(err) && n <= maxMadeRoom; n++ { // what is new matters more than what is old
			err = m.refreshFrom(ctx, i, u, !m.cache.Shrink(ctx, 1))
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		m.mu.Lock()
		was := m.polls[i].err
		m.polls[i].err = err
		if err == nil {
			m.polls[i].answered = m.cfg.Now()
		}
		m.mu.Unlock()
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", u, err))
			if was == nil {
				zerolog.Ctx(ctx).Warn().Err(err).Stringer("upstream", u).Msg("upstream cannot be used")
			}
			continue
		}
		m.filler.Answered(i)
		if was != nil {
			zerolog.Ctx(ctx).Info().Stringer("upstream", u).Msg("upstream is back")
			m.prefill.wake()
		}
	}
	if len(errs) < len(m.cfg.Upstreams) {
		return nil
	}
	return errors.Join(errs...)
}

// A sibling that asks for what no view here names may have a newer one. Then
// this mirror looks at its upstreams ahead of time, but not more often than
// catchUpEvery, and lets the sibling wait for that no longer than catchUpWait.
const (
	catchUpEvery = time.Second
	catchUpWait  = 2 * time.Second
)

// catchUp returns an object that a sibling has heard of before, or nil.
func (m *Mirror) catchUp(ctx context.Context, name string) *object {
	look := m.ahead.DoChan("", func() (any, error) {
		if since := time.Since(m.lookedAhead); since < catchUpEvery {
			return nil, nil
		}
		m.lookedAhead = time.Now()
		return nil, m.Refresh(m.base)
	})
	timer := time.NewTimer(catchUpWait)
	defer timer.Stop()
	select {
	case <-look:
	case <-timer.C:
	case <-ctx.Done():
	}
	return m.shown.Load().object(name)
}

// maxMadeRoom is how many objects one look at an upstream may push off a full
// disk to make room for metadata.
const maxMadeRoom = 64

// refreshFrom verifies what one upstream has, and shows it if it is new; unsaved
// also if there is no room for it on the disk.
func (m *Mirror) refreshFrom(ctx context.Context, i int, u upstream.Upstream, unsaved bool) error {
	m.fetcher.u = u
	if err := m.client.Refresh(ctx); err != nil {
		return err
	}
	if err := m.roots.extend(ctx, u, m.client.Bytes(roleRoot)); err != nil {
		return err
	}
	fresh := false
	if !m.older[i] {
		var err error
		if fresh, err = m.roots.extendBack(ctx, u); err != nil {
			zerolog.Ctx(ctx).Debug().Err(err).Stringer("upstream", u).Msg("roots before the pinned one")
		}
		m.older[i] = !errors.Is(err, tuf.ErrOffline)
	}
	now := m.shown.Load().current()
	if !fresh && now.same(m.client) {
		return nil
	}
	next, err := buildView(ctx, m.client, m.roots, now)
	if err != nil {
		return err
	}
	if now != nil && next.root == now.root && next.timestamp < now.timestamp {
		return fmt.Errorf("timestamp version %d is older than version %d, which is served: %w", next.timestamp, now.timestamp, tuf.ErrNotTrusted)
	}
	next.verified = m.cfg.Now()
	after := m.shown.Load().with(next)
	err = m.saveView(ctx, after)
	m.seen.viewKept(err)
	switch {
	case unsaved && cache.DiskFull(err):
		// Clients need it all the same; only a restart before the next view would
		// show an older one.
		zerolog.Ctx(ctx).Error().Err(err).Msg("disk is full: the new view is in memory only")
	case err != nil:
		return err
	}
	m.shown.Store(after)
	m.prefill.wake()
	zerolog.Ctx(ctx).Info().Int64("timestamp", next.timestamp).Int64("snapshot", next.snapshot).Int64("root", next.root).
		Int("roles", len(next.roles)).Int("objects", len(next.objects)).Stringer("from", u).Msg("new view")
	return nil
}

// fetcher lets one tuf.Client ask one upstream after the other. It is guarded
// by Mirror.polling.
type fetcher struct{ u tuf.Fetcher }

func (f *fetcher) FetchMetadata(ctx context.Context, name string, max int64) ([]byte, error) {
	return f.u.FetchMetadata(ctx, name, max)
}
