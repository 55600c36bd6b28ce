// Package choice decides which server a machine asks first: from the signed
// list of mirrors, the servers it was enrolled with, where it is, and what it
// remembers. It is pure; package client looks, measures and asks.
//
// The list only says where to ask. Whoever holds its key can slow machines
// down: enrolled servers are never left out, and of the list a few are used.
package choice

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/patchkeep/patchkeep/repo/mirrors"
)

const (
	// MaxListed is how many mirrors of the list are used beside enrolled servers.
	MaxListed = 8
	// MaxPeers is how many servers share one download. Each has a block under
	// way, which is lost if the machine loses its power.
	MaxPeers = 2
)

// Class is why a server has its place. The first are the best.
type Class int

// The classes, in the order in which they are asked.
const (
	Near      Class = iota // listed for a network that the machine is in
	Regional               // listed for the machine's region
	Open                   // listed for all, or enrolled and not listed
	Origin                 // listed as an origin
	Failing                // of any class above, and not due for another try
	Elsewhere              // listed for other networks
)

func (c Class) String() string {
	return [...]string{"network", "region", "open", "origin", "failing", "elsewhere"}[c]
}

// Here is where a machine is.
type Here struct {
	Addrs  []netip.Addr
	Region string
	Seed   string // the machine's own, so that a fleet spreads over equals
}

// Past is what a machine knows of a server on the network that it is in.
type Past struct {
	Latency time.Duration // 0: not measured
	Rate    float64       // bytes per second of downloads; 0: not known
	Failing bool          // it failed of late
}

// Server is a server in its place.
type Server struct {
	URL      string // base, as it was given
	Class    Class
	Enrolled bool
	Past     Past

	was    Class // before it failed
	prefix int   // length of the network that holds the machine
	turn   int   // place at enrolment
	share  float64
	group  int // of those that are equally near; they begin with 0 in each class
}

// Order is the servers, the best first, of which the first Peers are as good as
// each other.
type Order struct {
	Servers []Server
	Peers   int
}

// Choose puts the servers in order. list may be nil.
func Choose(list *mirrors.List, enrolled []string, here Here, past func(url string) Past) Order {
	all := gather(list, enrolled, here)
	for i := range all {
		s := &all[i]
		s.Past, s.was = past(s.URL), s.Class
		if s.Past.Failing && s.Class < Failing {
			s.Class = Failing
		}
	}
	slices.SortStableFunc(all, func(a, b Server) int { return cmp.Or(a.rank(b), cmp.Compare(a.turn, b.turn)) })
	if list != nil {
		for rest := all; len(rest) > 0; {
			n := 1
			for n < len(rest) && rest[0].rank(rest[n]) == 0 {
				n++
			}
			arrange(rest[:n])
			rest = rest[n:]
		}
	}
	all = capped(all)
	return Order{all, peers(all, list != nil)}
}

// gather puts each server into its class.
func gather(list *mirrors.List, enrolled []string, here Here) []Server {
	var all []Server
	byURL := make(map[string]int) // canonical
	for i, raw := range enrolled {
		canonical, err := mirrors.CanonicalURL(raw)
		if err != nil {
			canonical = raw
		}
		if _, twice := byURL[canonical]; !twice {
			byURL[canonical] = len(all)
			all = append(all, Server{URL: strings.TrimRight(raw, "/"), Class: Open, Enrolled: true, turn: i, share: share(here.Seed, canonical, 1)})
		}
	}
	if list == nil {
		return all
	}
	for i := range list.Mirrors {
		m := &list.Mirrors[i]
		class, prefix := classify(m, here)
		s := Server{URL: m.URL, Class: class, prefix: prefix, turn: len(enrolled), share: share(here.Seed, m.URL, max(m.Weight, 1))}
		if at, ok := byURL[m.URL]; ok {
			s.URL, s.Enrolled, s.turn = all[at].URL, true, all[at].turn
			all[at] = s
			continue
		}
		all = append(all, s)
	}
	return all
}

