package cache_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/patchkeep/patchkeep/mirror/cache"
	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// content is n bytes that look like nothing else, the same for the same seed.
func content(seed uint64, n int) []byte {
	data := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	r.Read(data)
	return data
}

func blocksOf(data []byte) []byte {
	list := []byte{}
	for len(data) > 0 {
		n := min(len(data), layout.BlockSize)
		sum := sha256.Sum256(data[:n])
		list = append(list, sum[:]...)
		data = data[n:]
	}
	return list
}

// objectOf describes data, with its block list or without.
func objectOf(data []byte, list bool) cache.Object {
	o := cache.Object{SHA256: sumOf(data), Size: int64(len(data))}
	if list {
		o.Blocks = blocksOf(data)
	}
	return o
}

func create(t *testing.T, c *cache.Cache, o cache.Object) *cache.Writer {
	t.Helper()
	w, err := c.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Abort)
	return w
}

func write(t *testing.T, w *cache.Writer, data []byte) {
	t.Helper()
	if n, err := w.Write(data); err != nil || n != len(data) {
		t.Fatalf("%d bytes, %v", n, err)
	}
}

// finish writes what is missing and looks at what the cache has then.
func finish(t *testing.T, c *cache.Cache, w *cache.Writer, data []byte) {
	t.Helper()
	write(t, w, data[w.Written():])
	h, err := w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	wantObject(t, c, data)
}

func wantObject(t *testing.T, c *cache.Cache, data []byte) {
	t.Helper()
	h, ok := c.Get(t.Context(), sumOf(data), int64(len(data)))
	if !ok {
		t.Fatal("not there")
	}
	defer h.Close()
	if got, err := io.ReadAll(h.File); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

func partFile(dir string, data []byte, suffix string) string {
	return filepath.Join(dir, "tmp", fmt.Sprintf("%s-%d%s", sumOf(data), len(data), suffix))
}

// rebooted makes the progress of data that of an earlier run of the machine.
func rebooted(t *testing.T, dir string, data []byte) {
	t.Helper()
	name := partFile(dir, data, ".progress")
	var p map[string]any
	raw, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(raw, &p)
	}
	if err != nil {
		t.Fatal(err)
	}
	p["boot"] = "another"
	raw, _ = json.Marshal(p)
	if err := os.WriteFile(name, raw, 0o644); err != nil {
		t.Fatal(err)
	}
}

// appendTo adds to a file, or does something worse to it.
func appendTo(t *testing.T, name string, data []byte) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.Write(data)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestGoesOn: what was suspended is gone on with, by this process or the next.
func TestGoesOn(t *testing.T) {
	data := content(1, 3*mib+100)
	for _, list := range []bool{true, false} {
		for _, restart := range []bool{true, false} {
			for _, n := range []int{1, 300 * kib, mib, 2*mib + 7, 3*mib + 99, 3*mib + 100} {
				t.Run(fmt.Sprintf("list %v, restart %v, %d", list, restart, n), func(t *testing.T) {
					cfg := cache.Config{Dir: t.TempDir(), MaxBytes: 4 * mib}
					c := open(t, cfg)
					w := create(t, c, objectOf(data, list))
					write(t, w, data[:n])
					before := w.Released()
					w.Suspend()
					w.Suspend()
					w.Abort()
					if st := c.Stats(); st.Parts != 1 || st.PartBytes != int64(n) || st.Reserved != 0 {
						t.Errorf("suspended: %+v", st)
					}
					if restart {
						c.Close()
						c = open(t, cfg)
					}
					if p := c.Parts(); len(p) != 1 || p[0] != (cache.Part{SHA256: sumOf(data), Size: int64(len(data)), Written: int64(n)}) {
						t.Errorf("%+v", p)
					}
					w = create(t, c, objectOf(data, list))
					if w.Written() != int64(n) || w.Released() != before {
						t.Errorf("goes on at %d, released %d where it was %d", w.Written(), w.Released(), before)
					}
					finish(t, c, w, data)
					if st := c.Stats(); st.Parts != 0 || st.PartBytes != 0 || st.Reserved != 0 {
						t.Errorf("at the end: %+v", st)
					}
					if left, _ := filepath.Glob(filepath.Join(cfg.Dir, "tmp", "*")); len(left) > 0 {
						t.Errorf("left: %v", left)
					}
				})
			}
		}
	}
}

