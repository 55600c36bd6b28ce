package cmd_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	hotSize   = 100_000_000
	hotRounds = 3               // at least, of both servers by turns
	hotTime   = 2 * time.Second // of requests for metadata, a round
	hotConns  = 64
	hotCopies = 48 // of the object, a round
)

// hot is a mirror and an nginx before the same directory, both with all of it
// in their caches.
type hot struct {
	bin, repo   string
	object      patchObject
	cert, key   string // files
	tls         *tls.Config
	mirror, ngx string // host:port
	mirrorPID   int
	ngxPID      int
}

// newHot starts both. With TLS they have the same certificate.
func newHot(b *testing.B, withTLS, logs bool) *hot {
	b.Helper()
	h := &hot{bin: buildPrograms(b), repo: filepath.Join(b.TempDir(), "repo")}
	h.object = publishRandom(b, h.bin, h.repo, hotSize)
	args := []string{
		"--upstream", h.repo, "--root", filepath.Join(h.repo, "metadata", "1.root.json"), "--cache", b.TempDir(), "--log-level", "warn",
	}
	cacheDir := b.TempDir()
	conf := nginxConf{
		HTTP: "tcp_nopush on; proxy_cache_path " + cacheDir + " levels=1:2 keys_zone=hot:10m max_size=10g inactive=1d use_temp_path=off;",
	}
	if logs {
		args = append(args, "--access-log", filepath.Join(b.TempDir(), "access.log"))
		conf.Server = "access_log " + filepath.Join(b.TempDir(), "access.log") + " combined buffer=64k flush=1s;\n"
	}
	if withTLS {
		h.certificate(b)
		args = append(args, "--tls-cert", h.cert, "--tls-key", h.key)
		conf.Listen = "ssl"
		conf.Server += "ssl_certificate " + h.cert + "; ssl_certificate_key " + h.key + "; ssl_protocols TLSv1.2 TLSv1.3;\n"
	}
	origin := startNginx(b, nginxConf{Server: "location / { root " + h.repo + "; }", Workers: 1})
	conf.Server += "location / { proxy_pass http://" + origin.addr + "; proxy_cache hot; proxy_cache_valid 200 1d; proxy_cache_lock on; }"
	peer := startNginx(b, conf)
	h.ngx, h.ngxPID = peer.addr, peer.pid
	m := serveMirror(b, h.bin, args...)
	h.mirror, h.mirrorPID = strings.TrimPrefix(m.addr, "https://"), m.pid
	for _, addr := range []string{h.mirror, h.ngx} {
		for _, path := range []string{hotMetadata, h.object.path} {
			if n := h.fetch(b, addr, path); n == 0 {
				b.Fatalf("%s from %s: nothing", path, addr)
			}
		}
	}
	return h
}

// hotMetadata is a file of 1.6 KB.
const hotMetadata = "/metadata/1.root.json"

func (h *hot) certificate(b *testing.B) {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		b.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		b.Fatal(err)
	}
	pool := x509.NewCertPool()
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	pool.AppendCertsFromPEM(certPEM)
	h.tls = &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13}
	h.cert, h.key = filepath.Join(b.TempDir(), "cert.pem"), filepath.Join(b.TempDir(), "key.pem")
	if err := os.WriteFile(h.cert, certPEM, 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(h.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		b.Fatal(err)
	}
}

// fetch reads one answer to its end and returns how many bytes its body has. It
// does nothing with them, and costs little beside the server: without TLS the
// kernel throws them away.
func (h *hot) fetch(b *testing.B, addr, path string) int64 {
	n, err := func() (int64, error) {
		var d net.Dialer
		conn, err := d.DialContext(context.Background(), "tcp", addr)
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		plain := conn
		if h.tls != nil {
			conn = tls.Client(conn, h.tls)
		}
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path); err != nil {
			return 0, err
		}
		r := bufio.NewReaderSize(conn, 4<<10)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return 0, err
		}
		if resp.StatusCode != http.StatusOK || resp.ContentLength < 0 {
			return 0, fmt.Errorf("%s from %s: status %d, length %d", path, addr, resp.StatusCode, resp.ContentLength)
		}
		early, err := io.CopyN(io.Discard, r, min(int64(r.Buffered()), resp.ContentLength))
		left := resp.ContentLength - early
		switch {
		case err != nil:
		case h.tls != nil:
			_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(conn, left), make([]byte, 64<<10))
		default:
			err = discard(plain, left)
		}
		return resp.ContentLength, err
	}()
	if err != nil {
		b.Error(err)
	}
	return n
}

