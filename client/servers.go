package client

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/patchkeep/patchkeep/client/choice"
	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/mirrors"
)

const (
	serversFile  = "servers.json" // choice.Memory
	probesAtOnce = 4
	probeTimeout = 2 * time.Second

	// A download looks for another network so often, or a quarter of the time
	// after which a source counts as stalled, whichever is less.
	lookEvery = 5 * time.Second
	maxMoves  = 16 // in one download
)

// errMoved ends a transfer because the machine is on another network.
var errMoved = fmt.Errorf("this machine is on another network: %w", tuf.ErrOffline)

// servers are those that a Client asks, in the order that package choice gives
// them, and what is remembered of them. It is safe for concurrent use.
type servers struct {
	cfg   *Config
	fetch *fetch.Fetcher
	docs  *documents

	mu          sync.Mutex // guards the rest
	memory      *choice.Memory
	list        *mirrors.List // verified; nil: none
	fingerprint string
	here        choice.Here
	order       choice.Order
	failed      map[string]error // while none has answered since, by base URL
	dirty       bool             // memory is to be written
}

func newServers(cfg *Config, f *fetch.Fetcher, docs *documents) *servers {
	s := &servers{cfg: cfg, fetch: f, docs: docs, failed: map[string]error{}}
	data, _ := docs.get(serversFile, choice.MaxMemory)
	s.memory = choice.ParseMemory(data)
	s.list = s.memory.Mirrors()
	s.here = choice.Here{Region: cfg.Region, Seed: cfg.MachineID}
	if s.here.Seed == "" {
		s.here.Seed = s.memory.Seed
	}
	s.look()
	return s
}

func (s *servers) now() time.Time {
	if s.cfg.Now != nil {
		return s.cfg.Now()
	}
	return time.Now()
}

// network is the memory of the network that the machine is on. Callers hold mu.
func (s *servers) network() *choice.Network { return s.memory.On(s.fingerprint, s.now()) }

// look finds out where the machine is, and puts the servers in order. It
// reports whether another one is first now because the machine moved.
func (s *servers) look() bool {
	if len(s.cfg.Mirrors) == 0 {
		return false
	}
	addresses := s.cfg.Addresses
	if addresses == nil {
		addresses = choice.Addresses
	}
	found, err := addresses()
	s.mu.Lock()
	defer s.mu.Unlock()
	moved := false
	if fingerprint := choice.Fingerprint(found); err == nil && fingerprint != s.fingerprint {
		moved = s.fingerprint != ""
		s.fingerprint = fingerprint
		s.here.Addrs = nil
		for _, p := range found {
			s.here.Addrs = append(s.here.Addrs, p.Addr())
		}
		clear(s.failed)
	}
	before := s.first()
	s.choose()
	return moved && s.first() != before
}

// first is the URL of the first server. Callers hold mu.
func (s *servers) first() string {
	if len(s.order.Servers) == 0 {
		return ""
	}
	return s.order.Servers[0].URL
}

// choose puts the servers in order. Callers hold mu.
func (s *servers) choose() {
	n, now := s.network(), s.now()
	s.order = choice.Choose(s.list, s.cfg.Mirrors, s.here, func(url string) choice.Past { return n.Past(url, now) })
}

// bases are the base URLs, the best first, and how many of the first are as
// good as each other.
func (s *servers) bases() (urls []string, peers int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, srv := range s.order.Servers {
		urls = append(urls, srv.URL)
	}
	return urls, s.order.Peers
}

// setList makes a verified list the one to choose from, or none.
func (s *servers) setList(l *mirrors.List, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Equal(s.memory.List, data) {
		return
	}
	s.list, s.memory.List, s.dirty = l, data, true
	s.choose()
}

// begin forgets failures of a time when perhaps nobody could be reached.
func (s *servers) begin() {
	s.look()
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.failed)
}

// measure asks those servers how near they are between which there is something
// to choose, unless that was done a while ago. It may take probeTimeout.
func (s *servers) measure(ctx context.Context) {
	s.mu.Lock()
	due := []string{}
	if rivals := s.order.Rivals(); len(rivals) > 1 && !s.cfg.ReadOnly {
		due = s.network().Due(rivals, s.now())
	}
	fingerprint := s.fingerprint
	s.mu.Unlock()
	if len(due) == 0 {
		return
	}
	pctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	type result struct {
		latency time.Duration
		err     error
	}
	results := make([]result, len(due))
	var g errgroup.Group
	g.SetLimit(probesAtOnce)
	for i, base := range due {
		g.Go(func() error {
			d, err := s.fetch.Probe(pctx, base+"/"+layout.TimestampObject)
			results[i] = result{d, err}
			return nil
		})
	}
	_ = g.Wait() // they say it in results
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fingerprint != fingerprint || ctx.Err() != nil {
		return
	}
	now := s.now()
	n := s.network()
	n.Measured = now
	any := slices.ContainsFunc(results, func(r result) bool { return r.err == nil })
	for i, r := range results {
		switch {
		case r.err == nil:
			n.Latency(due[i], r.latency, now)
			n.Worked(due[i])
		case any: // else it is the network
			n.Failed(due[i], now)
		}
		zerolog.Ctx(ctx).Debug().Str("server", hostOf(due[i])).Dur("latency", r.latency).AnErr("why", r.err).Msg("measured")
	}
	s.dirty = true
	s.choose()
}

