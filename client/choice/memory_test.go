package choice_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/choice"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func fingerprint(s string) string {
	return choice.Fingerprint([]netip.Prefix{netip.MustParsePrefix(s)})
}

func TestMemoryDecays(t *testing.T) {
	m := choice.ParseMemory(nil)
	home := fingerprint("10.0.0.5/24")
	n := m.On(home, noon)
	n.Latency("http://a", 5*time.Millisecond, noon)
	n.Rate("http://a", 10<<20, time.Second, noon)
	n.Rate("http://a", 30<<20, time.Second, noon)
	n.Rate("http://a", 100, time.Nanosecond, noon) // too little to mean anything
	for range 3 {
		n.Failed("http://b", noon)
	}
	data, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	n = choice.ParseMemory(data).On(home, noon) // as the next run finds it
	for _, c := range []struct {
		after   time.Duration
		a, b    choice.Past
		due     string
		because string
	}{
		{0, choice.Past{Latency: 5 * time.Millisecond, Rate: 20 << 20}, choice.Past{Failing: true}, "http://b", "just now"},
		{3 * time.Minute, choice.Past{Latency: 5 * time.Millisecond, Rate: 20 << 20}, choice.Past{Failing: true}, "http://b", "after the third failure 4 minutes"},
		{5 * time.Minute, choice.Past{Latency: 5 * time.Millisecond, Rate: 20 << 20}, choice.Past{}, "http://b", "it is tried again"},
		{7 * time.Hour, choice.Past{Latency: 5 * time.Millisecond, Rate: 20 << 20}, choice.Past{}, "http://a http://b", "measured again, but used till then"},
		{48 * time.Hour, choice.Past{Latency: 5 * time.Millisecond}, choice.Past{}, "http://a http://b", "rates are of a day"},
		{8 * 24 * time.Hour, choice.Past{}, choice.Past{}, "http://a http://b", "all is forgotten"},
		{-time.Hour, choice.Past{}, choice.Past{}, "http://a http://b", "what lies in the future is a wrong clock's"},
	} {
		now := noon.Add(c.after)
		if a, b := n.Past("http://a", now), n.Past("http://b", now); a != c.a || b != c.b {
			t.Errorf("%s: %+v, %+v", c.because, a, b)
		}
		if due := strings.Join(n.Due([]string{"http://a", "http://b"}, now), " "); due != c.due {
			t.Errorf("%s: due %q, want %q", c.because, due, c.due)
		}
	}
	if !n.Worked("http://b") || n.Worked("http://b") || n.Past("http://b", noon).Failing {
		t.Error("what works is forgiven, once")
	}
	n.Measured = noon
	if due := n.Due([]string{"http://x"}, noon.Add(time.Minute)); due != nil {
		t.Errorf("measured again after a minute: %q", due)
	}
	if other := m.On(fingerprint("192.168.1.2/24"), noon); other.Past("http://a", noon) != (choice.Past{}) {
		t.Error("what was learnt on one network counts on another")
	}
}

func TestMemoryIsBounded(t *testing.T) {
	m := choice.ParseMemory(nil)
	for i := range 100 {
		n := m.On(fingerprint(fmt.Sprintf("10.0.%d.0/24", i)), noon.Add(time.Duration(i)*time.Minute))
		for j := range 500 {
			n.Latency(fmt.Sprintf("http://host-%d", j), time.Second, noon)
		}
	}
	if len(m.Networks) != 16 || m.Networks[fingerprint("10.0.99.0/24")] == nil {
		t.Errorf("%d networks", len(m.Networks))
	}
	data, err := m.Encode()
	if err != nil || len(data) > choice.MaxMemory {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	if again := choice.ParseMemory(data); len(again.Networks) != 16 || again.Seed != m.Seed {
		t.Errorf("%d networks come back", len(again.Networks))
	}
}

func TestRubbishIsForgotten(t *testing.T) {
	print := fingerprint("10.0.0.0/8")
	for _, s := range []string{
		"", "null", "[]", `{"format":2,"seed":"x"}`, `{"format":1,"seed":"short","networks":null}`,
		`{"format":1,"networks":{"` + print + `":null,"x":{}}}`,
		`{"format":1,"networks":{"` + print + `":{"servers":{"http://a":null,"http://b":{"latency_ms":-1},"http://c":{"rate":1e300,"fails":-4}}}}}`,
		`{"format":1,"list":{"format":9}}`,
	} {
		m := choice.ParseMemory([]byte(s))
		if len(m.Seed) != 32 || m.Mirrors() != nil {
			t.Errorf("%s: %+v", s, m)
		}
		n := m.On(print, noon)
		for _, u := range []string{"http://a", "http://b", "http://c"} {
			if p := n.Past(u, noon); p != (choice.Past{}) {
				t.Errorf("%s: %+v", s, p)
			}
		}
	}
}

func FuzzParseMemory(f *testing.F) {
	m := choice.ParseMemory(nil)
	m.On(fingerprint("10.0.0.0/8"), noon).Failed("http://a", noon)
	data, _ := m.Encode()
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		m := choice.ParseMemory(data)
		n := m.On(fingerprint("10.0.0.0/8"), noon)
		choice.Choose(m.Mirrors(), []string{"http://a"}, choice.Here{Seed: m.Seed}, func(url string) choice.Past { return n.Past(url, noon) })
		if out, err := m.Encode(); err != nil || len(choice.ParseMemory(out).Networks) != len(m.Networks) {
			t.Errorf("%s: %v", out, err)
		}
	})
}

func TestFingerprint(t *testing.T) {
	p := func(s ...string) (all []netip.Prefix) {
		for _, x := range s {
			all = append(all, netip.MustParsePrefix(x))
		}
		return all
	}
	home := choice.Fingerprint(p("192.168.1.5/24", "2001:db8::1234/64"))
	for _, c := range []struct {
		name  string
		addrs []netip.Prefix
		same  bool
	}{
		{"another lease", p("192.168.1.77/24", "2001:db8::9999/64"), true},
		{"another order, and a second address", p("2001:db8::1/64", "2001:db8::2/64", "192.168.1.5/24"), true},
		{"another network", p("192.168.2.5/24", "2001:db8::1234/64"), false},
		{"a VPN beside it", p("192.168.1.5/24", "2001:db8::1234/64", "10.8.0.2/32"), false},
		{"nothing", nil, false},
	} {
		if got := choice.Fingerprint(c.addrs) == home; got != c.same {
			t.Errorf("%s: the same: %t", c.name, got)
		}
	}
	if addrs, err := choice.Addresses(); err != nil || len(addrs) == 0 {
		t.Errorf("this machine: %v, %v", addrs, err)
	}
}