// TestAfterPowerCut: beyond what was synced, only blocks that verify count.
func TestAfterPowerCut(t *testing.T) {
	data := content(2, 5*mib)
	for _, c := range []struct {
		name   string
		list   bool
		damage func(t *testing.T, dir string)
		want   int
	}{
		{"no list", false, func(*testing.T, string) {}, 2*mib + 5},
		{"no list, more than was synced", false, func(t *testing.T, dir string) {
			appendTo(t, partFile(dir, data, ".part"), make([]byte, mib))
		}, 2*mib + 5},
		{"no list, less than was synced", false, func(t *testing.T, dir string) {
			os.Truncate(partFile(dir, data, ".part"), mib+1)
		}, mib + 1},
		{"no list, no progress", false, func(t *testing.T, dir string) {
			os.Remove(partFile(dir, data, ".progress"))
		}, 0},
		{"no list, progress of nothing", false, func(t *testing.T, dir string) {
			os.WriteFile(partFile(dir, data, ".progress"), nil, 0o644)
		}, 0},
		{"no list, progress beyond the end", false, func(t *testing.T, dir string) {
			os.WriteFile(partFile(dir, data, ".progress"), []byte(`{"synced":5242881}`), 0o644)
		}, 0},
		{"list, more than was synced", true, func(t *testing.T, dir string) {
			appendTo(t, partFile(dir, data, ".part"), data[2*mib+5:4*mib+9])
		}, 4 * mib},
		{"list, more of which some is bad", true, func(t *testing.T, dir string) {
			appendTo(t, partFile(dir, data, ".part"), data[2*mib+5:3*mib+9])
			appendTo(t, partFile(dir, data, ".part"), make([]byte, mib))
		}, 3 * mib},
		{"list, synced and yet bad", true, func(t *testing.T, dir string) {
			f, _ := os.OpenFile(partFile(dir, data, ".part"), os.O_WRONLY, 0)
			f.WriteAt([]byte{data[mib+5] + 1}, mib+5)
			f.Close()
		}, mib},
		{"list, no progress", true, func(t *testing.T, dir string) {
			os.Remove(partFile(dir, data, ".progress"))
		}, 2 * mib},
		{"list, the whole", true, func(t *testing.T, dir string) {
			appendTo(t, partFile(dir, data, ".part"), data[2*mib+5:])
		}, 5 * mib},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			ch := open(t, cache.Config{Dir: dir})
			w := create(t, ch, objectOf(data, c.list))
			write(t, w, data[:2*mib+5])
			w.Suspend()
			rebooted(t, dir, data)
			c.damage(t, dir)
			ch.Close()
			ch = open(t, cache.Config{Dir: dir})
			w = create(t, ch, objectOf(data, c.list))
			if w.Written() != int64(c.want) {
				t.Errorf("goes on at %d, want %d", w.Written(), c.want)
			}
			finish(t, ch, w, data)
		})
	}
}

