package access

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const secret = "a-token-of-many-characters"

func request(remote string, headers ...string) *http.Request {
	r := httptest.NewRequest("GET", "/metadata/timestamp.json", nil)
	r.RemoteAddr = remote
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

func tokens(t *testing.T, file string) *Tokens {
	t.Helper()
	list, err := ParseTokens([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestWhoMayComeIn(t *testing.T) {
	shown := &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{Subject: pkix.Name{CommonName: "branch-7"}}}}}
	list := tokens(t, "laptops "+secret+"\n")
	for _, c := range []struct {
		what          string
		rules         Rules
		authorization string
		tls           *tls.ConnectionState
		name          string
		status        int
		challenge     string
	}{
		{"no rules", Rules{}, "", nil, "", 0, ""},
		{"no rules, a token", Rules{}, "Bearer " + secret, nil, "", 0, ""},
		{"the token", Rules{Tokens: list}, "Bearer " + secret, nil, "laptops", 0, ""},
		{"the token, otherwise spelt", Rules{Tokens: list}, "bearer  " + secret + " ", nil, "laptops", 0, ""},
		{"no token", Rules{Tokens: list}, "", nil, "", 401, `Bearer realm="patchkeep"`},
		{"another token", Rules{Tokens: list}, "Bearer " + secret + "x", nil, "", 401, `Bearer realm="patchkeep", error="invalid_token"`},
		{"an empty token", Rules{Tokens: list}, "Bearer ", nil, "", 401, `Bearer realm="patchkeep", error="invalid_token"`},
		{"a huge token", Rules{Tokens: list}, "Bearer " + strings.Repeat("x", 1<<14), nil, "", 401, `Bearer realm="patchkeep", error="invalid_token"`},
		{"a password", Rules{Tokens: list}, "Basic " + secret, nil, "", 401, `Bearer realm="patchkeep"`},
		{"no tokens at all", Rules{Tokens: &Tokens{}}, "Bearer " + secret, nil, "", 401, `Bearer realm="patchkeep", error="invalid_token"`},
		{"a certificate", Rules{Certs: true}, "", shown, "cert:branch-7", 0, ""},
		{"a certificate not verified", Rules{Certs: true}, "", &tls.ConnectionState{PeerCertificates: shown.VerifiedChains[0]}, "", 401, "Certificate"},
		{"no certificate", Rules{Certs: true}, "Bearer " + secret, &tls.ConnectionState{}, "", 401, "Certificate"},
		{"either: certificate", Rules{Certs: true, Tokens: list}, "Bearer wrong", shown, "cert:branch-7", 0, ""},
		{"either: token", Rules{Certs: true, Tokens: list}, "Bearer " + secret, &tls.ConnectionState{}, "laptops", 0, ""},
		{"neither", Rules{Certs: true, Tokens: list}, "", &tls.ConnectionState{}, "", 401, `Bearer realm="patchkeep"`},
	} {
		r := request("192.0.2.1:1")
		if c.authorization != "" {
			r.Header.Set("Authorization", c.authorization)
		}
		r.TLS = c.tls
		v, refusal := New(c.rules, nil).Enter(r)
		v.Leave()
		switch {
		case refusal == nil && (c.status != 0 || v.Name != c.name):
			t.Errorf("%s: let in as %q, want status %d and %q", c.what, v.Name, c.status, c.name)
		case refusal != nil && (refusal.Status != c.status || refusal.Challenge != c.challenge):
			t.Errorf("%s: %+v, want status %d and %q", c.what, refusal, c.status, c.challenge)
		}
	}
}

func TestRefusalSaysNoMoreThanItsStatus(t *testing.T) {
	for _, c := range []struct {
		refusal Refusal
		header  string
		value   string
	}{
		{Refusal{Status: 401, Challenge: "Bearer"}, "Www-Authenticate", "Bearer"},
		{Refusal{Status: 429, RetryAfter: time.Millisecond}, "Retry-After", "1"},
		{Refusal{Status: 429, RetryAfter: 1001 * time.Millisecond}, "Retry-After", "2"},
	} {
		rec := httptest.NewRecorder()
		c.refusal.Write(rec)
		h := rec.Result().Header
		if rec.Code != c.refusal.Status || h.Get(c.header) != c.value || h.Get("Cache-Control") != "no-store" || rec.Body.String() != http.StatusText(rec.Code)+"\n" {
			t.Errorf("%+v: status %d, %v, %q", c.refusal, rec.Code, h, rec.Body)
		}
	}
}

func TestTokenFile(t *testing.T) {
	sum := sha256.Sum256([]byte("another-token-of-many"))
	list := tokens(t, "# comment\n\n laptops \t"+secret+"  \r\nlaptops sha256:"+fmt.Sprintf("%X", sum))
	if list.Len() != 2 {
		t.Errorf("%d tokens", list.Len())
	}
	for text, want := range map[string]string{secret: "laptops", "another-token-of-many": "laptops", "": "", "laptops": "", fmt.Sprintf("%x", sum): "", "sha256:" + fmt.Sprintf("%x", sum): ""} {
		if name, ok := list.Find(text); name != want || ok != (want != "") {
			t.Errorf("%q is the token of %q", text, name)
		}
	}
	if strings.Contains(fmt.Sprintf("%v %+v", list, list), secret) {
		t.Error("the token is kept")
	}
	for what, file := range map[string]string{
		"no name":           secret,
		"three words":       "a b " + secret,
		"short":             "a short",
		"bad name":          "a\x1b[31m " + secret,
		"long name":         strings.Repeat("a", 65) + " " + secret,
		"long token":        "a " + strings.Repeat("a", 1<<13),
		"half a hash":       "a sha256:" + strings.Repeat("a", 32),
		"no hash":           "a sha256:" + strings.Repeat("g", 64),
		"the same twice":    "a " + secret + "\nb " + secret,
		"too long a line":   "a " + strings.Repeat("a", 1<<17),
		"larger than a cap": strings.Repeat("#\n", MaxTokenFile),
	} {
		if _, err := ParseTokens([]byte(file)); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestWhoIsTheClient(t *testing.T) {
	proxies, err := ParseProxies([]string{"10.0.0.0/8", "192.0.2.7", "fd00::/8", "::1"})
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("10.0.0.9, ", 3000)
	for _, c := range []struct {
		remote    string
		forwarded []string
		want      string
		proxied   bool
	}{
		{"198.51.100.1:5", nil, "198.51.100.1", false},
		{"198.51.100.1:5", []string{"203.0.113.1"}, "198.51.100.1", false}, // nobody's proxy
		{"10.1.2.3:5", nil, "10.1.2.3", false},
		{"10.1.2.3:5", []string{"203.0.113.1"}, "203.0.113.1", true},
		{"[::ffff:10.1.2.3]:5", []string{"203.0.113.1"}, "203.0.113.1", true},
		{"10.1.2.3:5", []string{"1.1.1.1, 203.0.113.1, 192.0.2.7,10.9.9.9"}, "203.0.113.1", true},
		{"10.1.2.3:5", []string{"1.1.1.1", "203.0.113.1", "192.0.2.7"}, "203.0.113.1", true},
		{"10.1.2.3:5", []string{"10.0.0.1, 10.0.0.2"}, "10.0.0.1", true}, // proxies all the way
		{"10.1.2.3:5", []string{"203.0.113.1:443"}, "203.0.113.1", true},
		{"10.1.2.3:5", []string{"[2001:db8::1]:443"}, "2001:db8::1", true},
		{"10.1.2.3:5", []string{"[2001:db8::1]"}, "2001:db8::1", true},
		{"10.1.2.3:5", []string{"::ffff:203.0.113.1"}, "203.0.113.1", true},
		{"[::1]:5", []string{"fe80::1%eth0"}, "fe80::1", true},
		{"10.1.2.3:5", []string{"203.0.113.1, evil"}, "10.1.2.3", false},
		{"10.1.2.3:5", []string{"203.0.113.1, , 10.0.0.1"}, "10.0.0.1", true},
		{"10.1.2.3:5", []string{"203.0.113.1", ""}, "203.0.113.1", true},
		{"10.1.2.3:5", []string{"unknown"}, "10.1.2.3", false},
		{"10.1.2.3:5", []string{"203.0.113.1, " + strings.Repeat("9", 5000)}, "10.1.2.3", false},
		{"10.1.2.3:5", []string{"203.0.113.1, " + long + "10.0.0.9"}, "10.0.0.9", true},
		{"@", []string{"203.0.113.1"}, "invalid IP", false},
	} {
		r := request(c.remote)
		r.Header["X-Forwarded-For"] = c.forwarded
		rules := Rules{Proxies: proxies}
		if got, proxied := rules.who(r); got.String() != c.want || proxied != c.proxied {
			t.Errorf("%s, %.60q: %s, proxied %t; want %s, %t", c.remote, c.forwarded, got, proxied, c.want, c.proxied)
		}
	}
	for _, bad := range []string{"", "10.0.0.0/33", "proxy.example.com", "10.0.0.0-10.0.0.9"} {
		if _, err := ParseProxies([]string{bad}); err == nil {
			t.Errorf("%q is taken for a proxy", bad)
		}
	}
	same := func(a, b string) bool { return key(netip.MustParseAddr(a)) == key(netip.MustParseAddr(b)) }
	if !same("2001:db8:1:2::3", "2001:db8:1:2:ffff::") || same("2001:db8:1:2::3", "2001:db8:1:3::3") || same("192.0.2.1", "192.0.2.2") {
		t.Error("clients are not told apart by /64 and by address")
	}
}

// FuzzWho: whatever a stranger writes to the left of what our proxy wrote, he
// is who our proxy says.
func FuzzWho(f *testing.F) {
	for _, s := range []string{"", "1.1.1.1", ",", "10.0.0.1, ", "[::1]:9, x", strings.Repeat(",", 5000)} {
		f.Add(s)
	}
	rules := Rules{Proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	f.Fuzz(func(t *testing.T, forged string) {
		r := request("10.0.0.1:1")
		r.Header["X-Forwarded-For"] = []string{forged, "203.0.113.9"}
		if got, proxied := rules.who(r); got.String() != "203.0.113.9" || !proxied {
			t.Errorf("%q: %v", forged, got)
		}
	})
}

func FuzzTokens(f *testing.F) {
	f.Add([]byte("a "+secret), secret)
	f.Add([]byte("#\n\na sha256:00"), "")
	f.Fuzz(func(_ *testing.T, file []byte, text string) {
		if list, err := ParseTokens(file); err == nil {
			list.Find(text)
		}
	})
}

func TestRequestsAreLimitedByClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Rules{Requests: 2, Burst: 4}, nil)
		enter := func(remote string) *Refusal {
			v, refusal := g.Enter(request(remote))
			v.Leave()
			return refusal
		}
		for i := range 4 {
			if r := enter("192.0.2.1:1"); r != nil {
				t.Fatalf("request %d of a burst of 4: %+v", i+1, r)
			}
		}
		r := enter("192.0.2.1:2")
		if r == nil || r.Status != 429 || r.RetryAfter <= 0 || r.RetryAfter > time.Second/2 {
			t.Fatalf("request after the burst: %+v", r)
		}
		if r := enter("192.0.2.2:1"); r != nil {
			t.Errorf("another client: %+v", r)
		}
		time.Sleep(r.RetryAfter)
		if r := enter("192.0.2.1:1"); r != nil {
			t.Errorf("after the wait that was asked for: %+v", r)
		}
		g.Set(Rules{})
		for range 100 {
			if r := enter("192.0.2.1:1"); r != nil {
				t.Fatalf("without limits: %+v", r)
			}
		}
		g.Set(Rules{Requests: 1, Tokens: tokens(t, "a "+secret)})
		seen := map[int]int{}
		for range 30 {
			seen[enter("192.0.2.3:1").Status]++
		}
		if seen[401] != 10 || seen[429] != 20 {
			t.Errorf("30 guesses at a token: %v", seen)
		}
		if s := g.Stats(); s.Limited != 21 || s.Denied != 10 || s.Clients != 3 {
			t.Errorf("%+v", s)
		}
	})
}

