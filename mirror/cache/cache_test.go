package cache_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/mirror/cache"
)

func sumOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func open(t *testing.T, cfg cache.Config) *cache.Cache {
	t.Helper()
	c, err := cache.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// put stores data under its hash.
func put(t *testing.T, c *cache.Cache, data []byte) error {
	t.Helper()
	w, err := c.Create(t.Context(), cache.Object{SHA256: sumOf(data), Size: int64(len(data))})
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := w.Write(data); err != nil {
		return err
	}
	h, err := w.Commit(t.Context())
	if err != nil {
		return err
	}
	return h.Close()
}

func has(c *cache.Cache, data []byte) bool { return c.Has(sumOf(data), int64(len(data))) }

func object(i, n int) []byte { return bytes.Repeat([]byte{byte(i)}, n) }

func TestOnlyWhatWasAnnounced(t *testing.T) {
	dir := t.TempDir()
	c := open(t, cache.Config{Dir: dir})
	data := object(1, 1000)
	for name, write := range map[string][][]byte{
		"short":   {data[:999]},
		"long":    {data, {1}},
		"other":   {object(2, 1000)},
		"nothing": {},
	} {
		w, err := c.Create(t.Context(), cache.Object{SHA256: sumOf(data), Size: int64(len(data))})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range write {
			if _, err = w.Write(p); err != nil {
				break
			}
		}
		if err == nil {
			_, err = w.Commit(t.Context())
		}
		if !errors.Is(err, cache.ErrMismatch) {
			t.Errorf("%s: %v", name, err)
		}
		w.Abort()
		w.Abort()
	}
	if st := c.Stats(); st.Objects != 0 || st.Bytes != 0 || st.Reserved != 0 {
		t.Errorf("left: %+v", st)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*", "*", "*", "*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	w, err := c.Create(t.Context(), cache.Object{SHA256: sumOf(data), Size: int64(len(data))})
	if err != nil {
		t.Fatal(err)
	}
	w.Write(object(3, 500))
	if err := w.Reset(); err != nil {
		t.Fatal(err)
	}
	w.Write(data)
	h, err := w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.Abort()
	defer h.Close()
	if got, err := io.ReadAll(h.File); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestLeastRecentlyUsedGoes, but nothing that is open; and the order outlives a
// restart.
func TestLeastRecentlyUsedGoes(t *testing.T) {
	now := time.Now()
	cfg := cache.Config{Dir: t.TempDir(), MaxBytes: 300, Now: func() time.Time { return now }}
	c := open(t, cfg)
	for i := range 3 {
		if err := put(t, c, object(i, 100)); err != nil {
			t.Fatal(err)
		}
		now = now.Add(2 * time.Minute)
	}
	h, ok := c.Get(t.Context(), sumOf(object(0, 100)), 100) // now 1 is the oldest
	if !ok {
		t.Fatal("gone")
	}
	h.Close()
	h, ok = c.Get(t.Context(), sumOf(object(1, 100)), 100) // but open
	if !ok {
		t.Fatal("gone")
	}
	if err := put(t, c, object(3, 200)); err != nil {
		t.Fatal(err)
	}
	if !has(c, object(1, 100)) || has(c, object(0, 100)) || has(c, object(2, 100)) {
		t.Error("the wrong ones went")
	}
	if err := put(t, c, object(4, 201)); !errors.Is(err, cache.ErrNoSpace) {
		t.Errorf("beside an open object: %v", err)
	}
	if err := put(t, c, object(4, 301)); !errors.Is(err, cache.ErrNoSpace) {
		t.Errorf("larger than the cache: %v", err)
	}
	h.Close()
	h.Close()
	now = now.Add(2 * time.Minute)
	if err := put(t, c, object(5, 50)); err != nil {
		t.Fatal(err)
	}
	if err := put(t, c, object(6, 50)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	cfg.MaxBytes = 100
	c = open(t, cfg)
	if st := c.Stats(); st.Bytes > 100 {
		t.Errorf("after a restart with less: %+v", st)
	}
	if has(c, object(1, 100)) || has(c, object(3, 200)) {
		t.Error("an old one was kept")
	}
}

// TestDiskStaysFree: the disk's other users have their part, writers in
// progress included.
func TestDiskStaysFree(t *testing.T) {
	free := int64(1000)
	c := open(t, cache.Config{Dir: t.TempDir(), MinFree: 500, Free: func() (int64, error) { return free, nil }})
	w, err := c.Create(t.Context(), cache.Object{SHA256: sumOf(object(1, 400)), Size: 400})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := c.Create(t.Context(), cache.Object{SHA256: sumOf(object(2, 200)), Size: 200}); !errors.Is(err, cache.ErrNoSpace) {
		t.Errorf("space promised twice: %v", err)
	}
	w.Write(object(1, 400))
	free -= 400
	h, err := w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	if _, err := c.Create(t.Context(), cache.Object{SHA256: sumOf(object(2, 200)), Size: 200}); !errors.Is(err, cache.ErrNoSpace) { // evicts, but free stays
		t.Errorf("full disk: %v", err)
	}
	if c.Stats().Evicted != 1 {
		t.Error("nothing was evicted for the disk's sake")
	}
	fail := errors.New("no idea")
	c = open(t, cache.Config{Dir: t.TempDir(), Free: func() (int64, error) { return 0, fail }})
	if err := put(t, c, object(1, 1)); !errors.Is(err, fail) {
		t.Error(err)
	}
}

func TestDamageIsNoticed(t *testing.T) {
	dir := t.TempDir()
	c := open(t, cache.Config{Dir: dir})
	for name, damage := range map[string]func(string) error{
		"longer":    func(p string) error { return os.WriteFile(p, object(1, 101), 0o644) },
		"shorter":   func(p string) error { return os.WriteFile(p, nil, 0o644) },
		"gone":      os.Remove,
		"directory": func(p string) error { os.Remove(p); return os.Mkdir(p, 0o755) },
		"link": func(p string) error {
			os.Remove(p)
			return os.Symlink("/etc/passwd", p)
		},
	} {
		data := object(1, 100)
		if err := put(t, c, data); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "cas/sha256", sumOf(data)[:2], sumOf(data))
		if err := damage(path); err != nil {
			t.Fatal(err)
		}
		if h, ok := c.Get(t.Context(), sumOf(data), 100); ok {
			h.Close()
			t.Errorf("%s: served", name)
		}
		os.RemoveAll(path)
	}
}

// TestManyAtOnce mixes all of it.
func TestManyAtOnce(t *testing.T) {
	c := open(t, cache.Config{Dir: t.TempDir(), MaxBytes: 2000})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 20 {
				data := object((g+i)%10, 300)
				h, ok := c.Get(context.Background(), sumOf(data), 300)
				if !ok {
					if err := put(t, c, data); err != nil && !errors.Is(err, cache.ErrNoSpace) && !errors.Is(err, fs.ErrExist) {
						t.Error(err)
					}
					continue
				}
				if got, err := io.ReadAll(h.File); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				h.Close()
			}
		})
	}
	wg.Wait()
	if st := c.Stats(); st.Bytes > 2000 || st.Reserved != 0 || st.Bytes != int64(st.Objects)*300 {
		t.Errorf("%+v", st)
	}
}