// TestSynced: progress is written now and then, and says no more than is synced.
func TestSynced(t *testing.T) {
	data := content(3, 2*mib)
	for _, list := range []bool{true, false} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			c, err := cache.Open(t.Context(), cache.Config{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			w, err := c.Create(t.Context(), objectOf(data, list))
			if err != nil {
				t.Fatal(err)
			}
			synced := func() (n int) {
				synctest.Wait()
				raw, _ := os.ReadFile(partFile(dir, data, ".progress"))
				if len(raw) > 0 {
					var p struct{ Synced int }
					if err := json.Unmarshal(raw, &p); err != nil {
						t.Errorf("%q: %v", raw, err)
					}
					n = p.Synced
				}
				return n
			}
			write(t, w, data[:mib])
			if n := synced(); n != 0 {
				t.Errorf("at once: %d", n)
			}
			time.Sleep(time.Second)
			write(t, w, data[mib:mib+1])
			if n := synced(); n != mib && list || n != mib+1 && !list {
				t.Errorf("after a second: %d", n)
			}
			time.Sleep(5 * time.Second)
			write(t, w, data[mib+1:mib+2])
			time.Sleep(5 * time.Second)
			write(t, w, data[mib+2:2*mib-1])
			if n := synced(); n != mib && list || n != 2*mib-1 && !list {
				t.Errorf("after ten more: %d", n)
			}
			w.Abort()
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestReleased: what readers may see.
func TestReleased(t *testing.T) {
	for _, c := range []struct {
		size, written int
		list          bool
		want          int
	}{
		{3*mib + 5, mib - 1, true, 0},
		{3*mib + 5, mib, true, mib},
		{3*mib + 5, 2*mib + 9, true, 2 * mib},
		{3*mib + 5, 3*mib + 5, true, 3 * mib},
		{2 * mib, 2 * mib, true, mib},
		{mib, mib, true, 0},
		{5, 5, true, 0},
		{0, 0, true, 0},
		{mib, mib, false, 768 * kib},
		{mib, 100, false, 100},
		{mib, 800 * kib, false, 768 * kib},
		{256 * kib, 256 * kib, false, 0},
		{256*kib + 1, 5, false, 1},
		{0, 0, false, 0},
	} {
		ch := open(t, cache.Config{Dir: t.TempDir()})
		data := content(4, c.size)
		w := create(t, ch, objectOf(data, c.list))
		for p := data[:c.written]; len(p) > 0; {
			n := min(len(p), 100*kib)
			write(t, w, p[:n])
			p = p[n:]
		}
		if w.Released() != int64(c.want) {
			t.Errorf("%+v: released %d", c, w.Released())
		}
		if err := w.Verify(); (err == nil) != (c.size == c.written) || err == nil && w.Released() != w.Size() {
			t.Errorf("%+v: released %d after verification: %v", c, w.Released(), err)
		}
	}
}

// TestBadBlock: it is dropped, whoever sent it, and the next try goes on there.
func TestBadBlock(t *testing.T) {
	c := open(t, cache.Config{Dir: t.TempDir()})
	data := content(5, 3*mib+77)
	w := create(t, c, objectOf(data, true))
	for _, bad := range []int{0, mib, 3*mib + 3} {
		start := bad / mib * mib
		write(t, w, data[w.Written():start+1])
		wrong := bytes.Clone(data[start+1:])
		wrong[max(bad-start-1, 0)]++
		n, err := w.Write(wrong)
		if end := min(mib-1, len(wrong)); !errors.Is(err, cache.ErrMismatch) || n != end {
			t.Fatalf("at %d: %d bytes, %v", bad, n, err)
		}
		if w.Written() != int64(start) || w.Released() != int64(start) {
			t.Fatalf("at %d: goes on at %d, released %d", bad, w.Written(), w.Released())
		}
	}
	write(t, w, data[w.Written():len(data)-9])
	if err := w.Rewind(); err != nil || w.Written() != 3*mib {
		t.Errorf("rewound to %d, %v", w.Written(), err)
	}
	finish(t, c, w, data)
	for _, blocks := range [][]byte{{}, blocksOf(data)[1:], append(blocksOf(data), 1)} {
		_, err := c.Create(t.Context(), cache.Object{SHA256: sumOf(data), Size: int64(len(data)), Blocks: blocks})
		if err == nil || errors.Is(err, cache.ErrMismatch) || errors.Is(err, cache.ErrNoSpace) {
			t.Errorf("list of %d bytes: %v", len(blocks), err)
		}
	}
}

// TestOldHandles: a reader keeps the bytes that it has begun to read.
func TestOldHandles(t *testing.T) {
	dir := t.TempDir()
	c := open(t, cache.Config{Dir: dir})
	data := content(6, 500*kib)
	wrong := content(7, 300*kib)
	w := create(t, c, objectOf(data, false))
	write(t, w, wrong)
	reader := func() *os.File {
		f, err := w.Open()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	want := func(f *os.File, data []byte) {
		t.Helper()
		if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
	old := reader()
	if err := w.Reset(); err != nil || w.Written() != 0 || w.Released() != 0 {
		t.Fatal(w.Written(), w.Released(), err)
	}
	if _, err := os.Stat(partFile(dir, data, ".progress")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the old file's progress is there")
	}
	write(t, w, data[:300*kib])
	suspended := reader()
	w.Suspend()
	w = create(t, c, objectOf(data, false))
	write(t, w, data[300*kib:])
	committed := reader()
	h, err := w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	if _, err := w.Open(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Commit: %v", err)
	}
	c.Shrink(t.Context(), mib)
	want(old, wrong)
	want(suspended, data)
	want(committed, data)

	w = create(t, c, objectOf(data, false))
	write(t, w, data[:5])
	aborted := reader()
	if _, err := c.Create(t.Context(), objectOf(data, false)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second writer: %v", err)
	}
	w.Abort()
	want(aborted, data[:5])
}

// TestPartsGoFirst, the oldest first, and then what is not pinned.
func TestPartsGoFirst(t *testing.T) {
	c := open(t, cache.Config{Dir: t.TempDir(), MaxBytes: 600})
	for i := range 2 {
		if err := put(t, c, object(i, 100)); err != nil {
			t.Fatal(err)
		}
	}
	for i := 10; i < 13; i++ {
		w := create(t, c, objectOf(object(i, 100), false))
		write(t, w, object(i, 50))
		w.Suspend()
	}
	c.SetPinned(map[string]bool{sumOf(object(0, 100)): true, sumOf(object(10, 100)): true, sumOf(object(1, 100)): false})
	state := func(want string) {
		t.Helper()
		var got strings.Builder
		for _, p := range c.Parts() {
			for i := range 20 {
				if p.SHA256 == sumOf(object(i, 100)) {
					fmt.Fprintf(&got, "part %d, ", i)
				}
			}
		}
		for i := range 20 {
			if has(c, object(i, 100)) {
				fmt.Fprintf(&got, "object %d, ", i)
			}
		}
		if got.String() != want {
			t.Errorf("there is %s and not %s", got.String(), want)
		}
	}
	state("part 10, part 11, part 12, object 0, object 1, ")
	if err := put(t, c, object(5, 300)); err != nil {
		t.Fatal(err)
	}
	state("part 10, part 12, object 0, object 1, ")
	c.Shrink(t.Context(), 1)
	state("part 10, object 0, object 1, ")
	c.Shrink(t.Context(), 51)
	state("object 0, ")
	if st := c.Stats(); st.Pinned != 100 || st.Bytes != 400 || st.Evicted != 1 {
		t.Errorf("%+v", st)
	}
	if !c.Shrink(t.Context(), 1000) || c.Shrink(t.Context(), 1) {
		t.Error("it does not say whether something went")
	}
	state("object 0, ")
	if err := put(t, c, object(6, 501)); !errors.Is(err, cache.ErrNoSpace) {
		t.Errorf("beside what is pinned: %v", err)
	}
	c.SetPinned(nil)
	if err := put(t, c, object(6, 501)); err != nil {
		t.Error(err)
	}
}

func TestDropParts(t *testing.T) {
	dir := t.TempDir()
	c := open(t, cache.Config{Dir: dir})
	for i := range 4 {
		w := create(t, c, objectOf(object(i, 1000+i), false))
		write(t, w, object(i, 500))
		w.Suspend()
	}
	c.DropParts(func(p cache.Part) bool { return p.Size == 1002 && p.Written == 500 })
	if p := c.Parts(); len(p) != 1 || p[0].SHA256 != sumOf(object(2, 1002)) || c.Stats().PartBytes != 500 {
		t.Errorf("%+v", p)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "tmp", "*")); len(left) != 2 {
		t.Errorf("left: %v", left)
	}
}

// TestStrangersInTmp: what cannot be gone on with is removed, whatever it is.
func TestStrangersInTmp(t *testing.T) {
	dir := t.TempDir()
	c := open(t, cache.Config{Dir: dir})
	data := content(8, 2*mib)
	w := create(t, c, objectOf(data, true))
	write(t, w, data[:mib])
	w.Suspend()
	c.Close()
	sum := sumOf([]byte("x"))
	for _, name := range []string{
		"x", sum, sum + ".1", sum + ".part", sum + "-5.part", sum + "-1.part", sum + "-05.part", sum + "--5.part", sum + "-0.part",
		sum + "-99999999999999999999.part", strings.ToUpper(sum) + "-9.part", sum + "-9.progress", sum + "-9.part.progress", sum + "-9.progress.new",
	} {
		if err := os.WriteFile(filepath.Join(dir, "tmp", name), []byte("xx"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	os.Remove(filepath.Join(dir, "tmp", sum+"-5.part"))
	os.WriteFile(filepath.Join(dir, "tmp", sum+"-7.part"), nil, 0o644)
	os.MkdirAll(filepath.Join(dir, "tmp", sum+"-8.part", "deep"), 0o755)
	os.Symlink("/etc/passwd", filepath.Join(dir, "tmp", sum+"-6.part"))
	open(t, cache.Config{Dir: dir})
	left, _ := filepath.Glob(filepath.Join(dir, "tmp", "*"))
	if len(left) != 2 || left[0] != partFile(dir, data, ".part") || left[1] != partFile(dir, data, ".progress") {
		t.Errorf("left: %v", left)
	}
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Error(err)
	}
}

// TestLostPart: a part that vanishes or shrinks under the cache is begun again.
func TestLostPart(t *testing.T) {
	for _, damage := range []func(string) error{os.Remove, func(p string) error { return os.Truncate(p, 3) }} {
		dir := t.TempDir()
		c := open(t, cache.Config{Dir: dir})
		data := content(9, 700*kib)
		w := create(t, c, objectOf(data, false))
		write(t, w, data[:500*kib])
		w.Suspend()
		if err := damage(partFile(dir, data, ".part")); err != nil {
			t.Fatal(err)
		}
		w = create(t, c, objectOf(data, false))
		if w.Written() != 0 {
			t.Errorf("goes on at %d", w.Written())
		}
		finish(t, c, w, data)
	}
}

// TestWriteIsCheap: the buffers and hashes of a Writer are made once.
func TestWriteIsCheap(t *testing.T) {
	c := open(t, cache.Config{Dir: t.TempDir()})
	data := content(10, 32*kib)
	w := create(t, c, cache.Object{SHA256: sumOf(data), Size: 1 << 30})
	if n := testing.AllocsPerRun(50, func() { w.Write(data) }); n > 0.1 {
		t.Errorf("%.1f allocations a call", n)
	}
}