// observe notes how a request went. A failure counts as soon as another server
// has answered: as long as none does, it is the network.
func (s *servers) observe(base string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.ContainsFunc(s.order.Servers, func(srv choice.Server) bool { return srv.URL == base }) {
		return // of Config.MetadataURLs
	}
	if err != nil {
		s.failed[base] = err
		return
	}
	delete(s.failed, base)
	if s.network().Worked(base) {
		s.dirty = true
	}
}

// settle makes what failed count, after something worked, and writes down what
// is new.
func (s *servers) settle(ctx context.Context) {
	if len(s.cfg.Mirrors) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.failed) > 0 {
		n, now := s.network(), s.now()
		for base := range s.failed {
			n.Failed(base, now)
		}
		clear(s.failed)
		s.dirty = true
	}
	s.choose()
	if !s.dirty || s.cfg.ReadOnly {
		return
	}
	s.dirty = false
	data, err := s.memory.Encode()
	if err == nil {
		err = s.docs.put(serversFile, data)
	}
	if err != nil {
		zerolog.Ctx(ctx).Warn().Err(err).Msg("what is known of servers is not kept")
	}
}

// downloaded notes how servers did in a download, of which urls were the places.
// One that failed in between and gave its share all the same is forgiven.
func (s *servers) downloaded(bases, urls []string, sources []fetch.Source) {
	var most int64
	for _, src := range sources {
		if src.Gave {
			most = max(most, src.Bytes)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n, now := s.network(), s.now()
	for _, src := range sources {
		i := slices.Index(urls, src.URL)
		if i < 0 || i >= len(bases) {
			continue // of Config.TargetURLs
		}
		n.Rate(bases[i], src.Bytes, src.Took, now)
		s.dirty = s.dirty || src.Bytes > 0
		switch left := !src.Gave || 2*src.Bytes < most || errors.Is(src.Err, fetch.ErrCorrupt); {
		case src.Err == nil:
			if src.Gave {
				n.Worked(bases[i])
			}
		case left && most > 0 && !errors.Is(src.Err, errMoved) && !errors.Is(src.Err, context.Canceled):
			s.failed[bases[i]] = src.Err
		}
	}
}

// watch ends a context with errMoved once the machine is on another network
// where another server comes first.
func (s *servers) watch(ctx context.Context, stall time.Duration) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	every := lookEvery
	if stall > 0 {
		every = min(every, stall/4)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				if s.look() {
					cancel(errMoved)
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, func() { cancel(nil); <-done }
}

// readList reads the signed list. One that another role signed, or that makes no
// sense, is refused, and the enrolled servers remain.
func (c *Client) readList(ctx context.Context) {
	if len(c.cfg.Mirrors) == 0 {
		return
	}
	data, err := c.signedBy(ctx, layout.MirrorsPath, layout.RoleMirrors, mirrors.MaxSize)
	var list *mirrors.List
	if err == nil && data != nil {
		list, err = mirrors.Parse(data)
	}
	switch {
	case err == nil:
		c.servers.setList(list, data)
	case errors.Is(err, tuf.ErrNotTrusted), errors.Is(err, mirrors.ErrBad), errors.Is(err, tuf.ErrTooLarge):
		zerolog.Ctx(ctx).Warn().Err(err).Msg("the list of mirrors is refused; the enrolled servers are used")
		c.servers.setList(nil, nil)
	default: // what was verified last is still good for a choice
		zerolog.Ctx(ctx).Debug().Err(err).Msg("the list of mirrors cannot be read")
	}
}

// Servers are the servers in the order in which they are asked now.
func (c *Client) Servers() []choice.Server {
	c.servers.mu.Lock()
	defer c.servers.mu.Unlock()
	return slices.Clone(c.servers.order.Servers)
}

func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "(bad URL)"
	}
	return u.Host
}

// hosts are those of URLs that the machine's owner named.
func hosts(urls ...[]string) []string {
	var all []string
	for _, raw := range slices.Concat(urls...) {
		if u, err := url.Parse(raw); err == nil {
			all = append(all, strings.ToLower(u.Hostname()))
		}
	}
	return all
}
