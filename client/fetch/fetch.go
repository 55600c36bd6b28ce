// Package fetch brings bytes over HTTP(S). Servers, mirrors and everything
// between are hostile until what they sent is verified:
//
//   - a file's length and hashes come from signed metadata. Exactly so many
//     bytes are read, they are hashed on their way to the disk, and only a file
//     whose hashes match gets its name. With a signed block list each 1 MiB is
//     verified as it arrives, so a bad mirror is left after one block;
//   - ranges, lengths, encodings and redirects that lie are refused, and a
//     mirror that sent wrong bytes is not asked again for that file;
//   - no byte for a while, or a drip of them, counts as a failure: the next
//     mirror is asked, and the one on trial waits, longer each time;
//   - what is on disk of an earlier try is hostile too: it is used only as far
//     as it was synced, and read again before the file gets its name.
//
// Every error wraps exactly one of ErrCorrupt (which wraps tuf.ErrNotTrusted),
// ErrNoSpace, ErrBusy (tuf.ErrLocked), tuf.ErrOffline, tuf.ErrTooLarge,
// fs.ErrNotExist, the context's error, or the operating system's.
package fetch

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/time/rate"

	"github.com/patchkeep/patchkeep/client/tuf"
)

var (
	// ErrCorrupt says that what the mirrors have is not what was signed.
	ErrCorrupt = fmt.Errorf("corrupt download: %w", tuf.ErrNotTrusted)
	// ErrNoSpace says that the file does not fit on the disk. What came of it is
	// kept only if the disk is not full: it may be what fills it.
	ErrNoSpace = errors.New("not enough disk space")
	// ErrBusy says that another download to the same place is under way.
	ErrBusy = fmt.Errorf("download under way: %w", tuf.ErrLocked)
)

// Options tune a Fetcher. Zero fields take the default.
type Options struct {
	// HTTP sends the requests. nil: the system's proxies, HTTP/2 over TLS,
	// TLS 1.2 or newer, bounded headers, idle connections and times. Redirects
	// are bounded and never lead from https to http, with either.
	HTTP      *http.Client
	UserAgent string // "patchkeep"
	// Proxy returns the proxy for a request, nil for none. nil: the system's.
	Proxy func(*http.Request) (*url.URL, error)
	// Credentials are shown to the servers that are asked. With HTTP, only the
	// token counts.
	Credentials Credentials
	// Inside are the hosts (or host:port) that may have any address. All others,
	// which somebody else named, and redirects, are not connected to if their
	// address is of this machine or its link. nil: there is no such bound.
	Inside []string

	Limiter *rate.Limiter // bytes per second, over all transfers; nil: none

	Stall      time.Duration // no byte for so long: the mirror is left: 20 s
	MinRate    int64         // bytes per second that a mirror must reach: 1 KiB/s …
	RateWindow time.Duration // … averaged over so long: 30 s

	Attempts      int           // failures in a row without progress, for each mirror: 4
	BackoffMin    time.Duration // wait after the first of them, growing and jittered: 500 ms …
	BackoffMax    time.Duration // … up to 15 s
	MaxRetryAfter time.Duration // a server that asks for more patience is given up: 60 s

	DocumentTimeout time.Duration // for one metadata file or small document in all: 2 min
}

func (o Options) withDefaults() Options {
	def := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&o.Stall, 20*time.Second)
	def(&o.RateWindow, 30*time.Second)
	def(&o.BackoffMin, 500*time.Millisecond)
	def(&o.BackoffMax, 15*time.Second)
	def(&o.MaxRetryAfter, time.Minute)
	def(&o.DocumentTimeout, 2*time.Minute)
	if o.MinRate <= 0 {
		o.MinRate = 1 << 10
	}
	if o.Attempts <= 0 {
		o.Attempts = 4
	}
	if o.UserAgent == "" {
		o.UserAgent = "patchkeep"
	}
	return o
}

// Fetcher fetches files and metadata. It is safe for concurrent use.
type Fetcher struct {
	opt  Options
	http *http.Client
}

// New returns a Fetcher.
func New(opt Options) *Fetcher {
	f := &Fetcher{opt: opt.withDefaults()}
	client := http.Client{Transport: newTransport(&f.opt)}
	if opt.HTTP != nil {
		client = *opt.HTTP
	}
	client.CheckRedirect = checkRedirect(client.CheckRedirect)
	f.http = &client
	return f
}

// Close lets go of idle connections of the default transport.
func (f *Fetcher) Close() {
	if f.opt.HTTP == nil {
		f.http.CloseIdleConnections()
	}
}

func newTransport(o *Options) *http.Transport {
	d := newDialer(o)
	return &http.Transport{
		Proxy:             d.proxy,
		DialContext:       d.DialContext,
		TLSClientConfig:   o.Credentials.tls(),
		ForceAttemptHTTP2: true,
		// A connection that died while the machine slept must not be used again.
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  15 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConns:           8,
		MaxIdleConnsPerHost:    2,
		IdleConnTimeout:        90 * time.Second,
	}
}

const maxRedirects = 5

var errRedirect = errors.New("redirect refused")

func checkRedirect(also func(*http.Request, []*http.Request) error) func(*http.Request, []*http.Request) error {
	return func(req *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return fmt.Errorf("%w: more than %d in a row", errRedirect, maxRedirects)
		}
		if s := req.URL.Scheme; s != "https" && s != "http" {
			return fmt.Errorf("%w: to scheme %q", errRedirect, s)
		}
		if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" {
			return fmt.Errorf("%w: from https to http", errRedirect)
		}
		if req.URL.Host != via[0].URL.Host || !private(req.URL) { // net/http would still show it to a subdomain
			req.Header.Del("Authorization")
		}
		if also != nil {
			return also(req, via)
		}
		return nil
	}
}
