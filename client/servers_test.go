package client_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client"
	"github.com/patchkeep/patchkeep/client/choice"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/mirrors"
)

// place is where a machine is; it moves when it is told to.
type place struct{ at atomic.Pointer[string] }

func (p *place) move(address string) { p.at.Store(&address) }

func (p *place) addresses() ([]netip.Prefix, error) {
	return []netip.Prefix{netip.MustParsePrefix(*p.at.Load())}, nil
}

func at(address string) *place {
	p := &place{}
	p.move(address)
	return p
}

// another serves the same repository at another URL.
func (s *server) another(t *testing.T) *server {
	o := &server{Repo: s.Repo, root: s.root}
	o.url = serveHonest(t, o)
	return o
}

// listMirrors publishes a list, signed by role.
func listMirrors(s *server, role string, doc []byte) {
	if s.Targets[role] == nil {
		s.Delegate("targets", tuftest.Delegation{Role: role, Paths: layout.MirrorsPatterns(), Terminating: true})
	}
	s.AddArtifact(role, layout.MirrorsPath, doc)
	s.PublishAll()
}

func listOf(t *testing.T, m ...mirrors.Mirror) []byte {
	data, err := (&mirrors.List{Format: 1, Mirrors: m}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func network(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }

func TestMirrorOfTheNetworkIsAsked(t *testing.T) {
	origin := newServer(t)
	data := hello(origin, '1')
	berlin, paris := origin.another(t), origin.another(t)
	listMirrors(origin, layout.RoleMirrors, listOf(t,
		mirrors.Mirror{URL: origin.url, Origin: true},
		mirrors.Mirror{URL: berlin.url, Networks: network("10.1.0.0/16")},
		mirrors.Mirror{URL: paris.url, Networks: network("10.2.0.0/16")},
	))
	here := at("10.1.2.3/24")
	cfg := client.Config{Dir: t.TempDir(), Root: origin.root, Mirrors: []string{origin.url}, MachineID: "m", Addresses: here.addresses}
	c := open(t, cfg)
	asked := func() (o, b, p int64) {
		return origin.requests.Swap(0), berlin.requests.Swap(0), paris.requests.Swap(0)
	}
	download := func(c *client.Client) {
		t.Helper()
		dest := filepath.Join(t.TempDir(), "f")
		if err := c.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Download(t.Context(), patchPath, dest, client.DownloadOptions{}); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(dest); !bytes.Equal(got, data) {
			t.Fatal("wrong file")
		}
	}
	if err := c.Refresh(t.Context()); err != nil { // who knows no list asks whom it knows
		t.Fatal(err)
	}
	if o, b, p := asked(); o == 0 || b+p != 0 {
		t.Errorf("first refresh: %d, %d, %d requests", o, b, p)
	}
	download(c)
	if o, b, p := asked(); o != 0 || b == 0 || p != 0 {
		t.Errorf("in Berlin: %d, %d, %d requests", o, b, p)
	}
	c.Close()

	// The next run knows it from the first request on, in Paris too, also when
	// what it has is expired.
	here.move("10.2.2.3/24")
	cfg.Now = func() time.Time { return time.Now() }
	c = open(t, cfg)
	download(c)
	if o, b, p := asked(); o != 0 || b != 0 || p == 0 {
		t.Errorf("in Paris: %d, %d, %d requests", o, b, p)
	}

	// A mirror that fails is left, and that is remembered; nobody asks Berlin's.
	broken := func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusInternalServerError)
		return true
	}
	paris.setEvil(broken)
	download(c)
	if o, b, p := asked(); o == 0 || b != 0 || p == 0 {
		t.Errorf("Paris is down: %d, %d, %d requests", o, b, p)
	}
	c.Close()
	c = open(t, cfg)
	download(c)
	if o, b, p := asked(); o == 0 || b+p != 0 {
		t.Errorf("Paris is remembered as down: %d, %d, %d requests", o, b, p)
	}
	c.Close()
	paris.setEvil(func(http.ResponseWriter, *http.Request) bool { return false })
	cfg.Now = func() time.Time { return time.Now().Add(time.Hour) }
	c = open(t, cfg)
	download(c)
	if o, b, p := asked(); o != 0 || b != 0 || p == 0 {
		t.Errorf("Paris is up again: %d, %d, %d requests", o, b, p)
	}
	c.Close()

	// With all else gone, another network's mirror will do.
	origin.setEvil(broken)
	paris.setEvil(broken)
	c = open(t, cfg)
	download(c)
	if _, b, _ := asked(); b == 0 {
		t.Error("the last mirror was not asked")
	}
}

