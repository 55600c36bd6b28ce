package cmd_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/store/storetest/s3server"
)

// bench is the real programs, and a patch of PATCHKEEP_BENCH_SIZE MiB (1024).
type bench struct {
	*testing.B
	bin, dir, file string
	size           int64
	env            []string
}

func newBench(b *testing.B) *bench {
	mib := 1024
	if s := os.Getenv("PATCHKEEP_BENCH_SIZE"); s != "" {
		var err error
		if mib, err = strconv.Atoi(s); err != nil || mib < 1 {
			b.Fatalf("PATCHKEEP_BENCH_SIZE=%q is not a number of MiB", s)
		}
	}
	dir := b.TempDir()
	p := &bench{B: b, bin: buildPrograms(b), dir: dir, file: filepath.Join(dir, "big.bin"), size: int64(mib) << 20}
	p.env = append(os.Environ(), "PATCHKEEP_KEY_PASSWORD=correct horse", "PATCHKEEP_KEYS="+filepath.Join(dir, "keys"))
	f, err := os.Create(p.file)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.Reader, p.size); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	return p
}

// run runs a program, one of ours or another, and returns its time in seconds
// and its greatest memory in MiB.
func (b *bench) run(name string, args ...string) (seconds, mib float64) {
	b.Helper()
	path := filepath.Join(b.bin, name)
	if _, err := os.Stat(path); err != nil {
		path = name
	}
	cmd := exec.CommandContext(b.Context(), path, args...)
	cmd.Dir, cmd.Env = b.dir, b.env
	syscall.Sync() // what was written before is not this program's to wait for
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		b.Fatal("no usage of a finished process")
	}
	return time.Since(start).Seconds(), float64(usage.Maxrss) / 1024
}

// BenchmarkPatchAdd publishes a large file to a directory, beside cp with a
// sync, and to a real S3 service.
func BenchmarkPatchAdd(b *testing.B) {
	p := newBench(b)
	srv, stop, err := s3server.StartProcess(filepath.Join(p.dir, "s3"))
	if err != nil {
		b.Fatal(err)
	}
	defer stop()
	p.env = append(p.env, srv.Env()...)
	for name, repo := range map[string]string{"directory": filepath.Join(p.dir, "repo"), "s3": srv.Ref("prod")} {
		b.Run(name, func(b *testing.B) {
			p := *p
			p.B = b
			p.run("patchkeep", "init", "--repo", repo, "--product", "big")
			var ratios []float64
			var most float64
			version := 0
			for b.Loop() {
				version++
				ours, mib := p.run("patchkeep", "patch", "add", p.file, "--repo", repo, "--product", "big", "--version", strconv.Itoa(version))
				cp, _ := p.run("dd", "if="+p.file, "of="+filepath.Join(p.dir, "copy"), "bs=1M", "conv=fsync")
				ratios, most = append(ratios, ours/cp), max(most, mib)
				b.Logf("patchkeep %.2f s, dd with a sync %.2f s", ours, cp)
			}
			b.SetBytes(p.size)
			slices.Sort(ratios)
			b.ReportMetric(ratios[len(ratios)/2], "patchkeep/dd")
			b.ReportMetric(most, "patchkeep-MiB")
		})
	}
}

// BenchmarkConformanceDownload has tuf-conformance and curl download the same
// URL by turns.
func BenchmarkConformanceDownload(b *testing.B) {
	p := newBench(b)
	repo := filepath.Join(p.dir, "repo")
	p.run("patchkeep", "init", "--repo", repo, "--product", "big")
	cmd := exec.CommandContext(b.Context(), filepath.Join(p.bin, "patchkeep"), "patch", "add", p.file, "--repo", repo, "--product", "big", "--version", "1", "--json")
	cmd.Env = p.env
	out, err := cmd.Output()
	if err != nil {
		b.Fatal(err)
	}
	var added struct {
		Patch struct{ Path, SHA256 string }
	}
	if err := json.Unmarshal(out, &added); err != nil {
		b.Fatal(err)
	}
	base := serveDir(b, repo)
	md, to := filepath.Join(p.dir, "md"), filepath.Join(p.dir, "to")
	p.run("tuf-conformance", "--metadata-dir", md, "init", filepath.Join(repo, "metadata", "1.root.json"))
	object := base + "/" + layout.EscapePath(layout.TargetObject(added.Patch.Path, added.Patch.SHA256))
	fetch := func(program string, args ...string) (seconds, mib float64) {
		if err := os.RemoveAll(to); err != nil {
			b.Fatal(err)
		}
		if err := os.Mkdir(to, 0o700); err != nil {
			b.Fatal(err)
		}
		return p.run(program, args...)
	}
	withCurl := func() float64 {
		seconds, _ := fetch("curl", "-sSf", "-o", filepath.Join(to, "big"), object)
		return seconds
	}
	withOurs := func() (seconds, mib float64) {
		return fetch("tuf-conformance", "--metadata-dir", md, "--metadata-url", base+"/metadata", "--target-base-url", base+"/targets",
			"--target-dir", to, "--target-name", added.Patch.Path, "download")
	}
	withCurl() // the memory that the first one touches is the dearest
	var ratios []float64
	var most float64
	for i := 0; b.Loop(); i++ {
		var ours, curl, mib float64
		if i%2 == 0 {
			curl = withCurl()
			ours, mib = withOurs()
		} else {
			ours, mib = withOurs()
			curl = withCurl()
		}
		ratios, most = append(ratios, ours/curl), max(most, mib)
		b.Logf("tuf-conformance %.2f s, curl %.2f s", ours, curl)
	}
	b.SetBytes(p.size)
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "tuf-conformance/curl")
	b.ReportMetric(most, "tuf-conformance-MiB")
}

func serveDir(b *testing.B, dir string) string {
	b.Helper()
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Handler: http.FileServer(http.Dir(dir)), ReadHeaderTimeout: 10 * time.Second}
	go srv.Serve(l)
	b.Cleanup(func() { srv.Close() })
	return fmt.Sprintf("http://%s", l.Addr())
}
