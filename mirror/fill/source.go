package fill

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io/fs"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/patchkeep/patchkeep/mirror/cache"
)

const (
	// breakAfter failures in a row without a byte in between a source rests:
	// for Config.Rest, twice as long each time up to 64 times as long, and half
	// of that at random, so that mirrors do not come back all at once.
	breakAfter = 3
	maxRests   = 6
)

// source is an upstream or a sibling with what we know of it.
type source struct {
	Source
	sibling bool
	bytes   atomic.Int64 // received

	// Guarded by Filler.mu:
	opens     int64 // transfers begun
	errors    int64
	lastErr   string
	failedAt  time.Time // zero: worked the last time
	failures  int       // in a row
	rests     int       // in a row
	restUntil time.Time
}

// SourceStats are the numbers of one upstream or sibling.
type SourceStats struct {
	Name      string    `json:"name"`
	Sibling   bool      `json:"sibling,omitempty"`
	Transfers int64     `json:"transfers"` // requests for a target
	Bytes     int64     `json:"bytes"`
	Errors    int64     `json:"errors"`
	LastError string    `json:"last_error,omitempty"` // empty if the last transfer worked
	FailedAt  time.Time `json:"failed_at,omitzero"`
	RestsTill time.Time `json:"rests_until,omitzero"` // not asked before, if another can be
}

// Sources returns the numbers of the upstreams and then of the siblings, in
// their order.
func (f *Filler) Sources() []SourceStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]SourceStats, 0, len(f.sources))
	for _, s := range f.sources {
		out = append(out, SourceStats{s.String(), s.sibling, s.opens, s.bytes.Load(), s.errors, s.lastErr, s.failedAt, s.restUntil})
	}
	return out
}

// Answered says that upstream i, as counted in Config.Sources, is there: a
// source that rested is asked again.
func (f *Filler) Answered(i int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.sources[i]
	s.failures, s.rests, s.restUntil = 0, 0, time.Time{}
}

// order returns the sources to ask for an object: the sibling that it belongs
// to, then the upstreams as configured. Upstreams that failed come last until
// they are known to answer again, and those that rest not at all.
func (f *Filler) order(fl *fill) []*source {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.cfg.Now()
	var good, failed []*source
	add := func(s *source) {
		switch {
		case now.Before(f.bans[ban{s, fl.key}]) || !s.rested(now):
		case s.failures > 0 && !s.sibling: // a sibling is asked first or not at all
			failed = append(failed, s)
		default:
			good = append(good, s)
		}
	}
	if !fl.req.Sibling {
		if s := f.owner(fl.key); s != nil {
			add(s)
		}
	}
	for _, s := range f.sources {
		if !s.sibling {
			add(s)
		}
	}
	return append(good, failed...)
}

// rested reports whether s can be asked.
func (s *source) rested(now time.Time) bool { return !now.Before(s.restUntil) }

// owner is the sibling that fetches the object for the whole site, nil if that
// is this mirror: the one with the highest hash of name and object (rendezvous
// hashing), of those that do not rest. So each object is fetched by one, and
// when one goes its objects alone move. The caller holds mu.
func (f *Filler) owner(k key) *source {
	now := f.cfg.Now()
	var best *source
	most := uint64(0)
	for _, s := range f.sources {
		if !s.sibling || !s.rested(now) {
			continue
		}
		if w := weight(s.String(), k.sum); best == nil || w > most {
			best, most = s, w
		}
	}
	if best == nil || weight(f.cfg.Self, k.sum) >= most {
		return nil
	}
	return best
}

func weight(name, sum string) uint64 {
	h := sha256.Sum256([]byte(name + "\x00" + sum))
	return binary.BigEndian.Uint64(h[:])
}

// note remembers how a try ended; got is how many bytes it brought. A source
// that has not the object, or another one, rests for that object at most: it
// answers, and what was wrong may be what another one had sent before.
func (f *Filler) note(s *source, err error, got int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if got > 0 || err == nil {
		s.failures, s.rests, s.restUntil = 0, 0, time.Time{}
	}
	if err == nil {
		s.failedAt, s.lastErr = time.Time{}, ""
		return
	}
	if s.sibling && errors.Is(err, fs.ErrNotExist) {
		return // it has not heard of the object yet
	}
	now := f.cfg.Now()
	s.failedAt, s.lastErr = now, err.Error()
	s.errors++
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errWrong) || errors.Is(err, cache.ErrMismatch) {
		return
	}
	if s.failures++; s.failures >= breakAfter {
		d := f.cfg.Rest << min(s.rests, maxRests)
		s.restUntil = now.Add(d/2 + rand.N(d/2+1))
		s.rests++
		s.failures = breakAfter - 1 // after the rest one try decides
	}
}

type ban struct {
	src *source
	key key
}

// ban keeps a source from being asked for an object for a while.
func (f *Filler) ban(s *source, k key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.cfg.Now()
	if len(f.bans) >= 1024 {
		for b, until := range f.bans {
			if !now.Before(until) {
				delete(f.bans, b)
			}
		}
	}
	if len(f.bans) < 1<<16 {
		f.bans[ban{s, k}] = now.Add(f.cfg.BanFor)
	}
}

// usable drops from a fill's queue what has begun to rest meanwhile, unless
// nothing would be left.
func (f *Filler) usable(sources []*source) []*source {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.cfg.Now()
	return slices.DeleteFunc(slices.Clone(sources), func(s *source) bool { return !s.rested(now) })
}
