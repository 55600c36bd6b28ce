package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/mirror/cache"
	"github.com/patchkeep/patchkeep/mirror/fill"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// busy is a mirror in the middle of a bad night.
func busy() *mirror.Status {
	return &mirror.Status{
		Reasons:  []string{"role timestamp expired at 2026-11-24T09:00:00Z"},
		Warnings: []string{"upstream https://a: no usable metadata since 2026-11-22T12:00:00Z: no route to host"},
		Now:      noon, Started: noon.Add(-76 * time.Hour),
		View: &mirror.ViewStatus{
			Root: 2, Timestamp: 120, Snapshot: 34, Roles: 14, Objects: 230,
			Since: noon.Add(-48 * time.Hour), Changed: noon.Add(-50 * time.Hour), Confirmed: noon.Add(-48 * time.Hour),
		},
		Roles: []mirror.RoleStatus{
			{Name: "timestamp", Version: 120, Expires: noon.Add(-3 * time.Hour)},
			{Name: "snapshot", Version: 34, Expires: noon.Add(28 * time.Hour)},
		},
		Cache:   cache.Stats{Objects: 431, Bytes: 20 << 30, Max: 50 << 30, Evicted: 12, Pinned: 2 << 30, Parts: 1, PartBytes: 1 << 20, Free: 9 << 30},
		Fills:   fill.Stats{Done: 230, Failed: 2, Transfer: 1, Queued: 1, Waiting: 240},
		Served:  mirror.Served{Hits: 1234, Joins: 40, Misses: 12, Sent: 1 << 40, Received: 1 << 35, Saved: 1<<40 - 1<<35},
		Clients: mirror.ClientStatus{Connections: 243},
		Line:    &mirror.LineStatus{Limit: 5 << 20},
		Progress: []fill.Progress{
			{Object: "targets/app/" + strings.Repeat("ab", 32) + ".queued.msi", Length: 1 << 20},
			{Object: "targets/office.msi", Bytes: 299 << 20, Length: 300 << 20, Waiting: 239, Begun: noon.Add(-time.Minute), Rate: 5 << 20, ETA: noon.Add(61 * time.Second), From: "https://b"},
		},
		Prefill: []mirror.PrefillStatus{
			{Ring: "servers", Objects: 2, Cached: 2, Bytes: 1 << 20, CachedBytes: 1 << 20},
			{Ring: "users", Objects: 3, Cached: 1, Bytes: 3 << 30, CachedBytes: 1 << 30, Next: "patches/office.msi", NextAt: noon.Add(9 * time.Hour)},
		},
		Upstreams: []mirror.UpstreamStatus{
			{SourceStats: fill.SourceStats{Name: "https://a"}, State: mirror.StateDown, Answered: noon.Add(-48 * time.Hour), MetadataError: "no route to host"},
			{SourceStats: fill.SourceStats{Name: "https://b", RestsTill: noon.Add(30 * time.Second), LastError: "cut", FailedAt: noon.Add(-5 * time.Second), Errors: 3}, State: mirror.StateResting, Answered: noon},
		},
		Siblings: []mirror.SiblingStatus{{SourceStats: fill.SourceStats{Name: "http://sib", Bytes: 1 << 30, Transfers: 7}, State: mirror.StateUp}},
	}
}

// TestStatusPage: what is wrong comes first, and every figure is there.
func TestStatusPage(t *testing.T) {
	var out bytes.Buffer
	if err := printStatus(&out, busy(), noon); err != nil {
		t.Fatal(err)
	}
	page := out.String()
	at := 0
	for _, want := range []string{
		"State:    DEGRADED\n",
		"Reason:   role timestamp expired at 2026-11-24T09:00:00Z\n",
		"Warning:  upstream https://a: no usable metadata",
		"View:     timestamp 120, snapshot 34, root 2; 14 roles, 230 objects\n",
		"confirmed 2d ago, changed 2d 2h ago\n",
		"Expires:  timestamp 3h ago\n",
		"Cache:    [########------------] 40 % of 50 GiB; 431 objects, 12 evicted, 2.0 GiB pinned; 1.0 MiB in 1 unfinished; 9.0 GiB of the disk free\n",
		"Served:   1.0 TiB sent, 32 GiB received, 96 % saved; 1234 hits, 40 joined a fill, 12 began one\n",
		"Fills:    1 under way, 1 queued, 240 requests waiting; 230 done, 2 failed\n",
		"Line:     5.0 MiB/s now\n",
		"Clients:  243 connections\n",
		"Started:  3d 4h ago\n",
		"FILLING ", "office.msi      99 %  300 MiB  5.0 MiB/s  1m 1s  239      https://b\n",
		"app/queued.msi  0 %   1.0 MiB  -          -      0        queued\n",
		"PREFILL OF RING  CACHED  PATCHES  BYTES               NEXT\n",
		"servers          100 %   2 of 2   1.0 MiB of 1.0 MiB  -\n",
		"users            33 %    1 of 3   1.0 GiB of 3.0 GiB  patches/office.msi, wanted in 9h\n",
		"ROLE       VERSION  EXPIRES   AT\n",
		"timestamp  120      3h ago    2026-11-24 09:00 UTC\n",
		"snapshot   34       in 1d 4h  2026-11-25 16:00 UTC\n",
		"UPSTREAM   STATE", "https://a  down             2d ago", "https://b  resting for 30s",
		"  https://a: no route to host\n", "  https://b: 5s ago: cut\n",
		"SIBLING ", "http://sib  up     7",
	} {
		i := strings.Index(page[at:], want)
		if i < 0 {
			t.Fatalf("%q is not where it belongs:\n%s", want, page)
		}
		at += i
	}
}

