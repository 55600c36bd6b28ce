package client_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"
	"golang.org/x/time/rate"

	"github.com/patchkeep/patchkeep/client"
	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// A benchmark's programs are this test binary again, each a process of its own,
// so that time and memory are its own too.
const (
	roleEnv = "PATCHKEEP_TEST_ROLE" // what the process is
	sizeEnv = "PATCHKEEP_BENCH_SIZE"
)

var roles = map[string]func(args []string) error{
	"serve": benchServe, "prepare": benchPrepare, "patchkeep": benchPatchkeep, "go-tuf": benchGoTUF,
	"serve-slowly": benchServeSlowly, "peers": benchPeers,
}

func TestMain(m *testing.M) {
	role := os.Getenv(roleEnv)
	if role == "" {
		os.Exit(m.Run())
	}
	if err := roles[role](os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// process prepares this binary, or another, to be run.
func process(ctx context.Context, role string, args ...string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.Stderr = os.Stderr
	return cmd
}

// BenchmarkDownload1GiB downloads one file from a local server by turns with
// curl, with go-tuf's client and with ours, with block list and without, from
// the start of each process to its end. It prints the medians of the ratios of
// each turn, and the greatest memory. PATCHKEEP_BENCH_SIZE is the size in MiB.
func BenchmarkDownload1GiB(b *testing.B) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		b.Fatalf("this compares with curl: %v", err)
	}
	size := 1024
	if s := os.Getenv(sizeEnv); s != "" {
		if size, err = strconv.Atoi(s); err != nil || size < 1 {
			b.Fatalf("%s=%q is not a number of MiB", sizeEnv, s)
		}
	}
	dir := b.TempDir()
	if out, err := process(b.Context(), "prepare", dir, strconv.Itoa(size)).Output(); err != nil {
		b.Fatalf("prepare: %v %s", err, out)
	}
	base := serve(b, "serve", dir)
	object, err := os.ReadFile(filepath.Join(dir, "object"))
	if err != nil {
		b.Fatal(err)
	}
	root := filepath.Join(dir, "metadata", "1.root.json")

	type program struct {
		name  string
		run   func(out string) *exec.Cmd
		times []float64
		rss   int64
	}
	programs := []*program{
		{name: "curl", run: func(out string) *exec.Cmd {
			return exec.CommandContext(b.Context(), curl, "-sS", "-f", "-o", out, base+"/targets/"+string(object))
		}},
		{name: "go-tuf", run: func(out string) *exec.Cmd { return process(b.Context(), "go-tuf", base, root, "big", out) }},
		{name: "patchkeep", run: func(out string) *exec.Cmd { return process(b.Context(), "patchkeep", base, root, "big", out) }},
		{name: "patchkeep-blocks", run: func(out string) *exec.Cmd { return process(b.Context(), "patchkeep", base, root, "big2", out) }},
	}
	b.SetBytes(int64(size) << 20)
	b.ResetTimer()
	for b.Loop() {
		// What one leaves the disk to do slows the next, so the order changes.
		for _, i := range rand.Perm(len(programs)) {
			p := programs[i]
			work := filepath.Join(dir, "work")
			if err := os.Mkdir(work, 0o700); err != nil {
				b.Fatal(err)
			}
			cmd := p.run(filepath.Join(work, "out"))
			cmd.Dir = work
			start := time.Now()
			if err := cmd.Run(); err != nil {
				b.Fatalf("%s: %v", p.name, err)
			}
			p.times = append(p.times, time.Since(start).Seconds())
			p.rss = max(p.rss, maxRSS(cmd.ProcessState))
			if err := os.RemoveAll(work); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.StopTimer()
	ratio := func(a, c *program) float64 {
		var r []float64
		for i := range a.times {
			r = append(r, a.times[i]/c.times[i])
		}
		slices.Sort(r)
		return r[len(r)/2]
	}
	b.ReportMetric(0, "ns/op") // of all four together: says nothing
	for _, p := range programs {
		b.ReportMetric(float64(p.rss)/(1<<20), p.name+"-MiB")
		if p.name != "curl" {
			b.ReportMetric(ratio(p, programs[0]), p.name+"/curl")
		}
	}
	b.ReportMetric(ratio(programs[3], programs[1]), "patchkeep-blocks/go-tuf")
	for _, p := range programs {
		b.Logf("%-17s %6.2f s each (%.2f), %3d MiB", p.name, mean(p.times), p.times, p.rss>>20)
	}
}

func mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(len(v))
}

// serve starts a server process and returns its URL.
func serve(b *testing.B, role string, args ...string) string {
	cmd := process(b.Context(), role, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func benchServe(args []string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("http://%s\n", l.Addr())
	return http.Serve(l, http.FileServer(http.Dir(args[0])))
}

// benchPrepare writes a repository with one file of random bytes under two
// names: big, and big2 with a block list.
func benchPrepare(args []string) error {
	dir := args[0]
	mib, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	for _, d := range []string{"metadata", "targets"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	f, err := os.Create(filepath.Join(dir, "targets", "big"))
	if err != nil {
		return err
	}
	whole, blocks := sha256.New(), []byte{}
	random, block := rand.NewChaCha8([32]byte{}), make([]byte, layout.BlockSize)
	for range mib {
		random.Read(block)
		sum := sha256.Sum256(block)
		blocks = append(blocks, sum[:]...)
		whole.Write(block)
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	r := tuftest.New()
	targets := r.Targets[metadata.TARGETS].Signed.Targets
	for _, name := range []string{"big", "big2"} {
		targets[name] = &metadata.TargetFiles{Length: int64(mib) << 20, Hashes: metadata.Hashes{"sha256": whole.Sum(nil)}, Path: name}
		object := filepath.Join(dir, "targets", hex.EncodeToString(whole.Sum(nil))+"."+name)
		if err := os.Link(f.Name(), object); err != nil {
			return err
		}
	}
	r.AddArtifact(metadata.TARGETS, layout.BlocksPath("big2"), blocks)
	r.PublishAll()
	sum := sha256.Sum256(blocks)
	files := map[string][]byte{
		"object": []byte(hex.EncodeToString(whole.Sum(nil)) + ".big"),
		"targets/" + hex.EncodeToString(sum[:]) + "." + layout.BlocksPath("big2"): blocks,
	}
	for role, versions := range r.Published {
		v := int64(len(versions))
		files["metadata/"+layout.MetadataFile(role, v)] = versions[v-1]
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func benchPatchkeep(args []string) error {
	base, target, out := args[0], args[2], args[3]
	root, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	ctx := context.Background()
	c, err := client.Open(client.Config{Dir: "state", Root: root, Mirrors: []string{base}})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Refresh(ctx); err != nil {
		return err
	}
	_, _, err = c.Download(ctx, target, out, client.DownloadOptions{})
	return err
}

func benchGoTUF(args []string) error {
	base, target, out := args[0], args[2], args[3]
	root, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	cfg, err := config.New(base+"/metadata", root)
	if err != nil {
		return err
	}
	cfg.LocalMetadataDir, cfg.LocalTargetsDir, cfg.RemoteTargetsURL = "state", ".", base+"/targets"
	if err := os.Mkdir("state", 0o700); err != nil {
		return err
	}
	up, err := updater.New(cfg)
	if err != nil {
		return err
	}
	if err := up.Refresh(); err != nil {
		return err
	}
	info, err := up.GetTargetInfo(target)
	if err != nil {
		return err
	}
	_, _, err = up.DownloadTarget(info, out, "")
	return err
}

// BenchmarkTwoMirrors downloads 128 MiB from one mirror of 20 MB/s, and from two
// at once. It prints how many times as fast two are, and the memory.
func BenchmarkTwoMirrors(b *testing.B) {
	const mib = 128
	dir := b.TempDir()
	data, list := filepath.Join(dir, "file"), []byte{}
	f, err := os.Create(data)
	if err != nil {
		b.Fatal(err)
	}
	whole, block, random := sha256.New(), make([]byte, layout.BlockSize), rand.NewChaCha8([32]byte{})
	for range mib {
		random.Read(block)
		sum := sha256.Sum256(block)
		list = append(list, sum[:]...)
		whole.Write(block)
		if _, err := f.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	blocks := filepath.Join(dir, "blocks")
	if err := os.WriteFile(blocks, list, 0o600); err != nil {
		b.Fatal(err)
	}
	urls := []string{serve(b, "serve-slowly", data), serve(b, "serve-slowly", data)}
	var ratios []float64
	var rss int64
	b.SetBytes(mib << 20)
	for b.Loop() {
		var took [2]float64
		for i := range took {
			args := append([]string{hex.EncodeToString(whole.Sum(nil)), blocks, filepath.Join(b.TempDir(), "out")}, urls[:i+1]...)
			cmd := process(b.Context(), "peers", args...)
			start := time.Now()
			if err := cmd.Run(); err != nil {
				b.Fatal(err)
			}
			took[i] = time.Since(start).Seconds()
			rss = max(rss, maxRSS(cmd.ProcessState))
		}
		ratios = append(ratios, took[0]/took[1])
	}
	slices.Sort(ratios)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ratios[len(ratios)/2], "two/one")
	b.ReportMetric(float64(rss)/(1<<20), "MiB")
}

// benchServeSlowly serves a file at 20 MB/s over all connections.
func benchServeSlowly(args []string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("http://%s\n", l.Addr())
	line := rate.NewLimiter(20e6, 64<<10)
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(&slowly{w, r, line}, r, args[0])
	}))
}

type slowly struct {
	http.ResponseWriter
	r    *http.Request
	line *rate.Limiter
}

func (s *slowly) Write(p []byte) (int, error) {
	for n := 0; n < len(p); n += 32 << 10 {
		piece := p[n:min(len(p), n+32<<10)]
		if err := s.line.WaitN(s.r.Context(), len(piece)); err != nil {
			return n, err
		}
		if _, err := s.ResponseWriter.Write(piece); err != nil {
			return n, err
		}
	}
	return len(p), nil
}

func benchPeers(args []string) error {
	list, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	_, err = fetch.New(fetch.Options{}).File(context.Background(), fetch.Request{
		URLs: args[3:], Peers: len(args) - 3, Length: int64(len(list)) / sha256.Size * layout.BlockSize,
		Hashes: map[string]string{"sha256": args[0]}, Blocks: list, Dest: args[2],
	})
	return err
}

// BenchmarkPoll asks for news where there are none.
func BenchmarkPoll(b *testing.B) {
	s := newServer(b)
	c := open(b, client.Config{Dir: b.TempDir(), Root: s.root, Mirrors: []string{s.url}})
	if err := c.Refresh(b.Context()); err != nil {
		b.Fatal(err)
	}
	s.requests.Store(0)
	s.bytes.Store(0)
	for b.Loop() {
		if err := c.Refresh(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(s.requests.Load())/float64(b.N), "requests/poll")
	b.ReportMetric(float64(s.bytes.Load())/float64(b.N), "body-bytes/poll")
}

var _ io.Reader = (*rand.ChaCha8)(nil)
