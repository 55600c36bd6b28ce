package cmd_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/repo/layout"
)

// patchObject is a published patch: where it lies on a server, and what it is.
type patchObject struct {
	path   string
	size   int64
	sha256 string
	crc    uint32 // Castagnoli
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// publishRandom publishes a file of n random bytes.
func publishRandom(b testing.TB, bin, repo string, n int64) patchObject {
	b.Helper()
	return publish(b, bin, repo, rand.Reader, n)
}

// publish publishes the first n bytes of content.
func publish(b testing.TB, bin, repo string, content io.Reader, n int64) patchObject {
	b.Helper()
	dir := b.TempDir()
	file := filepath.Join(dir, "herd.bin")
	f, err := os.Create(file)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	crc := crc32.New(castagnoli)
	if _, err := io.CopyN(io.MultiWriter(f, crc), content, n); err != nil {
		b.Fatal(err)
	}
	var added struct {
		Patch struct{ Path, SHA256 string }
	}
	for _, args := range [][]string{
		{"init", "--repo", repo, "--product", "herd"},
		{"patch", "add", file, "--repo", repo, "--product", "herd", "--version", "1", "--json"},
	} {
		cmd := exec.CommandContext(b.Context(), filepath.Join(bin, "patchkeep"), args...)
		cmd.Env = append(os.Environ(), "PATCHKEEP_KEY_PASSWORD=correct horse", "PATCHKEEP_KEYS="+filepath.Join(dir, "keys"))
		cmd.Stderr = b.Output()
		out, err := cmd.Output()
		if err == nil && args[0] == "patch" {
			err = json.Unmarshal(out, &added)
		}
		if err != nil {
			b.Fatalf("patchkeep %v: %v", args, err)
		}
	}
	return patchObject{
		path: "/" + layout.EscapePath(layout.TargetObject(added.Patch.Path, added.Patch.SHA256)),
		size: n, sha256: added.Patch.SHA256, crc: crc.Sum32(),
	}
}

// buffers of the clients. A client has one only while it reads what has come,
// so that thousands of them fit into the processor's cache.
var clientBuffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// download fetches an object over a connection of its own, and checks it: with
// SHA-256 if whole, else with a checksum that costs next to nothing.
func (o patchObject) download(ctx context.Context, addr string, begun time.Time, whole bool) (first, done time.Duration, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: herd\r\nConnection: close\r\n\r\n", o.path); err != nil {
		return 0, 0, err
	}
	sum := hash.Hash(crc32.New(castagnoli))
	want := []byte{byte(o.crc >> 24), byte(o.crc >> 16), byte(o.crc >> 8), byte(o.crc)}
	if whole {
		sum = sha256.New()
		if want, err = hex.DecodeString(o.sha256); err != nil {
			return 0, 0, err
		}
	}
	br := bufio.NewReaderSize(conn, 4<<10)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return 0, 0, err
	}
	if resp.StatusCode != http.StatusOK || resp.ContentLength != o.size {
		return 0, 0, fmt.Errorf("status %d with %d bytes", resp.StatusCode, resp.ContentLength)
	}
	n := int64(br.Buffered())
	if n > 0 {
		first = time.Since(begun)
		if _, err := io.CopyN(sum, br, n); err != nil {
			return 0, 0, err
		}
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var readErr error
	for end := false; !end && err == nil; err = errors.Join(err, readErr) {
		err = raw.Read(func(fd uintptr) bool {
			pooled := clientBuffers.Get().(*[]byte)
			defer clientBuffers.Put(pooled)
			got, e := syscall.Read(int(fd), *pooled)
			switch {
			case e == syscall.EAGAIN || e == syscall.EINTR:
				return false
			case e != nil:
				readErr = e
				return true
			}
			if n == 0 && got > 0 {
				first = time.Since(begun)
			}
			sum.Write((*pooled)[:max(got, 0)])
			n += int64(max(got, 0))
			end = got <= 0
			return true
		})
	}
	switch {
	case err != nil:
		return 0, 0, fmt.Errorf("after %d bytes: %w", n, err)
	case n != o.size || !slices.Equal(sum.Sum(nil), want):
		return 0, 0, fmt.Errorf("%d bytes of %d, or wrong ones", n, o.size)
	}
	return first, time.Since(begun), nil
}

// herd is clients that all ask for the same object at once.
type herd struct {
	clients int
	size    int64
	rate    int64 // of the line, bytes/s
}

// checkWhole is how many of them check the SHA-256.
const checkWhole = 3

// outcome of one round.
type outcome struct {
	first []time.Duration // of the body, by client, sorted
	all   time.Duration   // until the last was done
	bytes int64           // that came over the line
	cpu   float64         // seconds of the server's processor time
}