// TestStatusPageOfStrangers: whatever a mirror answers, the terminal is safe and
// the page has an end.
func TestStatusPageOfStrangers(t *testing.T) {
	evil := "\x1b]0;owned\a\x1b[2J\tx\ny\u202e"
	st := busy()
	st.Reasons, st.Warnings = []string{evil}, []string{evil}
	st.Roles[0].Name, st.Progress[1].Object, st.Progress[1].From = evil, evil, evil
	st.Progress[1].Rate, st.Progress[1].Bytes = 1e300, -5
	st.Upstreams[0].Name, st.Upstreams[0].MetadataError, st.Upstreams[0].State = evil, evil, mirror.SourceState(evil)
	st.Siblings[0].Name, st.Siblings[0].LastError, st.Siblings[0].Bytes = evil, evil, -1
	st.Prefill[1].Ring, st.Prefill[1].Next, st.Prefill[1].Bytes = evil, evil, -1
	st.Cache.Bytes = -1
	for range 1000 {
		st.Warnings = append(st.Warnings, evil)
		st.Roles = append(st.Roles, st.Roles[0])
		st.Progress = append(st.Progress, st.Progress[1])
		st.Upstreams = append(st.Upstreams, st.Upstreams[0])
		st.Siblings = append(st.Siblings, st.Siblings[0])
	}
	for _, st := range []*mirror.Status{st, {}, {Now: time.Unix(0, 0), Line: &mirror.LineStatus{Paused: true}}} {
		var out bytes.Buffer
		if err := printStatus(&out, st, noon); err != nil {
			t.Fatal(err)
		}
		page := out.String()
		if strings.ContainsAny(page, "\x1b\a\t\u202e") || strings.Count(page, "\n") > 250 {
			t.Errorf("%d lines: %q", strings.Count(page, "\n"), page[:min(len(page), 2000)])
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 59 * time.Second: "59s", time.Minute: "1m", 61 * time.Second: "1m 1s",
		time.Hour: "1h", 25*time.Hour + 59*time.Minute: "1d 1h", 24*time.Hour + time.Minute: "1d", 1<<63 - 1: "106751d 23h",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%v) is %q, want %q", d, got, want)
		}
	}
}

// answering is a mirror that always answers the same.
func answering(st *mirror.Status, check func(r *http.Request) int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code := http.StatusOK
		if !st.Ready {
			code = http.StatusServiceUnavailable
		}
		if check != nil {
			if c := check(r); c != 0 {
				code = c
			}
		}
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(st)
	})
}

func TestStatusExitCodes(t *testing.T) {
	healthy := busy()
	healthy.Ready, healthy.Reasons = true, nil
	empty := &mirror.Status{Reasons: []string{"no view"}}
	for name, c := range map[string]struct {
		st   *mirror.Status
		code int
		says string
	}{
		"ready":   {healthy, cli.OK, ""},
		"expired": {busy(), cli.Expired, "role timestamp expired"},
		"empty":   {empty, cli.Offline, "nothing to serve"},
	} {
		srv := httptest.NewServer(answering(c.st, nil))
		for _, args := range [][]string{{"status", srv.URL}, {"status", srv.URL + "/", "--json"}} {
			var out bytes.Buffer
			code, stderr := execute(t.Context(), &out, args...)
			if code != c.code || !strings.Contains(stderr, c.says) || out.Len() == 0 {
				t.Errorf("%s: exit code %d, want %d: %s%s", name, code, c.code, stderr, out.String())
			}
		}
		srv.Close()
	}
}

