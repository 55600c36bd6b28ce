package choice_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/patchkeep/patchkeep/client/choice"
	"github.com/patchkeep/patchkeep/repo/mirrors"
)

func mirror(url string, networks ...string) mirrors.Mirror {
	m := mirrors.Mirror{URL: url}
	for _, n := range networks {
		m.Networks = append(m.Networks, netip.MustParsePrefix(n))
	}
	return m
}

func origin(url string) mirrors.Mirror { return mirrors.Mirror{URL: url, Origin: true} }

func in(region string, m mirrors.Mirror) mirrors.Mirror {
	m.Region = region
	return m
}

func list(m ...mirrors.Mirror) *mirrors.List {
	return &mirrors.List{Format: 1, Mirrors: m}
}

func urls(o choice.Order) string {
	var s []string
	for _, srv := range o.Servers {
		s = append(s, strings.TrimPrefix(srv.URL, "http://"))
	}
	return strings.Join(s, " ")
}

func TestChoose(t *testing.T) {
	ms := func(n int) choice.Past { return choice.Past{Latency: time.Duration(n) * time.Millisecond} }
	down := func(n int) choice.Past {
		return choice.Past{Latency: time.Duration(n) * time.Millisecond, Failing: true}
	}
	for _, c := range []struct {
		name     string
		list     *mirrors.List
		enrolled string
		addrs    string
		past     map[string]choice.Past
		want     string
		peers    int
	}{
		{"no list: as enrolled", nil, "b a c", "", nil, "b a c", 1},
		{"no list, measured: still as enrolled", nil, "b a", "", map[string]choice.Past{"b": ms(100), "a": ms(1)}, "b a", 1},
		{"no list, equally near: peers", nil, "b a", "", map[string]choice.Past{"b": ms(12), "a": ms(1)}, "b a", 2},
		{"a branch mirror and a far origin are no peers", nil, "branch origin", "", map[string]choice.Past{"branch": ms(1), "origin": ms(40)}, "branch origin", 1},
		{"one that is not measured is no peer", nil, "b a", "", map[string]choice.Past{"b": ms(1)}, "b a", 1},
		{"two near ones before a far one", nil, "a b c", "", map[string]choice.Past{"a": ms(1), "b": ms(2), "c": ms(90)}, "a b c", 2},
		{"what fails comes last", nil, "a b", "", map[string]choice.Past{"a": down(1), "b": ms(50)}, "b a", 1},
		{"the same twice", nil, "a a a", "", nil, "a", 1},
		{"nothing at all", nil, "", "", nil, "", 0},

		{"by network", list(mirror("x", "10.2.0.0/16"), mirror("y", "10.1.0.0/16"), origin("o")), "o", "10.1.2.3", nil, "y o x", 1},
		{"the longest prefix", list(mirror("x", "10.0.0.0/8"), mirror("y", "10.1.0.0/16"), mirror("z", "10.1.2.0/24")), "o", "10.1.2.3", nil, "z y x o", 1},
		{"by any address", list(mirror("x", "10.2.0.0/16"), mirror("y", "192.168.7.0/24")), "o", "172.16.0.1 192.168.7.9", nil, "y o x", 1},
		{"IPv6", list(mirror("x", "2001:db8:1::/48"), mirror("y", "2001:db8:2::/48")), "o", "2001:db8:2::9", nil, "y o x", 1},
		{"IPv4 in IPv6 is IPv4", list(mirror("x", "10.0.0.0/8")), "o", "::ffff:10.1.2.3", nil, "x o", 1},
		{"everybody's IPv4 holds no IPv6", list(mirror("x", "0.0.0.0/0")), "o", "2001:db8::1", nil, "o x", 1},
		{"network, region, all, origin, elsewhere", list(
			origin("o"), mirror("all"), in("eu", mirror("region")), in("us", mirror("far")), mirror("near", "10.0.0.0/8"), mirror("not-mine", "10.9.0.0/16", "172.16.0.0/12"),
		), "e", "10.1.1.1", nil, "near region e all far o not-mine", 1},
		{"an origin is one also in its network", list(in("eu", mirrors.Mirror{URL: "http://o", Origin: true, Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}), mirror("all")), "o", "10.1.1.1", nil, "all o", 1},
		{"enrolled and listed: as listed", list(mirror("e", "10.0.0.0/8"), mirror("x", "172.16.0.0/12")), "e x", "172.16.0.9", nil, "x e", 1},
		{"measured within a class only", list(mirror("near", "10.0.0.0/8"), mirror("all")), "", "10.0.0.1", map[string]choice.Past{"near": ms(90), "all": ms(1)}, "near all", 1},
		{"nearest first", list(mirror("x"), mirror("y"), mirror("z")), "", "", map[string]choice.Past{"x": ms(80), "y": ms(30), "z": ms(1)}, "z y x", 1},
		{"not measured after measured", list(mirror("x"), mirror("y")), "", "", map[string]choice.Past{"y": ms(300)}, "y x", 1},
		{"a slow one after a fast one", list(mirror("x"), mirror("y")), "", "", map[string]choice.Past{"x": {Latency: time.Millisecond, Rate: 50e3}, "y": {Latency: time.Millisecond, Rate: 10e6}}, "y x", 1},
		{"failing near ones after the origin, before others'", list(mirror("near", "10.0.0.0/8"), origin("o"), mirror("other", "172.16.0.0/12")), "", "10.0.0.1", map[string]choice.Past{"near": down(1)}, "o near other", 1},
		{"all fail: in their order", list(mirror("near", "10.0.0.0/8"), origin("o"), mirror("all")), "", "10.0.0.1", map[string]choice.Past{"near": down(1), "o": down(1), "all": down(1)}, "near all o", 1},
	} {
		var enrolled []string
		for _, e := range strings.Fields(c.enrolled) {
			enrolled = append(enrolled, "http://"+e)
		}
		here := choice.Here{Region: "eu", Seed: "seed"}
		for _, a := range strings.Fields(c.addrs) {
			here.Addrs = append(here.Addrs, netip.MustParseAddr(a))
		}
		if c.list != nil {
			for i := range c.list.Mirrors {
				m := &c.list.Mirrors[i]
				m.URL = "http://" + strings.TrimPrefix(m.URL, "http://")
			}
		}
		got := choice.Choose(c.list, enrolled, here, func(url string) choice.Past { return c.past[strings.TrimPrefix(url, "http://")] })
		if c.name == "network, region, all, origin, elsewhere" { // two that are alike, in either order
			if strings.Contains(urls(got), "far all") {
				c.want = strings.Replace(c.want, "all far", "far all", 1)
			}
		}
		if urls(got) != c.want || got.Peers != c.peers {
			t.Errorf("%s: %s, %d peers; want %s, %d", c.name, urls(got), got.Peers, c.want, c.peers)
		}
	}
}