// TestBytesAreSharedByAClient: its connections together have the rate, each
// some of it, and another client has its own.
func TestBytesAreSharedByAClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, size = 1 << 20, 10 << 20
		g := New(Rules{Bytes: rate}, nil)
		start := time.Now()
		var wg sync.WaitGroup
		send := func(remote string, size int64) {
			wg.Go(func() {
				v, refusal := g.Enter(request(remote))
				defer v.Leave()
				if refusal != nil || !v.Limited() {
					t.Errorf("%+v, limited %t", refusal, v.Limited())
				}
				for size > 0 {
					n, err := v.Wait(t.Context(), size, func() {})
					if err != nil || n <= 0 || n > size {
						t.Errorf("%d of %d bytes, %v", n, size, err)
						return
					}
					size -= n
				}
			})
		}
		for range 4 {
			send("192.0.2.1:1", size/4)
		}
		wg.Wait()
		took := time.Since(start).Seconds()
		if took < 9 || took > 11 {
			t.Errorf("four connections got %d bytes in %.1f s at %d a second", size, took, rate)
		}
		start = time.Now()
		send("192.0.2.1:1", size)
		send("192.0.2.2:1", size)
		wg.Wait()
		if took := time.Since(start).Seconds(); took > 11 {
			t.Errorf("two clients share a rate: %.1f s", took)
		}

		// The end of the request ends the wait, and what was waited for is given back.
		v, _ := g.Enter(request("192.0.2.1:1"))
		defer v.Leave()
		ctx, cancel := context.WithCancel(t.Context())
		idled := false
		for {
			if _, err := v.Wait(ctx, 1<<20, func() { idled = true; cancel() }); err != nil {
				break
			}
		}
		if !idled {
			t.Error("it did not say that it waits")
		}
		g.Set(Rules{})
		if n, err := v.Wait(ctx, 1<<30, func() { t.Error("it waits") }); n != 1<<30 || err != nil || v.Limited() {
			t.Errorf("the limit is gone: %d, %v", n, err)
		}
	})
}

