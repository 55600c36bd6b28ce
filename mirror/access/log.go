package access

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

const (
	// What strangers chose is cut to so many bytes.
	maxMethod = 16
	maxPath   = 512
	maxAgent  = 200
	maxWho    = 128

	flushAt    = 64 << 10 // bytes
	flushEvery = time.Second

	// maxPending is how many bytes wait for a disk that does not keep up. What
	// comes then is dropped: clients do not wait for a log.
	maxPending = 4 << 20
)

// Log writes one line of JSON for each request. It never holds a request up: a
// goroutine of its own writes. A nil one writes nothing.
//
//	time    when the request came, RFC 3339 with milliseconds, UTC
//	client  the IP address, as Rules.Proxies have it
//	method, path (escaped, without the query), proto, agent: cut if long
//	status, bytes (of the body), ms (to the end of the answer)
//	route   metadata, targets, healthz, readyz, metrics, other
//	cache   hit or miss, of an object
//	name    of the token or certificate
//	cut     true if the answer was broken off
type Log struct {
	open   func() (io.WriteCloser, error)
	events zerolog.Logger // writes to the Log itself
	wake   chan struct{}
	lost   atomic.Int64 // lines

	mu      sync.Mutex // guards pending
	pending []byte

	file sync.Mutex // held while writing; guards what follows
	out  io.WriteCloser
	bare []byte // to be pending next
	err  error  // of the last write
}

// OpenLog begins a log. open opens what it is written to, now and at each
// Reopen. Run has to run.
func OpenLog(open func() (io.WriteCloser, error)) (*Log, error) {
	out, err := open()
	if err != nil {
		return nil, fmt.Errorf("open access log: %w", err)
	}
	l := &Log{open: open, out: out, wake: make(chan struct{}, 1)}
	l.events = zerolog.New(pending{l})
	return l, nil
}

// LogFile is for OpenLog: a file that is appended to.
func LogFile(name string) func() (io.WriteCloser, error) {
	return func() (io.WriteCloser, error) {
		return os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	}
}

// LogTo is for OpenLog: what is never closed, such as stdout.
func LogTo(w io.Writer) func() (io.WriteCloser, error) {
	return func() (io.WriteCloser, error) { return nopCloser{w}, nil }
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// Reopen goes on in a new file of the same name, after the old one was moved. If
// that fails it goes on in the old one.
func (l *Log) Reopen() error {
	if l == nil {
		return nil
	}
	l.flush(context.Background())
	out, err := l.open()
	if err != nil {
		return fmt.Errorf("reopen access log: %w", err)
	}
	l.file.Lock()
	old := l.out
	l.out = out
	l.file.Unlock()
	return old.Close()
}

// Run writes until ctx is done; then it writes what is left, and closes the file.
func (l *Log) Run(ctx context.Context) error {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-l.wake:
		case <-ctx.Done():
			l.flush(ctx)
			return l.close()
		}
		l.flush(ctx)
	}
}

func (l *Log) close() error {
	l.file.Lock()
	defer l.file.Unlock()
	return errors.Join(l.err, l.out.Close())
}

// flush writes what there is.
func (l *Log) flush(ctx context.Context) {
	l.file.Lock()
	defer l.file.Unlock()
	l.mu.Lock()
	lines := l.pending
	l.pending = l.bare[:0]
	l.mu.Unlock()
	if len(lines) > 0 {
		_, err := l.out.Write(lines)
		if err != nil && l.err == nil {
			zerolog.Ctx(ctx).Error().Err(err).Msg("access log cannot be written")
		}
		l.err = err
	}
	l.bare = lines
}

func (l *Log) dropped() int64 {
	if l == nil {
		return 0
	}
	return l.lost.Load()
}

// pending is where events go.
type pending struct{ l *Log }

func (p pending) Write(line []byte) (int, error) {
	l := p.l
	l.mu.Lock()
	full := len(l.pending)+len(line) > maxPending
	if !full {
		l.pending = append(l.pending, line...)
	}
	n := len(l.pending)
	l.mu.Unlock()
	if full {
		l.lost.Add(1)
	}
	if n >= flushAt {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
	return len(line), nil
}

// Entry is an answer that was given.
type Entry struct {
	Request *http.Request
	Began   time.Time
	Route   string
	Cache   string // "hit", "miss" or nothing
	Name    string
	Status  int
	Bytes   int64
	Cut     bool
}

// Logs says whether Record does anything.
func (g *Gate) Logs() bool { return g.log != nil }

// Record writes an entry to the log.
func (g *Gate) Record(e Entry) {
	if g.log == nil {
		return
	}
	r := e.Request
	addr, _ := g.rules.Load().who(r)
	var buf [64]byte
	line := g.log.events.Log().
		Bytes("time", e.Began.UTC().AppendFormat(buf[:0], "2006-01-02T15:04:05.000Z")).
		Bytes("client", addr.AppendTo(buf[:0])).
		Str("method", cut(r.Method, maxMethod)).
		Str("path", cut(r.URL.EscapedPath(), maxPath)).
		Str("proto", r.Proto).
		Int("status", e.Status).
		Int64("bytes", e.Bytes).
		Int64("ms", time.Since(e.Began).Milliseconds()).
		Str("route", e.Route)
	if e.Cache != "" {
		line = line.Str("cache", e.Cache)
	}
	if e.Name != "" {
		line = line.Str("name", cut(e.Name, maxWho))
	}
	if agent := r.UserAgent(); agent != "" {
		line = line.Str("agent", cut(agent, maxAgent))
	}
	if e.Cut {
		line = line.Bool("cut", true)
	}
	line.Send()
}

func cut(s string, limit int) string { return s[:min(len(s), limit)] }