func (h herd) run(b *testing.B, l *line, o patchObject, addr string, pid int) outcome {
	b.Helper()
	bytes, cpu := l.bytes.Load(), cpuSeconds(b, pid)
	out := outcome{first: make([]time.Duration, h.clients)}
	var wg sync.WaitGroup
	var mu sync.Mutex // guards out.all and failed
	failed := 0
	start := make(chan time.Time)
	for i := range h.clients {
		wg.Go(func() {
			begun := <-start
			first, done, err := o.download(b.Context(), addr, begun, i < checkWhole)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				if failed++; failed <= 3 {
					b.Errorf("client %d: %v", i, err)
				}
			}
			out.first[i], out.all = first, max(out.all, done)
		})
	}
	begun := time.Now()
	for range h.clients {
		start <- begun
	}
	wg.Wait()
	if failed > 0 {
		b.Fatalf("%d of %d clients failed", failed, h.clients)
	}
	slices.Sort(out.first)
	out.bytes, out.cpu = l.bytes.Load()-bytes, cpuSeconds(b, pid)-cpu
	return out
}

// BenchmarkColdHerd has many clients ask for an object that nobody has asked
// for yet, behind a thin line, and compares with one client alone on that line,
// and with nginx. A round takes about 20 s.
func BenchmarkColdHerd(b *testing.B) {
	bin := buildPrograms(b)
	for _, h := range []herd{
		{30, 100_000_000, 20_000_000},
		{200, 16_000_000, 4_000_000},
		{2000, 2_000_000, 500_000},
	} {
		b.Run(fmt.Sprintf("%dx%dMB", h.clients, h.size/1_000_000), func(b *testing.B) {
			needFiles(b, 2*h.clients+200)
			repo := filepath.Join(b.TempDir(), "repo")
			o := publishRandom(b, bin, repo, h.size)
			report := herdReport{herd: h}
			for i := 0; b.Loop(); i++ {
				h.round(b, bin, repo, o, i%2 == 1, &report)
			}
			b.ReportMetric(0, "ns/op")
			report.print(b)
		})
	}
}

// round measures one client on the line, our herd, and nginx's, each with an
// empty cache.
func (h herd) round(b *testing.B, bin, repo string, o patchObject, nginxFirst bool, report *herdReport) {
	b.Helper()
	l := newLine(b, repo, h.rate)
	_, plain, err := o.download(b.Context(), strings.TrimPrefix(l.url, "http://"), time.Now(), true)
	if err != nil {
		b.Fatal(err)
	}
	ours := func() {
		m := serveMirror(b, bin, "--upstream", l.url, "--root", filepath.Join(repo, "metadata", "1.root.json"), "--cache", b.TempDir())
		defer m.end(syscall.SIGKILL)
		report.add(b, "mirror", h.run(b, l, o, m.addr, m.pid), plain)
	}
	if !nginxFirst {
		ours()
	}
	p := startNginx(b, nginxConf{
		HTTP: fmt.Sprintf("proxy_cache_path %s keys_zone=c:10m levels=1:2 max_size=10g inactive=1d use_temp_path=off;", b.TempDir()),
		Server: `location / {
			proxy_pass ` + l.url + `;
			proxy_http_version 1.1;
			proxy_read_timeout 1h;
			proxy_cache c;
			proxy_cache_valid 200 1d;
			proxy_cache_lock on;
			proxy_cache_lock_timeout 1h;
			proxy_cache_lock_age 1h;
		}`,
	})
	defer p.stop()
	report.add(b, "nginx", h.run(b, l, o, p.addr, p.pid), plain)
	p.stop()
	if nginxFirst {
		ours()
	}
}

// herdReport collects rounds.
type herdReport struct {
	herd
	values map[string][]float64 // by server/what
	units  []string
}

func (r *herdReport) add(b *testing.B, server string, o outcome, plain time.Duration) {
	b.Helper()
	at := func(p float64) float64 { return o.first[int(p*float64(len(o.first)-1))].Seconds() }
	if r.values == nil {
		r.values = map[string][]float64{}
	}
	add := func(what string, v float64) {
		unit := server + "-" + what
		if r.values[unit] == nil {
			r.units = append(r.units, unit)
		}
		r.values[unit] = append(r.values[unit], v)
	}
	add("first-p50-s", at(0.5))
	add("first-p99-s", at(0.99))
	add("first-max-s", at(1))
	add("all/one", o.all.Seconds()/plain.Seconds())
	add("upstream/object", float64(o.bytes)/float64(r.size))
	add("cpu-s", o.cpu)
	b.Logf("%s: first byte p50 %.3f p99 %.3f max %.3f s, all done after %.2f s, one alone %.2f s, %d bytes over the line, %.2f s CPU",
		server, at(0.5), at(0.99), at(1), o.all.Seconds(), plain.Seconds(), o.bytes, o.cpu)
}

// print reports the median of the rounds.
func (r *herdReport) print(b *testing.B) {
	for _, unit := range r.units {
		v := r.values[unit]
		slices.Sort(v)
		b.ReportMetric(v[len(v)/2], unit)
	}
}

// needFiles raises the limit of open files of this process and of those that it
// starts.
func needFiles(t testing.TB, n int) {
	t.Helper()
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	if lim.Cur >= uint64(n) {
		return
	}
	lim.Cur, lim.Max = uint64(n), max(lim.Max, uint64(n))
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatalf("this needs %d open files, see ulimit -n: %v", n, err)
	}
}