// TestStrangersCannotGrowTheTable: nor can they make it forget who is here.
func TestStrangersCannotGrowTheTable(t *testing.T) {
	rules := &Rules{Conns: 1}
	table := newTable(100, rules)
	here := table.hold(netip.MustParseAddr("192.0.2.1"), rules)
	table.connect(here, 1)
	stranger := netip.MustParseAddr("203.0.113.0")
	for range 10_000 {
		stranger = stranger.Next()
		table.release(table.hold(stranger, rules))
	}
	if n := table.len(); n != 100 || len(table.known) != 100 || table.idle.Len() != 99 {
		t.Errorf("%d clients are remembered, %d idle", n, table.idle.Len())
	}
	if c := table.hold(here.addr, rules); c != here || table.connect(c, 1) {
		t.Error("who is here was forgotten")
	}
	if newest := table.hold(stranger, rules); newest.held != 1 || newest.idle != nil {
		t.Error("the last stranger was forgotten before older ones")
	}
	var held []*client
	for range 200 {
		stranger = stranger.Next()
		held = append(held, table.hold(stranger, rules))
	}
	if held[199] != table.rest || held[150] != table.rest || table.len() != 100 {
		t.Errorf("%d clients are remembered though all are here", table.len())
	}
	for _, c := range held {
		table.release(c)
	}
	if table.rest.held != 0 || table.idle.Len() != 98 {
		t.Errorf("%d are held as one, %d idle", table.rest.held, table.idle.Len())
	}
}

