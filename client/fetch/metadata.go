package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/patchkeep/patchkeep/client/coding"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// Metadata reads metadata files from several mirrors. It is a tuf.Fetcher and
// safe for concurrent use.
//
// It stays with the mirror that answered last. Whether what a mirror says is
// true is the TUF client's to find out; the caller then tells by Confirm or
// Rotate.
type Metadata struct {
	f *Fetcher
	// Observe is told how each request went, before it is used for the first
	// time. nil: nobody is told.
	Observe func(base string, err error)

	mu      sync.Mutex // guards the rest
	bases   []string   // never written to
	current int        // index of the mirror to ask first
	clock   clock      // of the server that answered last
	last    Validated  // newest timestamp fetched, not verified
	known   Validated  // newest timestamp that the TUF client verified
}

// clock is what a server said the time is, and when it said so.
type clock struct{ theirs, ours time.Time }

// ServerTime is what the time must be now by the clock of the server that
// answered last; zero if none said. Nobody has signed it: it is for messages.
func (m *Metadata) ServerTime() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.clock.theirs.IsZero() {
		return time.Time{}
	}
	return m.clock.theirs.Add(time.Since(m.clock.ours))
}

// Validated is the timestamp of one mirror with the ETag that stands for it.
type Validated struct {
	URL  string `json:"url"`
	ETag string `json:"etag"`
	Body []byte `json:"-"`
}

// Metadata reads from mirrors; each base is the URL of a metadata directory,
// e.g. https://host/metadata, the best first.
func (f *Fetcher) Metadata(bases ...string) *Metadata {
	m := &Metadata{f: f}
	m.SetBases(bases)
	return m
}

// SetBases changes the mirrors. If they are others than before, or in another
// order, the first is asked first again.
func (m *Metadata) SetBases(bases []string) {
	var trimmed []string
	for _, b := range bases {
		trimmed = append(trimmed, strings.TrimRight(b, "/"))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Equal(m.bases, trimmed) {
		m.bases, m.current = trimmed, 0
	}
}

// Mirrors is how many mirrors there are.
func (m *Metadata) Mirrors() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.bases)
}

// Current is the base that is asked first, "" if there is none.
func (m *Metadata) Current() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.bases) == 0 {
		return ""
	}
	return m.bases[m.current]
}

// Rotate goes over to the next mirror, because what the current one sent did
// not verify.
func (m *Metadata) Rotate() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.current = (m.current + 1) % max(1, len(m.bases))
}

// Confirm says that timestamp is verified. If these are the bytes that were
// fetched last, their ETag is used from now on to ask whether there are newer
// ones. (The ETag of anything else would let an attacker who was on the line
// once keep a client on his bytes.)
func (m *Metadata) Confirm(timestamp []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last.ETag != "" && bytes.Equal(m.last.Body, timestamp) {
		m.known = m.last
	}
}

// Known returns what Confirm settled, to be kept across runs.
func (m *Metadata) Known() Validated {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.known
}

// SetKnown brings back what Known returned in an earlier run, with the verified
// bytes as Body.
func (m *Metadata) SetKnown(v Validated) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known = v
}

// FetchMetadata implements tuf.Fetcher.
func (m *Metadata) FetchMetadata(ctx context.Context, name string, max int64) ([]byte, error) {
	m.mu.Lock()
	bases, first, known := m.bases, m.current, m.known
	m.mu.Unlock()

	urls := make([]string, len(bases))
	for i := range bases {
		urls[i] = bases[(first+i)%len(bases)] + "/" + name
	}
	if name != layout.TimestampName {
		known = Validated{}
	}
	// The first mirror's word counts for a root that is not there: asking all of
	// them each time would cost every poll a request a mirror.
	absentIsFinal := strings.HasSuffix(name, "."+layout.RoleRoot+".json")
	got, err := m.f.document(ctx, urls, absentIsFinal, func(src *source) ([]byte, error) {
		body, err := m.f.get(ctx, src, max, known)
		if !src.date.IsZero() {
			m.mu.Lock()
			m.clock = clock{src.date, time.Now()}
			m.mu.Unlock()
		}
		if m.Observe != nil && ctx.Err() == nil {
			outcome := err
			if absentIsFinal && errors.Is(err, fs.ErrNotExist) {
				outcome = nil
			}
			m.Observe(strings.TrimSuffix(src.url, "/"+name), outcome)
		}
		return body, err
	})
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.Equal(m.bases, bases) { // nobody changed them meanwhile
		m.current = (first + got.index) % len(bases)
	}
	if name == layout.TimestampName {
		m.last = Validated{got.url, got.etag, got.body}
	}
	return got.body, nil
}