// discard has the kernel drop n bytes of a connection (MSG_TRUNC, tcp(7)).
func discard(conn net.Conn, n int64) error {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20) // is not written to
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		for n > 0 {
			got, _, err := unix.Recvfrom(int(fd), buf[:min(n, int64(len(buf)))], unix.MSG_TRUNC)
			switch {
			case err == unix.EAGAIN:
				return false
			case err == unix.EINTR:
				continue
			case err != nil:
				failed = err
				return true
			case got == 0:
				failed = io.ErrUnexpectedEOF
				return true
			}
			n -= int64(got)
		}
		return true
	})
	if failed != nil {
		return failed
	}
	return err
}

// BenchmarkHotMetadata has wrk ask both for the same small file over 64
// connections.
func BenchmarkHotMetadata(b *testing.B) {
	if _, err := exec.LookPath("wrk"); err != nil {
		b.Fatalf("%v: this needs the packages nginx-light and wrk", err)
	}
	rate := regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)
	errors := regexp.MustCompile(`(?m)^\s*(Non-2xx|Socket errors).*$`)
	for _, c := range []struct {
		name      string
		tls, logs bool
	}{{"plain", false, false}, {"access-log", false, true}, {"tls", true, false}} {
		b.Run(c.name, func(b *testing.B) {
			h := newHot(b, c.tls, c.logs)
			scheme := "http://"
			if c.tls {
				scheme = "https://"
			}
			h.compare(b, "requests/s", 1e6, "CPU-µs/request", func(addr string) (float64, float64) {
				out, err := exec.CommandContext(b.Context(), "wrk", "-t2", "-c"+strconv.Itoa(hotConns), "-d"+hotTime.String(), scheme+addr+hotMetadata).CombinedOutput()
				m := rate.FindSubmatch(out)
				if err != nil || m == nil || errors.Match(out) {
					b.Fatalf("wrk: %v\n%s", err, out)
				}
				r, err := strconv.ParseFloat(string(m[1]), 64)
				if err != nil {
					b.Fatal(err)
				}
				return r, r * hotTime.Seconds()
			})
		})
	}
}

// BenchmarkHotObject downloads the same 100 MB from both.
func BenchmarkHotObject(b *testing.B) {
	for _, withTLS := range []bool{false, true} {
		name := "plain"
		if withTLS {
			name = "tls"
		}
		b.Run(name, func(b *testing.B) {
			h := newHot(b, withTLS, false)
			for _, conns := range []int{1, 8} {
				b.Run(strconv.Itoa(conns), func(b *testing.B) {
					h.compare(b, "bytes/s", 1, "CPU-s/GB", func(addr string) (float64, float64) {
						begun := time.Now()
						var wg sync.WaitGroup
						for range conns {
							wg.Go(func() {
								for range hotCopies / conns {
									h.fetch(b, addr, h.object.path)
								}
							})
						}
						wg.Wait()
						return hotCopies * hotSize / time.Since(begun).Seconds(), hotCopies * hotSize / 1e9
					})
				})
			}
		})
	}
}

// compare measures both by turns, and reports the median of the ratios, what
// the mirror does, and the processor time of both for a unit of work. run
// returns the rate, and how much work was done.
func (h *hot) compare(b *testing.B, unit string, cpuScale float64, cpuUnit string, run func(addr string) (rate, work float64)) {
	b.Helper()
	type side struct{ rates, cpu []float64 }
	measure := func(s *side, addr string, pid int) {
		before := cpuSeconds(b, pid)
		rate, work := run(addr)
		s.rates = append(s.rates, rate)
		s.cpu = append(s.cpu, (cpuSeconds(b, pid)-before)*cpuScale/work)
	}
	var ours, theirs side
	var ratios []float64
	turn := func() {
		round := len(ratios)
		if round%2 == 0 {
			measure(&ours, h.mirror, h.mirrorPID)
			measure(&theirs, h.ngx, h.ngxPID)
		} else {
			measure(&theirs, h.ngx, h.ngxPID)
			measure(&ours, h.mirror, h.mirrorPID)
		}
		ratios = append(ratios, ours.rates[round]/theirs.rates[round])
		b.Logf("mirror %.4g %s, %.3g %s; nginx %.4g and %.3g", ours.rates[round], unit, ours.cpu[round], cpuUnit, theirs.rates[round], theirs.cpu[round])
	}
	for b.Loop() {
		turn()
	}
	for len(ratios) < hotRounds {
		turn()
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(ratios), "mirror/nginx")
	b.ReportMetric(median(ours.rates), unit)
	b.ReportMetric(median(ours.cpu), cpuUnit)
	b.ReportMetric(median(theirs.cpu), "nginx-"+cpuUnit)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