// Whoever holds the key for the list, or lacks it, can take no server away, and
// has nothing asked that is on this machine.
func TestHostileLists(t *testing.T) {
	var trap atomic.Int64
	count := func(w http.ResponseWriter, _ *http.Request) bool { trap.Add(1); w.WriteHeader(404); return true }
	many := func(n int, url string) string {
		var all []string
		for i := range n {
			all = append(all, fmt.Sprintf(`{"url":"%s/%d","networks":["0.0.0.0/0"]}`, url, i))
		}
		return `{"format":1,"mirrors":[` + strings.Join(all, ",") + `]}`
	}
	for _, c := range []struct {
		name string
		role string
		list func(evil string) string
		used bool
		most int64 // requests that the evil server sees
	}{
		{"signed by another role", "product-hello", func(evil string) string { return many(1, evil) }, false, 0},
		{"ten thousand", layout.RoleMirrors, func(evil string) string { return many(10_000, evil) }, false, 0},
		{"no JSON", layout.RoleMirrors, func(string) string { return "<html>" }, false, 0},
		{"with a password", layout.RoleMirrors, func(evil string) string {
			return fmt.Sprintf(`{"format":1,"mirrors":[{"url":"%s"}]}`, strings.Replace(evil, "://", "://u:p@", 1))
		}, false, 0},
		{"the cloud's metadata", layout.RoleMirrors, func(string) string { return `{"format":1,"mirrors":[{"url":"http://169.254.169.254"}]}` }, false, 0},
		{"a file", layout.RoleMirrors, func(string) string { return `{"format":1,"mirrors":[{"url":"file:///etc/passwd"}]}` }, false, 0},
		{"a thousand, all near", layout.RoleMirrors, func(evil string) string { return many(1000, evil) }, true, 100},
		{"of a newer format", layout.RoleMirrors, func(evil string) string { return `{"format":2,"mirrors":[]}` }, false, 0},
		{"empty", layout.RoleMirrors, func(evil string) string { return `{"format":1,"mirrors":[]}` }, true, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			trap.Store(0)
			s := newServer(t)
			hello(s, '1')
			evil := s.another(t)
			evil.setEvil(count)
			if c.role != layout.RoleMirrors {
				s.Delegate("targets", tuftest.Delegation{Role: "other", Paths: layout.MirrorsPatterns(), Terminating: true})
				listMirrors(s, "other", []byte(c.list(evil.url)))
			} else {
				listMirrors(s, c.role, []byte(c.list(evil.url)))
			}
			cl := open(t, client.Config{Dir: t.TempDir(), Root: s.root, Mirrors: []string{s.url}, Addresses: at("10.0.0.1/8").addresses})
			for range 2 {
				if err := cl.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if _, _, err := cl.Download(t.Context(), patchPath, filepath.Join(t.TempDir(), "f"), client.DownloadOptions{}); err != nil {
				t.Fatal(err)
			}
			if n := trap.Load(); n > c.most {
				t.Errorf("%d requests", n)
			}
			servers := cl.Servers()
			if len(servers) > 1+choice.MaxListed || (len(servers) > 1) != (c.used && c.most > 0) {
				t.Errorf("%d servers", len(servers))
			}
		})
	}
}

// Two servers given at enrolment share downloads if they are as near as each
// other, and what that takes to find out is asked once.
func TestMeasuringIsRare(t *testing.T) {
	s := newServer(t)
	hello(s, '1')
	other := s.another(t)
	dir := t.TempDir()
	cfg := client.Config{Dir: dir, Root: s.root, Mirrors: []string{s.url, other.url}, Addresses: at("10.0.0.1/8").addresses}
	for process := range 2 {
		c := open(t, cfg)
		for poll := range 2 {
			s.requests.Store(0)
			s.bytes.Store(0)
			other.requests.Store(0)
			if err := c.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			first := process == 0 && poll == 0
			if n := other.requests.Load(); n > 1 || !first && n > 0 {
				t.Errorf("process %d, poll %d: %d requests to the second server", process, poll, n)
			}
			if r, b := s.requests.Load(), s.bytes.Load(); !first && (r > 2 || b > 1000) {
				t.Errorf("process %d, poll %d: %d requests, %d bytes", process, poll, r, b)
			}
		}
		for _, srv := range c.Servers() {
			if srv.Past.Latency <= 0 || srv.Past.Latency > time.Minute {
				t.Errorf("%s: %+v", srv.URL, srv.Past)
			}
		}
		c.Close()
	}
	data, err := os.ReadFile(filepath.Join(dir, "documents", "servers.json"))
	if err != nil || !json.Valid(data) {
		t.Errorf("%s, %v", data, err)
	}
}

