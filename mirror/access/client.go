package access

import (
	"container/list"
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

const (
	// maxClients is how many are remembered at once; about 30 MB. Beyond it the
	// ones that were here longest ago are forgotten, which gives them a new
	// burst and nothing else. Who has a connection or a request here is never
	// forgotten; if all are such, further ones are counted as if they were one.
	maxClients = 1 << 16

	minPiece = 8 << 10 // bytes that are sent at once to a client with a limit
	maxPiece = 1 << 20
)

// client is what is remembered of one.
type client struct {
	addr netip.Addr

	held  int           // guarded by table.mu; visits and connections
	conns int           // guarded by table.mu
	idle  *list.Element // guarded by table.mu; nil while held

	requests, bytes *rate.Limiter
	rules           atomic.Pointer[Rules] // that the limiters go by
}

func newClient(addr netip.Addr, r *Rules) *client {
	c := &client{
		addr:     addr,
		requests: rate.NewLimiter(rate.Limit(r.Requests), r.burst()),
		bytes:    rate.NewLimiter(rate.Limit(r.Bytes), int(2*piece(r.Bytes))),
	}
	c.rules.Store(r)
	return c
}

// follow makes the limiters go by the rules. What a client has used up stays so.
func (c *client) follow(r *Rules) {
	if c.rules.Load() == r {
		return
	}
	was := c.rules.Swap(r)
	if was.Requests != r.Requests || was.burst() != r.burst() {
		c.requests.SetBurst(r.burst())
		c.requests.SetLimit(rate.Limit(r.Requests))
	}
	if was.Bytes != r.Bytes {
		c.bytes.SetBurst(int(2 * piece(r.Bytes)))
		c.bytes.SetLimit(rate.Limit(r.Bytes))
	}
}

// piece is what is sent in an eighth of a second.
func piece(bytesPerSecond int64) int64 { return min(max(bytesPerSecond/8, minPiece), maxPiece) }

// request returns 0 if another request may come, or when to come again.
func (c *client) request(r *Rules, now time.Time) time.Duration {
	if r.Requests <= 0 {
		return 0
	}
	c.follow(r)
	if c.requests.AllowN(now, 1) {
		return 0
	}
	missing := 1 - c.requests.TokensAt(now)
	return max(time.Millisecond, time.Duration(missing/r.Requests*float64(time.Second)))
}

// take waits until some of n bytes may be sent, and says how many.
func (c *client) take(ctx context.Context, r *Rules, n int64, idle func()) (int64, error) {
	c.follow(r)
	n = min(n, piece(r.Bytes))
	now := time.Now()
	res := c.bytes.ReserveN(now, int(n))
	if !res.OK() { // the rules change at this moment
		return min(n, minPiece), nil
	}
	d := res.DelayFrom(now)
	if d <= 0 {
		return n, nil
	}
	idle()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return n, nil
	case <-ctx.Done():
		res.Cancel()
		return 0, ctx.Err()
	}
}

// table finds clients by address.
type table struct {
	max int

	mu    sync.Mutex // guards what follows
	known map[netip.Addr]*client
	idle  list.List // of *client, that nothing holds, the last that was here first
	rest  *client   // stands for all that there is no room for
}

func newTable(limit int, r *Rules) *table {
	return &table{max: limit, known: map[netip.Addr]*client{}, rest: newClient(netip.Addr{}, r)}
}

func (t *table) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.known)
}

// hold finds or makes a client, and keeps it until it is released as often.
func (t *table) hold(addr netip.Addr, r *Rules) *client {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.known[addr]
	switch {
	case c != nil:
		if c.idle != nil {
			t.idle.Remove(c.idle)
			c.idle = nil
		}
	case len(t.known) >= t.max && t.idle.Len() == 0:
		c = t.rest
	default:
		if len(t.known) >= t.max {
			oldest := t.idle.Remove(t.idle.Back()).(*client) //nolint:forcetypeassert // there are no others
			delete(t.known, oldest.addr)
		}
		c = newClient(addr, r)
		t.known[addr] = c
	}
	c.held++
	return c
}

func (t *table) release(c *client) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.held--; c.held == 0 && c != t.rest {
		c.idle = t.idle.PushFront(c)
	}
}

// connect counts a connection of a client that is held, if it may have another
// one; limit 0: any number.
func (t *table) connect(c *client, limit int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if limit > 0 && c.conns >= limit {
		return false
	}
	c.conns++
	return true
}

func (t *table) disconnect(c *client) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.conns--
}
