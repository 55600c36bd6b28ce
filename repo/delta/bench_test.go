package delta_test

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/repo/delta"
)

// benchPackages are Debian packages of which apt lists an older and a newer
// version, as a rule from stable and from its security updates.
// PATCHKEEP_BENCH_DEBS takes other ones, separated by spaces.
const benchPackages = "tzdata openssl libssl3 php8.2-cli postgresql-15 openjdk-17-jre-headless"

// BenchmarkDelta makes and applies deltas between two versions of real Debian
// packages, uncompressed, beside bsdiff and zstd. It needs bsdiff, zstd, dpkg-deb
// and apt with its network: what is missing is an error, since figures without
// peers say nothing.
func BenchmarkDelta(b *testing.B) {
	for _, tool := range []string{"bsdiff", "bspatch", "zstd", "dpkg-deb", "apt-get", "apt-cache"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.Fatalf("%s is missing: this benchmark needs Debian with the packages bsdiff and zstd (apt-get install bsdiff zstd)", tool)
		}
	}
	for _, name := range strings.Fields(cmp.Or(os.Getenv("PATCHKEEP_BENCH_DEBS"), benchPackages)) {
		b.Run(name, func(b *testing.B) { benchPackage(b, name) })
	}
}

func benchPackage(b *testing.B, name string) {
	dir := b.TempDir()
	older, newer := versions(b, dir, name)
	debOld, old := uncompressed(b, name, older)
	debNew, new := uncompressed(b, name, newer)
	base, target := readFile(b, old), readFile(b, new)

	begin := time.Now()
	var d bytes.Buffer
	if err := delta.Make(b.Context(), &d, base, target, math.MaxInt64); err != nil {
		b.Fatal(err)
	}
	made := time.Since(begin)
	bs, zs := filepath.Join(dir, "bsdiff"), filepath.Join(dir, "zstd")
	peers := map[string]time.Duration{
		"bsdiff":  timed(b, "bsdiff", old, new, bs),
		"bspatch": timed(b, "bspatch", old, filepath.Join(dir, "out"), bs),
		"zstd":    timed(b, "zstd", "-q", "-f", "-19", "--long=31", "--patch-from="+old, new, "-o", zs),
		"unzstd":  timed(b, "zstd", "-q", "-f", "-d", "--long=31", "--patch-from="+old, zs, "-o", filepath.Join(dir, "out")),
	}
	zdeb := filepath.Join(dir, "zdeb")
	timed(b, "zstd", "-q", "-f", "-19", "--long=31", "--patch-from="+debOld, debNew, "-o", zdeb)
	b.Logf("%s %s → %s: the package as it is %d bytes, uncompressed %d\n"+
		"  delta  %9d bytes, made in %v\n"+
		"  bsdiff %9d bytes, made in %v, applied in %v\n"+
		"  zstd   %9d bytes, made in %v, applied in %v; between the compressed packages %d",
		name, older, newer, size(b, debNew), len(target),
		d.Len(), made.Round(time.Millisecond),
		size(b, bs), peers["bsdiff"].Round(time.Millisecond), peers["bspatch"].Round(time.Millisecond),
		size(b, zs), peers["zstd"].Round(time.Millisecond), peers["unzstd"].Round(time.Millisecond), size(b, zdeb))

	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b.SetBytes(int64(len(target)))
	for b.Loop() {
		if _, err := delta.Apply(b.Context(), io.Discard, bytes.NewReader(base), int64(len(base)), bytes.NewReader(d.Bytes()), int64(len(target))); err != nil {
			b.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(b.N)/(1<<20), "MiB/apply")
	b.ReportMetric(float64(d.Len())/float64(size(b, bs)), "×bsdiff")
	b.ReportMetric(float64(d.Len())/float64(size(b, zs)), "×zstd")
	b.ReportMetric(float64(d.Len())/float64(size(b, debNew)), "×package")
}

// versions are the oldest and the newest version that apt lists.
func versions(b *testing.B, dir, name string) (older, newer string) {
	b.Helper()
	var list []string
	for line := range strings.Lines(string(run(b, dir, "apt-cache", "madison", name))) {
		if f := strings.Split(line, "|"); len(f) == 3 && !strings.Contains(f[2], "Sources") {
			list = append(list, strings.TrimSpace(f[1]))
		}
	}
	if len(list) == 0 || list[0] == list[len(list)-1] {
		b.Fatalf("apt lists no two versions of %s: name other packages in PATCHKEEP_BENCH_DEBS, see apt-cache madison, or run apt-get update", name)
	}
	return list[len(list)-1], list[0]
}

// uncompressed downloads a package, and packs it again without compression.
func uncompressed(b *testing.B, name, version string) (deb, plain string) {
	b.Helper()
	in := b.TempDir()
	run(b, in, "apt-get", "-q", "download", name+"="+version)
	debs, err := filepath.Glob(filepath.Join(in, "*.deb"))
	if err != nil || len(debs) != 1 {
		b.Fatalf("download %s %s: %q, %v", name, version, debs, err)
	}
	tree, plain := filepath.Join(in, "tree"), filepath.Join(in, "plain.deb")
	run(b, in, "dpkg-deb", "-R", debs[0], tree)
	run(b, in, "dpkg-deb", "-Znone", "--root-owner-group", "-b", tree, plain)
	return debs[0], plain
}

func run(b *testing.B, dir, program string, args ...string) []byte {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), program, args...)
	cmd.Dir = dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, stderr.String())
	}
	return out
}

func timed(b *testing.B, program string, args ...string) time.Duration {
	b.Helper()
	begin := time.Now()
	run(b, "", program, args...)
	return time.Since(begin)
}

func readFile(b *testing.B, name string) []byte {
	b.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(fmt.Errorf("read package: %w", err))
	}
	return data
}

func size(b *testing.B, name string) int64 {
	b.Helper()
	info, err := os.Stat(name)
	if err != nil {
		b.Fatal(err)
	}
	return info.Size()
}