// Document reads a small file that signed metadata vouches for, whole. A
// mirror that has something else is passed over.
func (f *Fetcher) Document(ctx context.Context, urls []string, length int64, hashes map[string]string) ([]byte, error) {
	got, err := f.document(ctx, urls, false, func(src *source) ([]byte, error) {
		body, err := f.get(ctx, src, length, Validated{})
		if errors.Is(err, tuf.ErrTooLarge) {
			return nil, fmt.Errorf("%w: longer than the signed %d bytes", ErrCorrupt, length)
		}
		if err != nil {
			return nil, err
		}
		return body, Verify(body, length, hashes)
	})
	if err != nil {
		return nil, fmt.Errorf("fetch document: %w", err)
	}
	return got.body, nil
}

// Verify checks bytes against what was signed.
func Verify(body []byte, length int64, hashes map[string]string) error {
	if int64(len(body)) != length {
		return fmt.Errorf("%w: %d bytes instead of the signed %d", ErrCorrupt, len(body), length)
	}
	h, err := newHashes(hashes)
	if err != nil {
		return err
	}
	h.write(body)
	return h.check()
}

type document struct {
	body  []byte
	url   string
	etag  string
	index int // which of the URLs
}

// document asks source after source until get succeeds.
func (f *Fetcher) document(ctx context.Context, urls []string, absentIsFinal bool, get func(*source) ([]byte, error)) (document, error) {
	srcs := f.opt.sources(urls)
	for {
		src, err := srcs.next(ctx)
		if err != nil {
			return document{}, err
		}
		body, err := get(src)
		if err == nil {
			return document{body, src.url, src.etag, indexOf(srcs, src)}, nil
		}
		if cause := over(ctx); cause != nil {
			return document{}, cause
		}
		if absentIsFinal && errors.Is(err, fs.ErrNotExist) {
			return document{}, err
		}
		srcs.failed(src, err)
	}
}

func indexOf(s *sources, src *source) int {
	for i := range s.list {
		if s.list[i] == src {
			return i
		}
	}
	return 0
}

// get reads one small file, at most max bytes.
func (f *Fetcher) get(ctx context.Context, src *source, max int64, known Validated) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, f.opt.DocumentTimeout,
		fmt.Errorf("%w: not done within %s", tuf.ErrOffline, f.opt.DocumentTimeout))
	defer cancel()
	header := http.Header{}
	header.Set("Accept-Encoding", coding.Accept)
	header.Set("Cache-Control", "no-cache")
	conditional := known.URL == src.url && known.ETag != "" && int64(len(known.Body)) <= max
	if conditional {
		header.Set("If-None-Match", known.ETag)
	}
	t, err := f.open(ctx, src.url, header)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	src.date, _ = http.ParseTime(t.Header.Get("Date"))
	if conditional && t.StatusCode == http.StatusNotModified {
		src.etag = known.ETag
		return known.Body, nil
	}
	if err := captive(t.Response, src.url); err != nil {
		return nil, err
	}
	if t.StatusCode != http.StatusOK {
		return nil, statusError(t.Response)
	}
	src.etag = t.Header.Get("ETag") // of these bytes in this coding, which the next request asks for too
	encoding := t.Header.Get("Content-Encoding")
	if n := t.ContentLength; n > coding.MaxWire(max) || n > max && encoding == "" {
		return nil, fmt.Errorf("%w: %d bytes where at most %d are allowed", tuf.ErrTooLarge, n, max)
	}
	head := &head{r: t}
	body, _, err := coding.Read(head, encoding, max)
	if beginsLikeHTML(head.seen) || beginsLikeHTML(body) {
		return nil, ErrCaptivePortal
	}
	switch {
	case err == nil:
		return body, nil
	case over(t.ctx) != nil, errors.Is(err, tuf.ErrTooLarge), errors.Is(err, tuf.ErrOffline):
		return nil, err
	}
	return nil, fmt.Errorf("%w: %w", tuf.ErrOffline, err) // no sound coding
}

// head keeps the first bytes that come by.
type head struct {
	r    io.Reader
	seen []byte
}

func (h *head) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	if few := 16 - len(h.seen); few > 0 {
		h.seen = append(h.seen, p[:min(n, few)]...)
	}
	return n, err
}
