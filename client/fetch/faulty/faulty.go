// Package faulty serves a repository as networks and mirrors do on bad days,
// for tests: honestly, or with one fault, of which the details are drawn from a
// seed. The network is in memory, so that a test in a testing/synctest bubble
// waits for nothing and comes out the same each time.
package faulty

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Ends is how a client may end that has only mirrors with such a fault. Well is
// always among it: a fault may miss.
type Ends int

// What a fault looks like from afar.
const (
	Harmless Ends = iota // to be got over
	Broken               // nobody can be reached, for now
	Lying                // what comes is not what was signed
	Either
)

// Fault is one way to be no good mirror.
type Fault struct {
	Name string
	Ends Ends

	answer func(*exchange)
	dial   func() (net.Conn, error) // in place of a server
	tls    bool
}

// Network is where the mirrors are.
type Network struct {
	client *http.Client
	tls    *tls.Config

	mu    sync.Mutex // guards the rest
	hosts map[string]*mirror
	count int
}

// New returns a network without mirrors.
func New() *Network {
	n := &Network{hosts: map[string]*mirror{}}
	cert, pool := certificate()
	n.tls = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	n.client = &http.Client{Transport: &http.Transport{
		DialContext:     n.dial,
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
	}}
	return n
}

// Client reaches the mirrors, and nothing else.
func (n *Network) Client() *http.Client { return n.client }

// Close stops everything.
func (n *Network) Close() {
	n.client.CloseIdleConnections()
	n.mu.Lock()
	all := n.hosts
	n.hosts = nil
	n.mu.Unlock()
	for _, m := range all {
		_ = m.server.Close()
	}
}

// Add starts a mirror of origin with a fault in its answers to those paths for
// which hits says so, nil: all; and returns its base URL.
func (n *Network) Add(origin http.Handler, f Fault, hits func(path string) bool, seed uint64) string {
	m := &mirror{net: n, origin: origin, fault: f, hits: hits, rng: mathrand.New(mathrand.NewPCG(seed, 0))}
	m.conns = &listener{make(chan net.Conn), make(chan struct{}), sync.Once{}}
	m.server = &http.Server{Handler: http.HandlerFunc(m.serve), ReadHeaderTimeout: time.Hour}
	scheme, l := "http", net.Listener(m.conns)
	if f.tls {
		scheme, l = "https", tls.NewListener(l, n.tls)
	}
	n.mu.Lock()
	n.count++
	host := "mirror-" + strconv.Itoa(n.count) + ".example"
	n.hosts[host] = m
	n.mu.Unlock()
	go func() { _ = m.server.Serve(l) }()
	if f.dial != nil && f.tls {
		scheme = "https"
	}
	return scheme + "://" + host
}

func (n *Network) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	m := n.hosts[host]
	n.mu.Unlock()
	if m == nil {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	if m.fault.dial != nil {
		return m.fault.dial()
	}
	here, there := net.Pipe()
	select {
	case m.conns.ch <- there:
		return here, nil
	case <-m.conns.done:
		return nil, syscall.ECONNREFUSED
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// listener takes connections that are made in memory.
type listener struct {
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "unix"} }

// certificate is for all mirrors, and trusts itself.
func certificate() (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"*.example"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0), // a bubble's clock shows another time
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

type mirror struct {
	net    *Network
	origin http.Handler
	fault  Fault
	hits   func(path string) bool
	server *http.Server
	conns  *listener

	mu  sync.Mutex // guards rng
	rng *mathrand.Rand
}

// exchange is a request that is answered badly.
type exchange struct {
	*mirror
	w    http.ResponseWriter
	r    *http.Request
	body []byte // of the honest answer
}

func (m *mirror) serve(w http.ResponseWriter, r *http.Request) {
	rec := httptest.NewRecorder()
	plain := r.Clone(r.Context())
	plain.Header.Del("Range")
	m.origin.ServeHTTP(rec, plain)
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.Header().Del("Content-Length")
	x := &exchange{m, w, r, rec.Body.Bytes()}
	switch {
	case rec.Code != http.StatusOK:
		w.WriteHeader(rec.Code)
		w.Write(x.body)
	case m.fault.answer == nil || m.hits != nil && !m.hits(r.URL.Path), r.Method == http.MethodHead: // what goes wrong is in bodies
		x.send(x.body)
	default:
		m.fault.answer(x)
	}
}

// draw gives a number below n.
func (m *mirror) draw(n int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rng.IntN(max(n, 1))
}

// head is a plain head: a range as asked for, or the whole. It returns what is
// to follow it.
func (x *exchange) head(body []byte) []byte {
	w := x.w
	w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sha256.Sum256(x.body)))
	w.Header().Set("Accept-Ranges", "bytes")
	from, to, ok := x.asked(len(body))
	if ok {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(body)))
	}
	w.Header().Set("Content-Length", strconv.Itoa(to-from))
	if ok {
		w.WriteHeader(http.StatusPartialContent)
	} else {
		w.WriteHeader(http.StatusOK)
	}
	return body[from:to]
}

func (x *exchange) send(body []byte) { x.w.Write(x.head(body)) }

// asked is the range that is asked for, of n bytes.
func (x *exchange) asked(n int) (from, to int, ok bool) {
	h := x.r.Header.Get("Range")
	if k, _ := fmt.Sscanf(h, "bytes=%d-%d", &from, &to); k == 2 {
		to++
	} else if k, _ := fmt.Sscanf(h, "bytes=%d-", &from); k == 1 {
		to = n
	} else {
		return 0, n, false
	}
	if to = min(to, n); from >= to {
		return 0, n, false
	}
	return from, to, true
}

// some writes part of what it is given and returns how much.
func (x *exchange) some(data []byte) int {
	n := x.draw(len(data) + 1)
	x.w.Write(data[:n])
	x.flush()
	return n
}

func (x *exchange) flush() { _ = http.NewResponseController(x.w).Flush() }

// wait ends with the client's patience.
func (x *exchange) wait() { <-x.r.Context().Done() }

// pause reports whether the client is still there after it.
func (x *exchange) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-x.r.Context().Done():
		return false
	}
}