func TestProxiedRequestsCountAsConnections(t *testing.T) {
	proxies, err := ParseProxies([]string{"10.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	g := New(Rules{Conns: 2, Proxies: proxies}, nil)
	enter := func(client string) (Visit, *Refusal) {
		return g.Enter(request("10.0.0.1:1", "X-Forwarded-For", client))
	}
	first, r1 := enter("203.0.113.1")
	second, r2 := enter("203.0.113.1")
	third, r3 := enter("203.0.113.1")
	other, r4 := enter("203.0.113.2")
	if r1 != nil || r2 != nil || r3 == nil || r3.Status != 429 || r3.RetryAfter <= 0 || r4 != nil {
		t.Errorf("%v, %v, %+v, %v", r1, r2, r3, r4)
	}
	third.Leave()
	if _, r := enter("203.0.113.1"); r == nil {
		t.Error("a refused request made room")
	}
	first.Leave()
	if v, r := enter("203.0.113.1"); r != nil {
		t.Error("a request that ended made no room")
	} else {
		v.Leave()
	}
	second.Leave()
	other.Leave()
}

// TestNothingAskedNothingDone: a gate without rules costs a request nothing.
func TestNothingAskedNothingDone(t *testing.T) {
	g, r := New(Rules{}, nil), request("192.0.2.1:1")
	if n := testing.AllocsPerRun(100, func() {
		v, _ := g.Enter(r)
		v.Leave()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if g.Stats().Clients != 0 || g.Logs() {
		t.Errorf("%+v", g.Stats())
	}
}

func BenchmarkEnter(b *testing.B) {
	for name, rules := range map[string]Rules{"none": {}, "all": {Requests: 1e9, Conns: 1e6, Bytes: 1 << 40}} {
		b.Run(name, func(b *testing.B) {
			g, r := New(rules, nil), request("192.0.2.1:1")
			b.ReportAllocs()
			for b.Loop() {
				v, _ := g.Enter(r)
				v.Leave()
			}
		})
	}
}
