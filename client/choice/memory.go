package choice

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"math"
	"slices"
	"time"

	"github.com/patchkeep/patchkeep/repo/mirrors"
)

// Bounds on what is remembered.
const (
	MaxMemory   = 1 << 20 // bytes of a memory as JSON
	maxNetworks = 16
	maxServers  = 128 // of a network

	format = 1
)

// How long what was learnt holds.
const (
	Remeasure   = 6 * time.Hour    // a latency is measured again after so long …
	measureGap  = 10 * time.Minute // … and no two measurements are closer
	latencyLife = 7 * 24 * time.Hour
	rateLife    = 24 * time.Hour
	firstPause  = time.Minute // after a failure; doubled by each further one, …
	longest     = 30 * time.Minute
)

// Memory is what a machine remembers of servers. What it is read from is
// hostile: what makes no sense in it is forgotten.
type Memory struct {
	Format   int                 `json:"format"`
	Seed     string              `json:"seed"`           // the machine's draw, if it has no id
	List     json.RawMessage     `json:"list,omitempty"` // as it was verified last
	Networks map[string]*Network `json:"networks"`       // by fingerprint
}

// Network is what was learnt on one network.
type Network struct {
	Used     time.Time          `json:"used"`
	Measured time.Time          `json:"measured,omitzero"` // when it was tried last
	Servers  map[string]*Record `json:"servers"`           // by base URL
}

// Record is what was learnt about one server.
type Record struct {
	Latency  float64   `json:"latency_ms,omitempty"`
	Measured time.Time `json:"measured,omitzero"`
	Rate     float64   `json:"rate,omitempty"` // bytes per second
	Rated    time.Time `json:"rated,omitzero"`
	Fails    int       `json:"fails,omitempty"` // in a row
	Failed   time.Time `json:"failed,omitzero"`
}

// ParseMemory reads a memory; a new one if there is none that can be read.
func ParseMemory(data []byte) *Memory {
	m := &Memory{}
	if len(data) > MaxMemory || json.Unmarshal(data, m) != nil || m.Format != format {
		m = &Memory{}
	}
	m.Format = format
	if len(m.Seed) != 32 {
		var b [16]byte
		_, _ = rand.Read(b[:]) // never fails
		m.Seed = hex.EncodeToString(b[:])
	}
	if m.Networks == nil {
		m.Networks = map[string]*Network{}
	}
	for print, n := range m.Networks {
		if n == nil || len(print) != fingerprintLen || len(n.Servers) > maxServers {
			delete(m.Networks, print)
			continue
		}
		for url, r := range n.Servers {
			if r == nil || !r.sane() {
				delete(n.Servers, url)
			}
		}
	}
	m.prune()
	return m
}

func (r *Record) sane() bool {
	return r.Latency >= 0 && r.Latency < 1e6 && r.Rate >= 0 && !math.IsInf(r.Rate, 0) && r.Fails >= 0 && r.Fails < 1e6
}

// Encode writes the memory.
func (m *Memory) Encode() ([]byte, error) { return json.Marshal(m) }

// Mirrors is the list as it was verified last, nil if there is none.
func (m *Memory) Mirrors() *mirrors.List {
	if m.List == nil {
		return nil
	}
	l, err := mirrors.Parse(m.List)
	if err != nil {
		return nil
	}
	return l
}

// On is the memory of a network, which is made if need be.
func (m *Memory) On(fingerprint string, now time.Time) *Network {
	n := m.Networks[fingerprint]
	if n == nil {
		n = &Network{}
		m.Networks[fingerprint] = n
	}
	if n.Servers == nil {
		n.Servers = map[string]*Record{}
	}
	n.Used = now
	m.prune()
	return n
}

// prune forgets the networks that were not used for the longest time.
func (m *Memory) prune() {
	for len(m.Networks) > maxNetworks {
		oldest := ""
		for print, n := range m.Networks {
			if oldest == "" || n.Used.Before(m.Networks[oldest].Used) {
				oldest = print
			}
		}
		delete(m.Networks, oldest)
	}
}

// record is that of a server, which is made if need be.
func (n *Network) record(url string) *Record {
	r := n.Servers[url]
	if r == nil {
		for len(n.Servers) >= maxServers { // servers come and go with the list
			for other := range n.Servers {
				delete(n.Servers, other)
				break
			}
		}
		r = &Record{}
		n.Servers[url] = r
	}
	return r
}

// past reports whether something that happened at t still counts. What lies in
// the future was written by a wrong clock.
func past(t, now time.Time, life time.Duration) bool {
	age := now.Sub(t)
	return age >= 0 && age < life
}

// Past is what counts of a server now.
func (n *Network) Past(url string, now time.Time) Past {
	r := n.Servers[url]
	if r == nil {
		return Past{}
	}
	var p Past
	if past(r.Measured, now, latencyLife) {
		p.Latency = time.Duration(r.Latency * float64(time.Millisecond))
	}
	if past(r.Rated, now, rateLife) {
		p.Rate = r.Rate
	}
	p.Failing = r.Fails > 0 && past(r.Failed, now, pause(r.Fails))
	return p
}

// pause is how long a server that failed so often is left alone.
func pause(fails int) time.Duration {
	return min(firstPause<<min(fails-1, 10), longest)
}

// Due lists the servers whose latency should be measured: there is none that
// is young enough, and the last try is not a moment ago.
func (n *Network) Due(urls []string, now time.Time) []string {
	if past(n.Measured, now, measureGap) {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(urls), func(url string) bool {
		r := n.Servers[url]
		return r != nil && past(r.Measured, now, Remeasure)
	})
}

// Latency notes a measurement.
func (n *Network) Latency(url string, d time.Duration, now time.Time) {
	r := n.record(url)
	r.Latency, r.Measured = max(float64(d)/float64(time.Millisecond), 0.001), now
}

// enough is how much a download must bring for its rate to mean something.
const enough = 256 << 10

// Rate notes how fast bytes came: the newest counts as much as all before.
func (n *Network) Rate(url string, bytes int64, took time.Duration, now time.Time) {
	if bytes < enough || took <= 0 {
		return
	}
	r := n.record(url)
	rate := float64(bytes) / took.Seconds()
	if past(r.Rated, now, rateLife) && r.Rate > 0 {
		rate = (r.Rate + rate) / 2
	}
	r.Rate, r.Rated = rate, now
}

// Failed notes that a server failed while others did not.
func (n *Network) Failed(url string, now time.Time) {
	r := n.record(url)
	if r.Fails > 0 && !past(r.Failed, now, 24*time.Hour) {
		r.Fails = 0 // long ago, or by another clock
	}
	r.Fails, r.Failed = r.Fails+1, now
}

// Worked notes that a server answered, and reports whether that is news.
func (n *Network) Worked(url string) bool {
	r := n.Servers[url]
	if r == nil || r.Fails == 0 {
		return false
	}
	r.Fails, r.Failed = 0, time.Time{}
	return true
}
