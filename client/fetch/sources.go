package fetch

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/patchkeep/patchkeep/client/tuf"
)

// sources are the mirrors of one object and how each behaved so far. One
// goroutine uses them at a time.
type sources struct {
	opt  *Options
	list []*source // best first
}

type source struct {
	url     string
	etag    string    // strong validator of its last answer, or ""
	date    time.Time // of its last answer, by its own clock; zero: it did not say
	proven  int       // blocks that were verified as it sent them
	fails   int       // in a row, without progress between
	ready   time.Time
	backoff backoff.ExponentialBackOff
	dead    bool
	err     error // last failure

	bytes int64         // of the bodies of its answers
	took  time.Duration // that they took to come

	// Where several are asked at once:
	busy    bool          // it is being asked
	whole   bool          // it gives whole files only
	rate    float64       // bytes per second, of late; 0: not known
	reached map[int64]int // how much it sent of some blocks
}

func (o *Options) sources(urls []string) *sources {
	s := &sources{opt: o}
	for _, u := range urls {
		s.list = append(s.list, &source{url: u, backoff: backoff.ExponentialBackOff{
			InitialInterval: o.BackoffMin, MaxInterval: o.BackoffMax, Multiplier: 2, RandomizationFactor: 0.5,
		}})
	}
	return s
}

// told says how each did; those in from gave bytes of the file.
func (s *sources) told(from []*source) []Source {
	var all []Source
	for _, src := range s.list {
		all = append(all, Source{redact(src.url), src.bytes, src.took, slices.Contains(from, src), src.err})
	}
	return all
}

// next waits for and returns the source to ask: of those alive, the one that
// is ready first, the better one of two.
func (s *sources) next(ctx context.Context) (*source, error) {
	var best *source
	for _, src := range s.list {
		if !src.dead && (best == nil || src.ready.Before(best.ready)) {
			best = src
		}
	}
	if best == nil {
		return nil, s.failure()
	}
	if wait := time.Until(best.ready); wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	return best, over(ctx)
}

// prefer makes the source at url the next one.
func (s *sources) prefer(url string) {
	for i, src := range s.list {
		if src.url == url {
			copy(s.list[1:i+1], s.list[:i])
			s.list[0] = src
			src.ready = time.Time{}
		}
	}
}

// progressed forgives a source its failures.
func (s *sources) progressed(src *source) {
	src.fails = 0
	src.backoff.Reset()
}

// failed notes a failure: the source is dropped, or waits for its next try.
func (s *sources) failed(src *source, err error) {
	src.err = err
	src.fails++
	wait := src.backoff.NextBackOff()
	var later *retryAfter
	if errors.As(err, &later) {
		wait = max(wait, later.wait)
	}
	if permanent(err) || src.fails >= s.opt.Attempts || wait > max(s.opt.MaxRetryAfter, 2*s.opt.BackoffMax) {
		src.dead = true
		return
	}
	src.ready = time.Now().Add(wait)
}

// permanent reports whether asking the same server again is pointless.
func permanent(err error) bool {
	for _, target := range []error{ErrCorrupt, fs.ErrNotExist, errRedirect, tuf.ErrTooLarge, ErrCaptivePortal} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// failure is the error once every source is dropped. One that may be back
// later makes the whole worth another try; otherwise one that sent wrong
// bytes is what the caller must hear of.
func (s *sources) failure() error {
	kind := error(nil)
	rank := func(err error) int {
		switch {
		case errors.Is(err, ErrCaptivePortal):
			return 5
		case errors.Is(err, tuf.ErrOffline):
			return 4
		case errors.Is(err, ErrCorrupt):
			return 3
		case errors.Is(err, tuf.ErrTooLarge):
			return 2
		}
		return 1
	}
	var text []string
	for i, src := range s.list {
		if kind == nil || rank(src.err) > rank(kind) {
			kind = src.err
		}
		if i < 4 {
			text = append(text, fmt.Sprintf("%s: %v", redact(src.url), src.err))
		}
	}
	switch rank(kind) {
	case 5:
		kind = ErrCaptivePortal
	case 4:
		kind = tuf.ErrOffline
	case 3:
		kind = ErrCorrupt
	case 2:
		kind = tuf.ErrTooLarge
	default:
		kind = fs.ErrNotExist
	}
	if len(s.list) == 0 {
		return fmt.Errorf("no mirror to ask: %w", tuf.ErrOffline)
	}
	return &Error{kind, strings.Join(text, "; ")}
}

// Error says what became of each mirror. It wraps the sentinel that fits all.
type Error struct {
	Kind error
	Text string // one clause for each mirror
}

func (e *Error) Error() string { return e.Text }

// Unwrap returns the sentinel.
func (e *Error) Unwrap() error { return e.Kind }

// retryAfter is a failure that came with a Retry-After.
type retryAfter struct {
	error
	wait time.Duration
}

func (r *retryAfter) Unwrap() error { return r.error }

// statusError turns an answer that has no content into an error.
func statusError(resp *http.Response) error {
	switch resp.StatusCode {
	case http.StatusForbidden, http.StatusNotFound, http.StatusGone:
		// S3 without the right to list says 403 for what is not there.
		return fmt.Errorf("%s: %w", resp.Status, fs.ErrNotExist)
	}
	err := fmt.Errorf("%s: %w", resp.Status, tuf.ErrOffline)
	if resp.StatusCode == http.StatusUnauthorized {
		err = fmt.Errorf("%s: it lets in only who shows a token or a certificate: %w", resp.Status, tuf.ErrOffline)
	}
	now, perr := http.ParseTime(resp.Header.Get("Date"))
	if perr != nil { // its clock, if it says: ours may be wrong
		now = time.Now()
	}
	if wait, ok := parseRetryAfter(resp.Header.Get("Retry-After"), now); ok {
		return &retryAfter{err, wait}
	}
	return err
}

// parseRetryAfter reads seconds or a date (RFC 9110 §10.2.3).
func parseRetryAfter(s string, now time.Time) (time.Duration, bool) {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second, true
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(0, t.Sub(now)), true
	}
	return 0, false
}

// redact makes a URL fit for a message: neither user nor query, where tokens
// are.
func redact(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "(bad URL)"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

// offline makes an error of the transport one of ours, without the URL that
// net/http puts into it.
func offline(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	if errors.Is(err, errRedirect) {
		return &refused{err}
	}
	for _, known := range []error{ErrCorrupt, tuf.ErrOffline} {
		if errors.Is(err, known) {
			return err
		}
	}
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return fmt.Errorf("%w: %w; is this machine's clock right?", tuf.ErrOffline, err)
	}
	return fmt.Errorf("%w: %w", tuf.ErrOffline, err)
}

// refused is a redirect that is not followed: for the caller, a mirror that
// cannot be reached.
type refused struct{ err error }

func (r *refused) Error() string   { return r.err.Error() }
func (r *refused) Unwrap() []error { return []error{errRedirect, tuf.ErrOffline} }
