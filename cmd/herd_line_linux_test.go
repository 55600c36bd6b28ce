package cmd_test

import (
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// line is an upstream over a directory whose objects all share so many bytes a
// second, as the line to a branch does. Metadata does not count.
type line struct {
	url      string
	bytes    atomic.Int64 // of objects, sent
	requests atomic.Int64 // for objects

	rate   int64 // bytes/s; 0: as fast as it goes
	mu     sync.Mutex
	next   time.Time // when the line is free again; guarded by mu
	active int       // requests; guarded by mu
}

const (
	// lineTick is how often something comes over the line.
	lineTick = 4 * time.Millisecond
	// lineLag is how much it may send at once of what the processor, busy
	// elsewhere, did not let it send in time.
	lineLag = 100 * time.Millisecond
)

func newLine(t testing.TB, dir string, rate int64) *line {
	t.Helper()
	l := &line{rate: rate}
	files := http.FileServer(http.Dir(dir))
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/targets/") {
			l.requests.Add(1)
			l.begin()
			defer l.end()
			w = &lineWriter{w, l}
		}
		files.ServeHTTP(w, r)
	})
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go srv.Serve(listener)
	t.Cleanup(func() { srv.Close() })
	l.url = "http://" + listener.Addr().String()
	return l
}

// begin sees to it that a line which was idle has nothing to make up for.
func (l *line) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); l.active == 0 && l.next.Before(now) {
		l.next = now
	}
	l.active++
}

func (l *line) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.active--
}

// wait returns when n bytes have had their time on the line.
func (l *line) wait(n int) {
	l.mu.Lock()
	if now := time.Now(); l.next.Before(now.Add(-lineLag)) {
		l.next = now
	}
	l.next = l.next.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
	until := l.next
	l.mu.Unlock()
	time.Sleep(time.Until(until))
}

type lineWriter struct {
	http.ResponseWriter
	line *line
}

func (w *lineWriter) Write(p []byte) (int, error) {
	sent := 0
	for len(p) > 0 {
		n := len(p)
		if w.line.rate > 0 {
			n = min(n, int(float64(w.line.rate)*lineTick.Seconds()))
			w.line.wait(n)
		}
		m, err := w.ResponseWriter.Write(p[:n])
		sent += m
		w.line.bytes.Add(int64(m))
		if err != nil {
			return sent, err
		}
		if w.line.rate > 0 {
			w.ResponseWriter.(http.Flusher).Flush()
		}
		p = p[n:]
	}
	return sent, nil
}
