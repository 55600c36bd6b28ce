package client_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client"
	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/tuf"
)

// A clock that is a year off is said to be, nothing is vouched for while it is,
// and all is well when it is right again; in the clear, over TLS, and offline.
func TestClocksThatAreWrong(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for _, c := range []struct {
		name  string
		off   time.Duration
		tls   bool
		alone bool // no server answers
		want  error
		says  []string
	}{
		{"behind", -year, false, false, tuf.ErrClock, []string{"set the clock", "seems to be behind"}},
		{"behind over TLS", -year, true, false, tuf.ErrClock, []string{"set the clock"}},
		{"behind and offline", -year, false, true, tuf.ErrClock, []string{"set the clock"}},
		{"ahead", year, false, false, tuf.ErrExpired, []string{"the clock is ahead", "seems to be ahead"}},
		{"ahead and offline", year, false, true, tuf.ErrOffline, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t)
			hello(s, '1')
			for _, role := range []*map[string]any{&s.Timestamp.Signed.UnrecognizedFields, &s.Snapshot.Signed.UnrecognizedFields} {
				*role = map[string]any{tuf.SignedAtField: time.Now().UTC().Format(time.RFC3339)}
			}
			s.Publish("snapshot", "timestamp")
			cfg := client.Config{Dir: t.TempDir(), Root: s.root, Mirrors: []string{s.url}}
			if c.tls {
				// Its certificate is not valid yet or any more by a clock that wrong;
				// one that nobody vouches for stands for that.
				ts := httptest.NewTLSServer(s.Repo)
				t.Cleanup(ts.Close)
				cfg.Mirrors = []string{ts.URL}
				cfg.HTTP = ts.Client()
			}
			off := time.Duration(0)
			cfg.Now = func() time.Time { return time.Now().Add(off) }
			cl := open(t, cfg)
			if err := cl.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			cl.Close()

			if c.tls {
				cfg.HTTP = nil
			}
			right := cfg.Mirrors
			if c.alone {
				cfg.Mirrors = []string{"http://127.0.0.1:1"}
			}
			off = c.off
			wrong := open(t, cfg)
			err := wrong.Refresh(t.Context())
			if !errors.Is(err, c.want) {
				t.Errorf("refresh: %v, want %v", err, c.want)
			}
			for _, text := range c.says {
				if err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("%v does not say %q", err, text)
				}
			}
			if _, _, err := wrong.Download(t.Context(), patchPath, filepath.Join(t.TempDir(), "f"), client.DownloadOptions{}); !errors.Is(err, tuf.ErrClock) && !errors.Is(err, tuf.ErrExpired) {
				t.Errorf("download: %v", err)
			}
			wrong.Close()

			off, cfg.Mirrors = 0, right
			if c.tls {
				return // nobody vouches for it still
			}
			cl = open(t, cfg)
			if err := cl.Refresh(t.Context()); err != nil {
				t.Errorf("with the right clock: %v", err)
			}
			if _, err := cl.Target(t.Context(), patchPath); err != nil {
				t.Errorf("with the right clock: %v", err)
			}
		})
	}
}

// What a server says the time is makes no metadata valid.
func TestServersDateIsNotBelieved(t *testing.T) {
	s := newServer(t)
	s.Timestamp.Signed.Expires = time.Now().UTC().Truncate(time.Second).Add(-time.Hour)
	s.Publish("timestamp")
	s.setEvil(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Date", time.Now().Add(-24*time.Hour).UTC().Format(http.TimeFormat))
		return false
	})
	c := open(t, client.Config{Root: s.root, Mirrors: []string{s.url}, Fetch: fetch.Options{Stall: time.Minute}})
	err := c.Refresh(t.Context())
	if !errors.Is(err, tuf.ErrExpired) || !strings.Contains(err.Error(), "a server's clock says") {
		t.Errorf("%v", err)
	}
	if _, err := c.Target(t.Context(), patchPath); !errors.Is(err, tuf.ErrExpired) {
		t.Errorf("%v", err)
	}
}
