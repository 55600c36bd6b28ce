package cmd_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	idleConnections = 10_000
	slowConnections = 2_000

	// A slow client reads slowPiece every slowEvery: 10 KiB/s, a little over the
	// least that a mirror puts up with.
	slowPiece = 16 << 10
	slowEvery = 1600 * time.Millisecond

	// perAddress is how many connections come from one address.
	perAddress = 50
)

// BenchmarkIdleAndSlow measures what connections that do next to nothing cost
// the mirror in memory, and others in time. A round takes about 20 s.
func BenchmarkIdleAndSlow(b *testing.B) {
	needFiles(b, idleConnections+slowConnections+2000)
	bin := buildPrograms(b)
	repo := filepath.Join(b.TempDir(), "repo")
	o := publishRandom(b, bin, repo, 100_000_000)
	var anon, rate, p50, p99 []float64
	for b.Loop() {
		m := serveMirror(b, bin, "--upstream", repo, "--root", filepath.Join(repo, "metadata", "1.root.json"), "--cache", b.TempDir())
		if _, _, err := o.download(b.Context(), m.addr, time.Now(), true); err != nil {
			b.Fatal(err)
		}
		healthy(b, m, o) // whatever is dearer the first time
		before := healthy(b, m, o)
		quiet, _ := memory(b, m.pid)
		load := startLoad(b, m.addr, o)
		after := healthy(b, m, o)
		loaded, _ := memory(b, m.pid)
		if n := openFiles(b, m.pid); n < idleConnections+slowConnections {
			b.Errorf("only %d files are open: the mirror has closed connections that behave", n)
		}
		load.stop(b)
		m.end(syscall.SIGKILL)
		anon = append(anon, float64(loaded)/1e6)
		rate = append(rate, after.rate/before.rate)
		p50 = append(p50, float64(after.p50)/float64(before.p50))
		p99 = append(p99, float64(after.p99)/float64(before.p99))
		b.Logf("memory %.0f MB, %.0f MB with %d idle and %d slow; healthy clients: %.0f MB/s, %.0f MB/s with them; metadata p50 %v, %v; p99 %v, %v",
			float64(quiet)/1e6, float64(loaded)/1e6, idleConnections, slowConnections, before.rate/1e6, after.rate/1e6, before.p50, after.p50, before.p99, after.p99)
	}
	b.ReportMetric(0, "ns/op")
	for unit, v := range map[string][]float64{"MB": anon, "bytes/s-with/without": rate, "metadata-p50-with/without": p50, "metadata-p99-with/without": p99} {
		slices.Sort(v)
		b.ReportMetric(v[len(v)/2], unit)
	}
}

// health is how well clients are served.
type health struct {
	rate     float64 // bytes/s of a large cached object, all clients together
	p50, p99 time.Duration
}

// healthy has a few clients download the object, and then others ask for
// metadata over connections that stay.
func healthy(b *testing.B, m *mirrorProcess, o patchObject) health {
	b.Helper()
	const downloads, clients, requests = 32, 4, 4000
	var wg sync.WaitGroup
	var left atomic.Int64
	left.Store(downloads)
	begun := time.Now()
	for range clients {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if _, _, err := o.download(b.Context(), m.addr, begun, false); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	h := health{rate: float64(downloads*o.size) / time.Since(begun).Seconds()}
	took := make([][]time.Duration, clients)
	for i := range clients {
		wg.Go(func() {
			c, err := connect(b.Context(), m.addr, nil)
			if err != nil {
				b.Error(err)
				return
			}
			defer c.Close()
			for range requests {
				begun := time.Now()
				if err := c.metadata(); err != nil {
					b.Error(err)
					return
				}
				took[i] = append(took[i], time.Since(begun))
			}
		})
	}
	wg.Wait()
	all := slices.Concat(took...)
	slices.Sort(all)
	if len(all) == 0 {
		b.FailNow()
	}
	h.p50, h.p99 = all[len(all)/2], all[len(all)*99/100]
	return h
}

// kept is a connection that is used again.
type kept struct {
	net.Conn
	br *bufio.Reader
}

// connect dials, from a certain address if that is not nil.
func connect(ctx context.Context, addr string, from net.IP) (*kept, error) {
	d := net.Dialer{}
	if from != nil {
		d.LocalAddr = &net.TCPAddr{IP: from}
		// Little room, so that what is not read is not under way either.
		d.Control = func(_, _ string, c syscall.RawConn) error {
			var err error
			if e := c.Control(func(fd uintptr) {
				err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, slowPiece)
			}); e != nil {
				return e
			}
			return err
		}
	}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &kept{conn, bufio.NewReaderSize(conn, 512)}, nil
}

// metadata asks for the timestamp.
func (c *kept) metadata() error {
	return c.ask(http.MethodGet, "/metadata/timestamp.json")
}

// ask makes a request whose answer is no matter.
func (c *kept) ask(method, path string) error {
	if _, err := fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: herd\r\n\r\n", method, path); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.br, &http.Request{Method: method})
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// load is idle and slow connections.
type load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	idle   []*kept
	early  atomic.Int64 // slow ones that the mirror has cut off
}

func startLoad(b *testing.B, addr string, o patchObject) *load {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	l := &load{cancel: cancel, idle: make([]*kept, idleConnections)}
	var ready sync.WaitGroup
	few := make(chan struct{}, 64) // connecting at once
	for i := range idleConnections + slowConnections {
		few <- struct{}{}
		from := net.IPv4(127, 1, byte(i/perAddress>>8), byte(i/perAddress)+1)
		ready.Add(1)
		l.wg.Go(func() {
			c, err := connect(ctx, addr, from)
			if err == nil {
				err = c.metadata()
			}
			if err == nil && i%2 == 0 { // whom the mirror does not answer from memory
				err = c.ask(http.MethodHead, o.path)
			}
			<-few
			if err != nil {
				b.Errorf("connection %d: %v", i, err)
				ready.Done()
				return
			}
			if i < idleConnections {
				l.idle[i] = c
				ready.Done()
				return
			}
			defer c.Close()
			l.slow(ctx, c, o, ready.Done)
		})
	}
	ready.Wait()
	return l
}

// slow reads the object at its own pace, until ctx is done.
func (l *load) slow(ctx context.Context, c *kept, o patchObject, ready func()) {
	_, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: herd\r\n\r\n", o.path)
	resp := &http.Response{}
	if err == nil {
		resp, err = http.ReadResponse(c.br, nil)
	}
	ready()
	every := time.NewTicker(slowEvery)
	defer every.Stop()
	for err == nil {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
			_, err = io.CopyN(io.Discard, resp.Body, slowPiece)
		}
	}
	l.early.Add(1)
}

func (l *load) stop(b *testing.B) {
	b.Helper()
	if n := l.early.Load(); n > 0 {
		b.Errorf("%d slow clients were cut off", n)
	}
	l.cancel()
	for _, c := range l.idle {
		if c != nil {
			c.Close()
		}
	}
	l.wg.Wait()
}
