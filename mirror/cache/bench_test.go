package cache_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/patchkeep/patchkeep/mirror/cache"
)

// BenchmarkOpen opens a cache of 100 000 objects.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	for i := range 256 {
		if err := os.MkdirAll(filepath.Join(dir, "cas/sha256", fmt.Sprintf("%02x", i)), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	for i := range 100_000 {
		sum := sumOf(fmt.Append(nil, i))
		if err := os.WriteFile(filepath.Join(dir, "cas/sha256", sum[:2], sum), []byte("x"), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		c, err := cache.Open(b.Context(), cache.Config{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		if n := c.Stats().Objects; n != 100_000 {
			b.Fatal(n)
		}
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWrite is an object on its way into the cache, in pieces of 32 KiB.
func BenchmarkWrite(b *testing.B) {
	data := content(1, 64*mib)
	for _, list := range []bool{true, false} {
		b.Run(fmt.Sprintf("list=%v", list), func(b *testing.B) {
			c, err := cache.Open(b.Context(), cache.Config{Dir: b.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			o := objectOf(data, list)
			b.SetBytes(o.Size)
			b.ReportAllocs()
			for b.Loop() {
				w, err := c.Create(b.Context(), o)
				if err != nil {
					b.Fatal(err)
				}
				for p := data; len(p) > 0; p = p[32*kib:] {
					if _, err := w.Write(p[:32*kib]); err != nil {
						b.Fatal(err)
					}
				}
				w.Abort()
			}
		})
	}
}
