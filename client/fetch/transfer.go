package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"golang.org/x/time/rate"

	"github.com/patchkeep/patchkeep/client/tuf"
)

var errStalled = fmt.Errorf("no byte came for too long: %w", tuf.ErrOffline)

// transfer is one answer being read, under watch: it ends when no byte comes
// for too long or too few come. Not safe for concurrent use.
type transfer struct {
	*http.Response

	opt    *Options
	ctx    context.Context // of the request
	cancel context.CancelCauseFunc
	watch  *time.Timer

	read    int64 // bytes of the body
	started time.Time
	waited  time.Duration // spent in the limiter, which is not the mirror's fault

	windowStart time.Time
	windowRead  int64
}

// open sends a GET and returns its answer, whatever its status. The watch is
// on from here: a server that accepts and says nothing is a stall too.
func (f *Fetcher) open(ctx context.Context, url string, header http.Header) (*transfer, error) {
	rctx, cancel := context.WithCancelCause(ctx)
	t := &transfer{opt: &f.opt, ctx: rctx, cancel: cancel, started: time.Now()}
	t.windowStart = t.started
	t.watch = time.AfterFunc(f.opt.Stall, func() { cancel(errStalled) })
	req, err := http.NewRequestWithContext(rctx, http.MethodGet, url, nil)
	if err != nil {
		t.stop()
		return nil, fmt.Errorf("%w: bad URL", tuf.ErrOffline)
	}
	req.Header = header
	req.Header.Set("User-Agent", f.opt.UserAgent)
	f.opt.Credentials.authorize(req)
	t.Response, err = f.http.Do(req) //nolint:bodyclose // stop closes it
	t.watch.Stop()
	if err != nil {
		err = t.explain(err)
		t.stop()
		return nil, err
	}
	return t, nil
}

func (t *transfer) stop() {
	t.watch.Stop()
	t.cancel(nil)
}

// Close ends the transfer. A small rest is read so that the connection can be
// used again.
func (t *transfer) Close() {
	if t.ctx.Err() == nil && t.ContentLength >= 0 && t.ContentLength-t.read <= 4<<10 {
		t.watch.Reset(t.opt.Stall)
		_, _ = io.CopyN(io.Discard, t.Body, 4<<10)
	}
	t.stop()
	_ = t.Body.Close()
}

// Read reads the body at the limiter's pace.
func (t *transfer) Read(p []byte) (int, error) {
	if lim := t.opt.Limiter; lim != nil && lim.Limit() != rate.Inf {
		p = p[:min(len(p), 64<<10, max(1, lim.Burst()))]
	}
	t.watch.Reset(t.opt.Stall)
	n, err := t.Body.Read(p)
	t.watch.Stop()
	t.read += int64(n)
	if err != nil && err != io.EOF {
		return n, t.explain(err)
	}
	if err == nil {
		err = t.checkRate(n)
	}
	if n > 0 && t.opt.Limiter != nil {
		before := time.Now()
		if lerr := t.opt.Limiter.WaitN(t.ctx, n); lerr != nil && err == nil {
			err = t.explain(lerr)
		}
		d := time.Since(before)
		t.waited += d
		t.windowStart = t.windowStart.Add(d)
	}
	return n, err
}

// checkRate looks at the average over the window that just ended.
func (t *transfer) checkRate(n int) error {
	t.windowRead += int64(n)
	d := time.Since(t.windowStart)
	if d < t.opt.RateWindow {
		return nil
	}
	if float64(t.windowRead) < float64(t.opt.MinRate)*d.Seconds() {
		return fmt.Errorf("%w: slower than %d bytes/s", tuf.ErrOffline, t.opt.MinRate)
	}
	t.windowStart, t.windowRead = time.Now(), 0
	return nil
}

// minProgress is how far a transfer must bring the file for its source to be
// forgiven.
const minProgress = 64 << 10

// useful reports whether the transfer brought the file forward by n bytes far
// and fast enough that what ended it should not count against the source.
func (t *transfer) useful(n int64) bool {
	d := time.Since(t.started) - t.waited
	return n >= minProgress && float64(n) >= float64(t.opt.MinRate)*d.Seconds()
}

// explain says why a request or a read failed: the caller's context first, then
// our own watch.
func (t *transfer) explain(err error) error {
	if cause := over(t.ctx); cause != nil {
		return cause
	}
	return offline(err)
}

// over says that a context ended, and why; nil while it has not. What our own
// watches say stands alone; a caller's cause goes with the context's error.
func over(ctx context.Context) error {
	cause := context.Cause(ctx)
	if cause == nil || errors.Is(cause, tuf.ErrOffline) || errors.Is(cause, ctx.Err()) {
		return cause
	}
	return fmt.Errorf("%w: %w", ctx.Err(), cause)
}
