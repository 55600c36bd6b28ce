//go:build linux || darwin

package dirstore

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/patchkeep/patchkeep/repo/store"
)

// BenchmarkCreate compares Create of a large object to what cannot be avoided:
// writing a file and syncing it.
func BenchmarkCreate(b *testing.B) {
	const size = 256 << 20
	dir := b.TempDir()
	b.Run("file", func(b *testing.B) {
		b.SetBytes(size)
		for i := range b.N {
			name := filepath.Join(dir, fmt.Sprint("file", i))
			f, err := os.Create(name)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.CopyBuffer(struct{ io.Writer }{f}, io.LimitReader(zero{}, size), make([]byte, copyBuffer)); err != nil {
				b.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
			f.Close()
			os.Remove(name)
		}
	})
	b.Run("store", func(b *testing.B) {
		b.SetBytes(size)
		b.ReportAllocs()
		s, err := New(filepath.Join(dir, "repo"))
		if err != nil {
			b.Fatal(err)
		}
		for range b.N {
			if _, err := s.Create(b.Context(), "large", io.LimitReader(zero{}, size), size, store.Options{}); err != nil {
				b.Fatal(err)
			}
			if err := s.Delete(b.Context(), "large"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