// TestStatusWhoAsks: the token and the certificate go to the mirror that was
// named, and nowhere else.
func TestStatusWhoAsks(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	token := file("token", []byte("s3cret\n"))
	st := busy()
	st.Ready = true
	srv := httptest.NewUnstartedServer(answering(st, func(r *http.Request) int {
		if r.Header.Get("Authorization") == "Bearer s3cret" || len(r.TLS.PeerCertificates) == 1 {
			return 0
		}
		return http.StatusUnauthorized
	}))
	srv.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	ca := file("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
	cert, key := certificate(t, file)

	var stolen []string
	thief := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		stolen = append(stolen, r.Header.Get("Authorization"))
	}))
	defer thief.Close()
	redirect := httptest.NewServer(http.RedirectHandler(thief.URL, http.StatusFound))
	defer redirect.Close()

	for _, c := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"token", []string{srv.URL, "--ca", ca, "--token-file", token}, cli.OK, ""},
		{"certificate", []string{srv.URL, "--ca", ca, "--cert", cert, "--key", key}, cli.OK, ""},
		{"neither", []string{srv.URL, "--ca", ca}, cli.Failure, "--token-file"},
		{"unknown authority", []string{srv.URL, "--token-file", token}, cli.Offline, "certificate"},
		{"token in the clear", []string{"http://mirror.example", "--token-file", token}, cli.Usage, "https://"},
		{"redirected", []string{redirect.URL, "--token-file", token}, cli.Failure, "status 302"},
		{"half a certificate", []string{srv.URL, "--cert", cert}, cli.Usage, "--key"},
		{"authority over http", []string{"http://localhost", "--ca", ca}, cli.Usage, "https://"},
		{"no such token", []string{srv.URL, "--token-file", token + "x"}, cli.Failure, "no such file"},
		{"two tokens", []string{srv.URL, "--token-file", file("two", []byte("a\nb\n"))}, cli.Usage, "one token"},
		{"huge token", []string{srv.URL, "--token-file", file("huge", make([]byte, maxToken+1))}, cli.Failure, "longer than"},
		{"no authority", []string{srv.URL, "--ca", token}, cli.Usage, "no certificate"},
		{"no terminal", []string{srv.URL, "--watch"}, cli.Usage, "terminal"},
	} {
		code, stderr := execute(t.Context(), io.Discard, append([]string{"status"}, c.args...)...)
		if code != c.code || !strings.Contains(stderr, c.says) || strings.Contains(stderr, "s3cret") {
			t.Errorf("%s: exit code %d, want %d: %s", c.name, code, c.code, stderr)
		}
	}
	if len(stolen) > 0 {
		t.Errorf("the token went on to %q", stolen)
	}
}

// TestStatusOfAClosedMirror: a real one that lets in who has a token only.
func TestStatusOfAClosedMirror(t *testing.T) {
	dir, root := repository(t)
	server, client := filepath.Join(t.TempDir(), "tokens"), filepath.Join(t.TempDir(), "token")
	const token = "correct-horse-battery-staple"
	if err := errors.Join(os.WriteFile(server, []byte("anna "+token+"\n"), 0o600), os.WriteFile(client, []byte(token+"\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	base, stop, wait := start(t, "--upstream", dir, "--root", root, "--token-file", server)
	var out bytes.Buffer
	if code, stderr := execute(t.Context(), &out, "status", base, "--token-file", client); code != cli.OK || !strings.Contains(out.String(), "State:    ready") {
		t.Errorf("with the token: exit code %d: %s%s", code, out.String(), stderr)
	}
	if code, stderr := execute(t.Context(), io.Discard, "status", base); code != cli.Failure || !strings.Contains(stderr, "--token-file") {
		t.Errorf("without it: exit code %d: %s", code, stderr)
	}
	stop()
	if code := wait(); code != cli.OK {
		t.Errorf("serve ended with %d", code)
	}
}

// certificate makes one that signs itself, and its key.
func certificate(t *testing.T, file func(string, []byte) string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return file("cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		file("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

// pages cuts what watch writes into what is seen at a time, and ends it.
type pages struct {
	all  []string
	ends int
	stop func()
}

func (p *pages) Write(b []byte) (int, error) {
	if s := string(b); strings.HasPrefix(s, "\x1b[H") {
		if p.all = append(p.all, s); len(p.all) == p.ends {
			p.stop()
		}
	}
	return len(b), nil
}

// TestWatch: it goes on whatever the mirror answers, keeps to the screen, and
// ends well when it is interrupted.
func TestWatch(t *testing.T) {
	asked := 0
	srv := httptest.NewServer(answering(busy(), func(*http.Request) int {
		if asked++; asked == 2 {
			return http.StatusInternalServerError
		}
		return 0
	}))
	defer srv.Close()
	a, err := (&statusOptions{}).asker(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	p := &pages{ends: 3, stop: stop}
	if err := rewrite(ctx, p, a, time.Millisecond, func() (int, int) { return 40, 12 }); err != nil {
		t.Fatal(err)
	}
	if len(p.all) != 3 || !strings.Contains(p.all[0], "DEGRADED") || !strings.Contains(p.all[1], "status 500") || !strings.Contains(p.all[2], "DEGRADED") {
		t.Fatalf("pages: %q", p.all)
	}
	for _, page := range p.all {
		lines := strings.Split(strings.TrimSuffix(strings.TrimPrefix(page, "\x1b[H"), "\x1b[J"), "\x1b[K\n")
		if len(lines) > 12 {
			t.Errorf("%d lines", len(lines))
		}
		for _, l := range lines {
			if len([]rune(l)) > 40 || strings.Contains(l, "\n") {
				t.Errorf("line %q", l)
			}
		}
	}
}
