package tuf_test

import (
	"fmt"
	"testing"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// bigRepo is a product of 100 000 targets in 1 024 bins.
func bigRepo(b *testing.B) (*tuftest.Repo, []string) {
	b.Helper()
	const bits, targets = 10, 100_000
	repo := tuftest.New()
	repo.Delegate("targets", tuftest.Delegation{Role: "product"})
	bins := repo.DelegateBins("product", bits, "product-bin")
	for i := range targets {
		path := fmt.Sprintf("patches/product/1.%d/linux-amd64/setup.deb", i)
		sum := tuftest.Hash("sha256", []byte(path))
		bin := bins[(int(sum[0])<<8|int(sum[1]))>>(16-bits)]
		repo.Targets[bin].Signed.Targets[path] = &metadata.TargetFiles{Length: int64(i), Hashes: metadata.Hashes{"sha256": sum}}
	}
	repo.PublishAll()
	return repo, bins
}

// BenchmarkFirstWalk is what a mirror does when it starts: every bin is
// fetched, parsed and verified.
func BenchmarkFirstWalk(b *testing.B) {
	repo, bins := bigRepo(b)
	for b.Loop() {
		walkAll(b, inMemory(b, repo), len(bins)+2)
	}
}

// BenchmarkWalkAfterOneChange is a mirror's new view after a publication that
// rewrote one bin.
func BenchmarkWalkAfterOneChange(b *testing.B) {
	repo, bins := bigRepo(b)
	c := inMemory(b, repo)
	walkAll(b, c, len(bins)+2)
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		repo.Publish(bins[i%len(bins)], metadata.SNAPSHOT, metadata.TIMESTAMP)
		repo.ResetRequests()
		b.StartTimer()
		if err := c.Refresh(b.Context()); err != nil {
			b.Fatal(err)
		}
		walkAll(b, c, len(bins)+2)
	}
	if got := repo.Requests(); len(got) != 4 { // root, timestamp, snapshot, bin
		b.Fatalf("requests %q", got)
	}
}

// BenchmarkBytesOfAll asks for every loaded role by its name.
func BenchmarkBytesOfAll(b *testing.B) {
	repo, bins := bigRepo(b)
	c := inMemory(b, repo)
	walkAll(b, c, len(bins)+2)
	for b.Loop() {
		for _, bin := range bins {
			if c.Bytes(bin) == nil {
				b.Fatal("not loaded: ", bin)
			}
		}
	}
}

func walkAll(b *testing.B, c *tuf.Client, want int) {
	b.Helper()
	n := 0
	if err := c.Walk(b.Context(), func(*tuf.Role) error { n++; return nil }); err != nil || n != want {
		b.Fatalf("walked %d roles, want %d: %v", n, want, err)
	}
}
