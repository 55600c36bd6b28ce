package fetch

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf"
)

// Probe measures how far away a server is: the time from a request for the
// head of a small file there to the first byte of the answer, on a connection
// that stands. An error wraps tuf.ErrOffline: nothing of use answers there.
func (f *Fetcher) Probe(ctx context.Context, url string) (time.Duration, error) {
	var sent, answered atomic.Int64 // nanoseconds since begun; redirects write them anew
	begun := time.Now()
	mark := func(at *atomic.Int64) { at.Store(int64(time.Since(begun))) }
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest:         func(httptrace.WroteRequestInfo) { mark(&sent) },
		GotFirstResponseByte: func() { mark(&answered) },
	}), http.MethodHead, url, nil)
	if err != nil {
		return 0, fmt.Errorf("%w: bad URL", tuf.ErrOffline)
	}
	req.Header.Set("User-Agent", f.opt.UserAgent)
	req.Header.Set("Cache-Control", "no-cache")
	f.opt.Credentials.authorize(req)
	resp, err := f.http.Do(req)
	if err != nil {
		return 0, offline(err)
	}
	defer resp.Body.Close()
	if err := captive(resp, url); err != nil {
		return 0, err
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusMethodNotAllowed, http.StatusNotImplemented: // some servers know no HEAD
		return max(time.Duration(answered.Load()-sent.Load()), time.Microsecond), nil
	}
	return 0, fmt.Errorf("%w: %s", tuf.ErrOffline, resp.Status)
}