func classify(m *mirrors.Mirror, here Here) (class Class, prefix int) {
	longest := -1
	for _, n := range m.Networks {
		if slices.ContainsFunc(here.Addrs, func(a netip.Addr) bool { return n.Contains(a.Unmap().WithZone("")) }) {
			longest = max(longest, n.Bits()+128-n.Addr().BitLen()) // of IPv4 as if it were in IPv6
		}
	}
	switch {
	case m.Origin:
		return Origin, 0
	case longest >= 0:
		return Near, longest
	case len(m.Networks) > 0:
		return Elsewhere, 0
	case m.Region != "" && m.Region == here.Region:
		return Regional, 0
	}
	return Open, 0
}

// share is how strongly a machine is drawn to a server: the highest of those
// drawn alike wins, in proportion to their weights (weighted rendezvous hashing).
func share(seed, url string, weight int) float64 {
	sum := sha256.Sum256([]byte(seed + "\x00" + url))
	u := (float64(binary.BigEndian.Uint64(sum[:8])>>11) + 0.5) / (1 << 53) // in (0, 1)
	return float64(weight) / -math.Log(u)
}

// rank compares all but what was measured.
func (s Server) rank(o Server) int {
	return cmp.Or(cmp.Compare(s.Class, o.Class), cmp.Compare(s.was, o.was), cmp.Compare(o.prefix, s.prefix))
}

// reference is how much a server is imagined to send when its past is weighed:
// latency decides unless rates differ a lot.
const reference = 256 << 10

// cost is about how long it takes to get something from the server; 0: not measured.
func (s Server) cost() time.Duration {
	if s.Past.Latency <= 0 {
		return 0
	}
	c := s.Past.Latency
	if s.Past.Rate > 0 {
		c += time.Duration(min(reference/s.Past.Rate, 3600) * float64(time.Second))
	}
	return c
}

// alike is how much longer it may take from a server that is as near.
func alike(best time.Duration) time.Duration { return 2*best + 10*time.Millisecond }

// arrange sorts servers of the same rank: the nearest first, those that are
// equally near by the machine's own draw, those that were not measured after
// them: enrolled ones as they were given, others by the draw.
func arrange(same []Server) {
	slices.SortStableFunc(same, func(a, b Server) int {
		ca, cb := a.cost(), b.cost()
		switch {
		case ca == 0 && cb == 0:
			return cmp.Or(cmp.Compare(a.turn, b.turn), cmp.Compare(b.share, a.share))
		case ca == 0:
			return 1
		case cb == 0:
			return -1
		}
		return cmp.Compare(ca, cb)
	})
	group := 0
	for i := 0; i < len(same); group++ {
		n := i
		for n < len(same) && (n == i || same[i].cost() > 0 && same[n].cost() > 0 && same[n].cost() <= alike(same[i].cost())) {
			same[n].group = group
			n++
		}
		slices.SortStableFunc(same[i:n], func(a, b Server) int { return cmp.Compare(b.share, a.share) })
		i = n
	}
}

// Rivals lists the servers whose latency matters: those that could be first
// or come after another of their rank, few of them.
func (o Order) Rivals() []string {
	var urls []string
	for i, s := range o.Servers {
		before := i > 0 && o.Servers[i-1].rank(s) == 0
		after := i+1 < len(o.Servers) && o.Servers[i+1].rank(s) == 0
		if s.Class < Failing && (before || after) && len(urls) < MaxListed {
			urls = append(urls, s.URL)
		}
	}
	return urls
}

// capped leaves out what the list has too many of.
func capped(all []Server) []Server {
	listed := 0
	return slices.DeleteFunc(all, func(s Server) bool {
		if s.Enrolled {
			return false
		}
		listed++
		return listed > MaxListed
	})
}

// peers counts the first servers that are as good as each other.
func peers(all []Server, listed bool) int {
	n := 0
	var least, most time.Duration
	for _, s := range all[:min(len(all), MaxPeers)] {
		c := s.cost()
		if c == 0 || s.Class >= Failing || s.rank(all[0]) != 0 || listed && s.group != all[0].group {
			break
		}
		if n == 0 {
			least, most = c, c
		}
		if least, most = min(least, c), max(most, c); most > alike(least) {
			break
		}
		n++
	}
	return max(n, min(1, len(all)))
}