// A laptop that is carried out of the office in the middle of a download goes on
// by the mirror of where it is, with what came before.
func TestNetworkChangesInADownload(t *testing.T) {
	origin := newServer(t)
	data := hello(origin, '1')
	office, home := origin.another(t), origin.another(t)
	listMirrors(origin, layout.RoleMirrors, listOf(t,
		mirrors.Mirror{URL: origin.url, Origin: true},
		mirrors.Mirror{URL: office.url, Networks: network("10.0.0.0/8")},
		mirrors.Mirror{URL: home.url, Networks: network("192.168.0.0/16")},
	))
	here := at("10.0.0.7/24")
	c := open(t, client.Config{Dir: t.TempDir(), Root: origin.root, Mirrors: []string{origin.url}, Addresses: here.addresses})
	if err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The office's mirror sends 3 MiB, then the lid is closed and the cable pulled.
	office.setEvil(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, ".hello.bin") {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		w.Write(data[:3<<20])
		http.NewResponseController(w).Flush()
		here.move("192.168.1.20/24")
		<-r.Context().Done()
		return true
	})
	home.setEvil(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, ".hello.bin") {
			return false
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data)) // it knows ranges
		return true
	})
	origin.requests.Store(0)
	dest := filepath.Join(t.TempDir(), "f")
	_, res, err := c.Download(t.Context(), patchPath, dest, client.DownloadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(dest); !bytes.Equal(got, data) {
		t.Error("wrong file")
	}
	if len(res.From()) != 2 || res.Bytes > int64(len(data))+2<<20 {
		t.Errorf("%d bytes from %q: it did not go on", res.Bytes, res.From())
	}
	if origin.requests.Load() > 0 {
		t.Error("the origin was asked, with a mirror at hand")
	}
	if first := c.Servers()[0]; first.URL != home.url || first.Class != choice.Near {
		t.Errorf("first is %+v", first)
	}
}

// What fails for everyone is the network, and counts against nobody.
func TestNetworkDownIsNobodysFault(t *testing.T) {
	s := newServer(t)
	other := s.another(t)
	down := atomic.Bool{}
	for _, x := range []*server{s, other} {
		x.setEvil(func(w http.ResponseWriter, _ *http.Request) bool {
			if down.Load() {
				w.WriteHeader(http.StatusBadGateway)
			}
			return down.Load()
		})
	}
	c := open(t, client.Config{Root: s.root, Mirrors: []string{s.url, other.url}, Addresses: at("10.0.0.1/8").addresses})
	for _, isDown := range []bool{false, true, false} {
		down.Store(isDown)
		if err := c.Refresh(t.Context()); errors.Is(err, tuf.ErrOffline) != isDown {
			t.Fatal(err)
		}
	}
	for _, srv := range c.Servers() {
		if srv.Past.Failing {
			t.Errorf("%s is blamed", srv.URL)
		}
	}
}

// Servers that are known to be as near as each other are asked at once.
func TestEqualServersShareADownload(t *testing.T) {
	s := newServer(t)
	hello(s, '1')
	data := bytes.Repeat([]byte{'2'}, 12<<20) // one server is enough for what is smaller
	s.AddArtifact("product-hello", patchPath, data)
	s.AddArtifact("product-hello", layout.BlocksPath(patchPath), blockList(data))
	s.PublishAll()
	other := s.another(t)
	var waiting atomic.Int64
	both := make(chan struct{})
	for _, x := range []*server{s, other} {
		var once sync.Once
		x.setEvil(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, ".hello.bin") {
				return false
			}
			once.Do(func() {
				if waiting.Add(1) == 2 {
					close(both)
				}
			})
			select {
			case <-both:
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
			case <-r.Context().Done():
			}
			return true
		})
	}
	here := at("10.0.0.1/8")
	addresses, _ := here.addresses()
	memory := choice.ParseMemory(nil)
	n := memory.On(choice.Fingerprint(addresses), time.Now())
	n.Latency(s.url, 3*time.Millisecond, time.Now())
	n.Latency(other.url, 4*time.Millisecond, time.Now())
	known, err := memory.Encode()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "documents"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "documents", "servers.json"), known, 0o600); err != nil {
		t.Fatal(err)
	}
	patient := quick
	patient.Stall = time.Minute // who is asked alone waits for so long
	c := open(t, client.Config{Dir: dir, Root: s.root, Mirrors: []string{s.url, other.url}, Addresses: here.addresses, Fetch: patient})
	_, res, err := c.Download(t.Context(), patchPath, filepath.Join(t.TempDir(), "f"), client.DownloadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, src := range res.Sources {
		if src.Err != nil || !src.Gave {
			t.Errorf("%+v: they were not asked at once", src)
		}
	}
}