// Mirrors that are as near as each other share the machines by weight, and a
// mirror that comes or goes moves only its own.
func TestFleetSpreads(t *testing.T) {
	l := list(mirror("http://a", "10.0.0.0/8"), mirror("http://b", "10.0.0.0/8"), mirror("http://c", "10.0.0.0/8"))
	l.Mirrors[2].Weight = 2
	near := func(string) choice.Past { return choice.Past{Latency: time.Millisecond} }
	const machines = 4000
	first := func(l *mirrors.List, i int) string {
		here := choice.Here{Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Seed: fmt.Sprint("machine-", i)}
		o := choice.Choose(l, []string{"http://origin"}, here, near)
		if o.Peers != min(choice.MaxPeers, len(l.Mirrors)) {
			t.Fatalf("%d peers", o.Peers)
		}
		return o.Servers[0].URL
	}
	count := map[string]int{}
	moved := 0
	for i := range machines {
		was := first(l, i)
		count[was]++
		if is := first(list(l.Mirrors[0], l.Mirrors[2]), i); is != was && was != "http://b" {
			moved++
		}
	}
	for url, want := range map[string]int{"http://a": machines / 4, "http://b": machines / 4, "http://c": machines / 2} {
		if n := count[url]; n < want*8/10 || n > want*12/10 {
			t.Errorf("%s has %d of %d machines, want about %d", url, n, machines, want)
		}
	}
	if moved > 0 {
		t.Errorf("%d machines of other mirrors moved", moved)
	}
}

// Whatever the list says and the past was: nothing is asked before it is its
// turn, and no server that the machine was enrolled with is ever left out.
func TestOrderHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n"})
		network := rapid.SampledFrom([]string{"10.0.0.0/8", "10.1.0.0/16", "172.16.0.0/12", "0.0.0.0/0", "2001:db8::/32"})
		var l *mirrors.List
		if rapid.Bool().Draw(t, "list") {
			l = list()
			for _, n := range rapid.SliceOfDistinct(name, rapid.ID[string]).Draw(t, "mirrors") {
				m := mirror("http://"+n, rapid.SliceOfNDistinct(network, 0, 2, rapid.ID[string]).Draw(t, "networks")...)
				m.Origin, m.Weight = rapid.Bool().Draw(t, "origin"), rapid.IntRange(0, 5).Draw(t, "weight")
				m.Region = rapid.SampledFrom([]string{"", "eu", "us"}).Draw(t, "region")
				l.Mirrors = append(l.Mirrors, m)
			}
		}
		var enrolled []string
		for _, n := range rapid.SliceOfN(name, 1, 5).Draw(t, "enrolled") {
			enrolled = append(enrolled, "http://"+n)
		}
		memory := map[string]choice.Past{}
		past := func(url string) choice.Past {
			if _, ok := memory[url]; !ok {
				memory[url] = choice.Past{
					Latency: time.Duration(rapid.IntRange(0, 100).Draw(t, "ms")) * time.Millisecond,
					Rate:    float64(rapid.IntRange(0, 1e7).Draw(t, "rate")), Failing: rapid.Bool().Draw(t, "failing"),
				}
			}
			return memory[url]
		}
		here := choice.Here{Addrs: []netip.Addr{netip.MustParseAddr("10.1.2.3")}, Region: "eu", Seed: "s"}
		o := choice.Choose(l, enrolled, here, past)
		for _, e := range enrolled {
			if !slices.ContainsFunc(o.Servers, func(s choice.Server) bool { return s.URL == e }) {
				t.Fatalf("%s is left out: %s", e, urls(o))
			}
		}
		if !slices.IsSortedFunc(o.Servers, func(a, b choice.Server) int { return int(a.Class - b.Class) }) {
			t.Fatalf("not by class: %+v", o.Servers)
		}
		if len(o.Servers) > len(enrolled)+choice.MaxListed || o.Peers < 1 || o.Peers > min(choice.MaxPeers, len(o.Servers)) || len(o.Rivals()) > choice.MaxListed {
			t.Fatalf("%d servers, %d peers, %d rivals", len(o.Servers), o.Peers, len(o.Rivals()))
		}
		for _, s := range o.Servers[:o.Peers] {
			if o.Peers > 1 && (s.Class != o.Servers[0].Class || s.Past.Latency == 0 || s.Class >= choice.Failing) {
				t.Fatalf("%s is no peer: %+v", s.URL, o)
			}
		}
		seen := map[string]bool{}
		for _, s := range o.Servers {
			if seen[s.URL] {
				t.Fatalf("%s twice: %s", s.URL, urls(o))
			}
			seen[s.URL] = true
		}
	})
}
