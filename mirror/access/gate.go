// Package access is the gate of a mirror that strangers can reach: who may come
// in, how much each client may have, and the log of who came.
//
// A client is an IP address, an IPv6 one with its whole /64. It is that of the
// connection, or what a trusted proxy says in X-Forwarded-For. What the gate
// remembers is bounded, whoever comes: see maxClients.
package access

import (
	"context"
	"crypto/x509"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Rules are what a Gate goes by. The zero value lets everybody have everything.
type Rules struct {
	// Tokens let in who bears one; nil: there are none. Certs lets in who has
	// shown a certificate that the TLS listener has verified. With neither
	// everybody may come in, with both either of them will do.
	Tokens *Tokens
	Certs  bool

	Requests float64 // a second, of a client; 0: any number
	Burst    int     // requests of a client at once; 0: Requests of ten seconds
	Conns    int     // connections of a client at once; 0: any number
	Bytes    int64   // bytes of bodies a second, to all of a client's connections; 0: any number
	MaxConns int     // connections at once; 0: any number

	// Proxies are believed what they say in X-Forwarded-For. Conns does not
	// count their connections, but the requests that they bring at once, by client.
	Proxies []netip.Prefix
}

func (r *Rules) burst() int {
	if r.Burst > 0 {
		return r.Burst
	}
	return max(1, int(10*r.Requests))
}

// counts says whether anything is counted by client.
func (r *Rules) counts() bool { return r.Requests > 0 || r.Bytes > 0 || r.Conns > 0 }

// closed says whether not everybody may come in.
func (r *Rules) closed() bool { return r.Tokens != nil || r.Certs }

// Gate applies rules, which may change while it is in use. All methods are safe
// for concurrent use.
type Gate struct {
	rules   atomic.Pointer[Rules]
	log     *Log
	clients *table
	conns   atomic.Int64

	limited, denied, refused atomic.Int64
}

// New makes a gate. log may be nil.
func New(r Rules, log *Log) *Gate {
	g := &Gate{log: log, clients: newTable(maxClients, &r)}
	g.Set(r)
	return g
}

// Set makes other rules count, for transfers under way too.
func (g *Gate) Set(r Rules) { g.rules.Store(&r) }

// Stats is what a Gate has counted.
type Stats struct {
	Limited int64 `json:"limited"`           // requests that were too many
	Denied  int64 `json:"denied"`            // requests without the right token or certificate
	Refused int64 `json:"refused"`           // connections that were too many
	Conns   int64 `json:"connections"`       // open
	Clients int   `json:"clients"`           // remembered
	Dropped int64 `json:"dropped_log_lines"` // that the log could not take in time
}

// Stats counts.
func (g *Gate) Stats() Stats {
	return Stats{
		Limited: g.limited.Load(), Denied: g.denied.Load(), Refused: g.refused.Load(), Conns: g.conns.Load(),
		Clients: g.clients.len(), Dropped: g.log.dropped(),
	}
}

// Refusal is why a request is not to be answered.
type Refusal struct {
	Status     int           // 401 or 429
	RetryAfter time.Duration // of a 429
	Challenge  string        // WWW-Authenticate, of a 401
}

// Write answers a refusal. It says no more than the status.
func (r *Refusal) Write(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if r.Challenge != "" {
		h.Set("Www-Authenticate", r.Challenge)
	}
	if r.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((r.RetryAfter+time.Second-1)/time.Second), 10))
	}
	http.Error(w, http.StatusText(r.Status), r.Status)
}

// Visit is a request that is being answered. Its zero value has no limits.
type Visit struct {
	Name    string // of the token, or cert: and the subject of the certificate
	gate    *Gate
	client  *client // held; nil if nothing is counted
	proxied bool
}

// Enter lets a request in, or says why not. Leave is to be called in either case.
func (g *Gate) Enter(r *http.Request) (v Visit, refusal *Refusal) {
	rules := g.rules.Load()
	v.gate = g
	if rules.counts() {
		addr, proxied := rules.who(r)
		v.client, v.proxied = g.clients.hold(key(addr), rules), proxied
		// Guessing tokens counts as well.
		if after := v.client.request(rules, time.Now()); after > 0 {
			g.limited.Add(1)
			return v, &Refusal{Status: http.StatusTooManyRequests, RetryAfter: after}
		}
		if proxied && !g.clients.connect(v.client, rules.Conns) {
			v.proxied = false
			g.limited.Add(1)
			return v, &Refusal{Status: http.StatusTooManyRequests, RetryAfter: time.Second}
		}
	}
	if !rules.closed() {
		return v, nil
	}
	if rules.Certs && r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		v.Name = "cert:" + subject(r.TLS.VerifiedChains[0][0])
		return v, nil
	}
	challenge := "Certificate"
	if rules.Tokens != nil {
		challenge = `Bearer realm="patchkeep"`
		if token, ok := bearer(r.Header); ok {
			if v.Name, ok = rules.Tokens.Find(token); ok {
				return v, nil
			}
			challenge += `, error="invalid_token"`
		}
	}
	g.denied.Add(1)
	return v, &Refusal{Status: http.StatusUnauthorized, Challenge: challenge}
}

// bearer is the token of a request (RFC 6750 §2.1).
func bearer(h http.Header) (string, bool) {
	scheme, token, _ := strings.Cut(h.Get("Authorization"), " ")
	return strings.TrimSpace(token), strings.EqualFold(scheme, "Bearer")
}

func subject(c *x509.Certificate) string {
	switch {
	case c.Subject.CommonName != "":
		return c.Subject.CommonName
	case len(c.DNSNames) > 0:
		return c.DNSNames[0]
	case len(c.URIs) > 0:
		return c.URIs[0].String()
	}
	return c.SerialNumber.Text(16)
}

// Leave ends the visit.
func (v *Visit) Leave() {
	if v.client == nil {
		return
	}
	if v.proxied {
		v.gate.clients.disconnect(v.client)
	}
	v.gate.clients.release(v.client)
	v.client = nil
}

// Limited says whether Wait may have to wait.
func (v *Visit) Limited() bool { return v.client != nil && v.gate.rules.Load().Bytes > 0 }

// Wait returns how many of n bytes may be sent now, at least one. If it has to
// wait for that it calls idle before. It ends with ctx.
func (v *Visit) Wait(ctx context.Context, n int64, idle func()) (int64, error) {
	if !v.Limited() || n <= 0 {
		return n, nil
	}
	rules := v.gate.rules.Load()
	if rules.Bytes <= 0 {
		return n, nil
	}
	return v.client.take(ctx, rules, n, idle)
}
