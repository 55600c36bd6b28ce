package access

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// lines reads a log.
func lines(t *testing.T, data []byte) (out []map[string]any) {
	t.Helper()
	for line := range bytes.Lines(data) {
		var m map[string]any
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out = append(out, m)
	}
	return out
}

func TestLog(t *testing.T) {
	name := filepath.Join(t.TempDir(), "access.log")
	l, err := OpenLog(LogFile(name))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()

	g := New(Rules{}, l)
	r := request("192.0.2.1:1", "Authorization", "Bearer "+secret, "User-Agent", "curl\n\x1b\xff"+strings.Repeat("x", 1000))
	r.URL.Path, r.URL.RawQuery = "/targets/a b", "token="+secret
	g.Record(Entry{
		Request: r, Began: time.Date(2026, 1, 2, 4, 4, 5, 6e6, time.FixedZone("", 3600)), Route: "targets", Cache: "miss", Name: "laptops",
		Status: 200, Bytes: 12345, Cut: true,
	})
	if err := os.Rename(name, name+".1"); err != nil { // as logrotate does
		t.Fatal(err)
	}
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	long := httptest.NewRequest(strings.Repeat("M", 100), "/"+strings.Repeat("p", 10_000), nil)
	g.Record(Entry{Request: long, Began: time.Now(), Route: "other", Status: 404})
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	first, err := os.ReadFile(name + ".1")
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(first), secret) {
		t.Errorf("a secret is in the log: %s", first)
	}
	a, b := lines(t, first), lines(t, second)
	if len(a) != 1 || len(b) != 1 {
		t.Fatalf("%d and %d lines", len(a), len(b))
	}
	for k, want := range map[string]any{
		"time": "2026-01-02T03:04:05.006Z", "client": "192.0.2.1", "method": "GET", "path": "/targets/a%20b", "proto": "HTTP/1.1",
		"status": 200.0, "bytes": 12345.0, "route": "targets", "cache": "miss", "name": "laptops", "cut": true,
	} {
		if a[0][k] != want {
			t.Errorf("%s is %v, want %v", k, a[0][k], want)
		}
	}
	if agent, _ := a[0]["agent"].(string); len(agent) > maxAgent+10 || !strings.HasPrefix(agent, "curl\n\x1b") {
		t.Errorf("agent %q", agent)
	}
	if len(second) > 1000 || b[0]["cache"] != nil || b[0]["name"] != nil || b[0]["cut"] != nil {
		t.Errorf("%d bytes: %s", len(second), second)
	}
}

func TestLogThatCannotBeReopenedGoesOn(t *testing.T) {
	var out bytes.Buffer
	fail := false
	l, err := OpenLog(func() (io.WriteCloser, error) {
		if fail {
			return nil, errors.New("no such directory")
		}
		return nopCloser{&out}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	fail = true
	if err := l.Reopen(); err == nil {
		t.Error("no error")
	}
	New(Rules{}, l).Record(Entry{Request: request("192.0.2.1:1")})
	l.flush(t.Context())
	if len(lines(t, out.Bytes())) != 1 {
		t.Errorf("%q", &out)
	}
	if _, err := OpenLog(LogFile(filepath.Join(t.TempDir(), "absent", "log"))); err == nil {
		t.Error("a log in no directory was opened")
	}
}

// TestLogHoldsNobodyUp: while the disk hangs, lines wait up to a limit, the rest
// is dropped and counted, and each that was taken is written once.
func TestLogHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &stuck{free: make(chan struct{})}
		l, err := OpenLog(LogTo(disk))
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		g := New(Rules{}, l)
		const each = 10_000
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range each {
					g.Record(Entry{Request: request("192.0.2.1:1"), Route: "metadata", Status: 200})
				}
			})
		}
		wg.Wait() // though nothing was written
		synctest.Wait()
		if g.Stats().Dropped == 0 || len(l.pending) > maxPending {
			t.Errorf("%d lines dropped, %d bytes wait", g.Stats().Dropped, len(l.pending))
		}
		close(disk.free)
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := int64(len(lines(t, disk.data.Bytes()))); n+g.Stats().Dropped != 8*each {
			t.Errorf("%d lines written and %d dropped, of %d", n, g.Stats().Dropped, 8*each)
		}
	})
}

type stuck struct {
	free chan struct{}
	data bytes.Buffer
}

func (s *stuck) Write(p []byte) (int, error) {
	<-s.free
	return s.data.Write(p)
}

func BenchmarkRecord(b *testing.B) {
	l, err := OpenLog(LogTo(io.Discard))
	if err != nil {
		b.Fatal(err)
	}
	go l.Run(b.Context())
	g := New(Rules{}, l)
	e := Entry{Request: request("192.0.2.1:1", "User-Agent", "patchkeep-agent/1.0"), Began: time.Now(), Route: "metadata", Status: 200, Bytes: 1500}
	b.ReportAllocs()
	for b.Loop() {
		g.Record(e)
	}
}
