package cache_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/patchkeep/patchkeep/mirror/cache"
)

func objectPath(dir string, data []byte) string {
	return filepath.Join(dir, "cas/sha256", sumOf(data)[:2], sumOf(data))
}

// flip changes a byte, as a disk may, and nothing else.
func flip(t *testing.T, name string) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	info, _ := os.Stat(name)
	data[len(data)/2]++
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
	os.Chtimes(name, info.ModTime(), info.ModTime())
}

func get(ctx context.Context, c *cache.Cache, data []byte) bool {
	h, ok := c.Get(ctx, sumOf(data), int64(len(data)))
	if ok {
		h.Close()
	}
	return ok
}

// TestUncleanStop: what a process that did not close the cache has left is
// hashed before it is used; and only then.
func TestUncleanStop(t *testing.T) {
	dir := t.TempDir()
	good, bad, idle, spoilt := content(1, 700*kib), content(2, 700*kib), content(3, 10), content(4, 20)
	c := open(t, cache.Config{Dir: dir})
	for _, data := range [][]byte{good, bad, idle} {
		if err := put(t, c, data); err != nil {
			t.Fatal(err)
		}
	}
	// c is not closed: to the next one that is a crash.
	c = open(t, cache.Config{Dir: dir})
	if st := c.Stats(); st.Unsure != 3 {
		t.Errorf("%+v", st)
	}
	flip(t, objectPath(dir, bad))
	if !has(c, bad) {
		t.Error("nobody has looked at it yet")
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if get(done, c, good) {
		t.Error("handed out without a look")
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if !get(t.Context(), c, good) {
				t.Error("a good one is gone")
			}
			if get(t.Context(), c, bad) {
				t.Error("a damaged one was handed out")
			}
		})
	}
	wg.Wait()
	if st := c.Stats(); st.Unsure != 1 || st.Damaged != 1 || has(c, bad) || !has(c, good) {
		t.Errorf("%+v", st)
	}
	if _, err := os.Stat(objectPath(dir, bad)); !os.IsNotExist(err) {
		t.Errorf("the damaged file: %v", err)
	}
	if err := put(t, c, bad); err != nil {
		t.Fatal(err)
	}
	if err := put(t, c, spoilt); err != nil {
		t.Fatal(err)
	}
	wantObject(t, c, bad)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}

	// After a clean stop nobody looks again, but at what nobody has looked at yet.
	flip(t, objectPath(dir, spoilt))
	flip(t, objectPath(dir, idle))
	c = open(t, cache.Config{Dir: dir})
	if st := c.Stats(); st.Unsure != 1 {
		t.Errorf("after a clean stop: %+v", st)
	}
	if !get(t.Context(), c, spoilt) {
		t.Error("looked again")
	}
	if get(t.Context(), c, idle) {
		t.Error("a damaged one was handed out")
	}
	w := create(t, c, objectOf(content(5, 9), false))
	c.Close() // while it is written
	w.Abort()
	c = open(t, cache.Config{Dir: dir})
	if st := c.Stats(); st.Unsure != 3 {
		t.Errorf("closed while something was written: %+v", st)
	}
}

// TestCleanIsBelievedOnlyWhole: a marker that is not whole is none.
func TestCleanIsBelievedOnlyWhole(t *testing.T) {
	sum := sumOf(object(1, 10))
	for text, unsure := range map[string]int{
		"closed 1\nend\n":                   0,
		"closed 1\n" + sum + "\nend\n":      1,
		"closed 1\n" + sum + "\n":           2,
		"closed 1\n" + sum[:60] + "\nend\n": 2,
		"closed 2\nend\n":                   2,
		"end\n":                             2,
		"":                                  2,
	} {
		dir := t.TempDir()
		c := open(t, cache.Config{Dir: dir})
		put(t, c, object(1, 10))
		put(t, c, object(2, 10))
		c.Close()
		if err := os.WriteFile(filepath.Join(dir, "cas/clean"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if st := open(t, cache.Config{Dir: dir}).Stats(); st.Unsure != unsure {
			t.Errorf("%q: %+v", text, st)
		}
		if _, err := os.Stat(filepath.Join(dir, "cas/clean")); !os.IsNotExist(err) {
			t.Errorf("%q: the marker is there while the cache is open: %v", text, err)
		}
	}
}

// TestScrub reads everything at its pace, begins where it was after a restart,
// finds damage, and changes nothing else.
func TestScrub(t *testing.T) {
	dir := t.TempDir()
	var all [][]byte
	for i := range uint64(10) {
		all = append(all, content(i, mib))
	}
	slices.SortFunc(all, func(a, b []byte) int { return bytes.Compare([]byte(sumOf(a)), []byte(sumOf(b))) })
	synctest.Test(t, func(t *testing.T) {
		cfg := cache.Config{Dir: dir}
		c, err := cache.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		for i, data := range all {
			if err := put(t, c, data); err != nil {
				t.Fatal(i, err)
			}
			time.Sleep(time.Second)
		}
		flip(t, objectPath(dir, all[1]))
		flip(t, objectPath(dir, all[8]))
		first := all[0]
		begun := time.Now()
		run := func(c *cache.Cache, d time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			c.Scrub(ctx, mib, time.Hour)
		}
		c.Scrub(t.Context(), 0, 0) // returns
		run(c, 5500*time.Millisecond)
		if st := c.Stats(); st.Scrubbed < 5*mib || st.Scrubbed > 6*mib || st.Damaged != 1 || st.Objects != 9 {
			t.Errorf("after 5 s: %+v", st)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		flip(t, objectPath(dir, first)) // was read: its turn comes in an hour
		if c, err = cache.Open(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		run(c, 6*time.Second)
		if st := c.Stats(); st.Damaged != 1 || st.Objects != 8 {
			t.Errorf("after the first round: %+v", st)
		}
		before := c.Stats().Scrubbed
		run(c, time.Hour-time.Since(begun)-time.Second)
		if st := c.Stats(); st.Scrubbed != before {
			t.Errorf("read again too soon: %+v", st)
		}
		run(c, time.Minute)
		if st := c.Stats(); st.Damaged != 2 || st.Objects != 7 || st.Scrubbed != before+8*mib {
			t.Errorf("after the second round: %+v", st)
		}
		// The order of use is what it was: all[2] was written before the others.
		c.Shrink(t.Context(), 1)
		if has(c, all[2]) || !has(c, all[3]) {
			t.Error("scrubbing counts as use")
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestScrubSettlesDoubts, so that a clean stop some day follows an unclean one.
func TestScrubSettlesDoubts(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c, err := cache.Open(t.Context(), cache.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			if err := put(t, c, object(i, 100)); err != nil {
				t.Fatal(err)
			}
		}
		c2, err := cache.Open(t.Context(), cache.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { c2.Scrub(ctx, mib, 0) })
		for range 20 { // objects come and go meanwhile
			c2.Shrink(ctx, 1)
			put(t, c2, object(9, 100))
			time.Sleep(time.Second)
		}
		cancel()
		wg.Wait()
		if st := c2.Stats(); st.Unsure != 0 || st.Damaged != 0 {
			t.Errorf("%+v", st)
		}
		c.Close()
		c2.Close()
	})
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	c := open(t, cache.Config{Dir: dir})
	good, flipped, short, link := content(1, 400*kib), content(2, 10), content(3, 10), content(4, 10)
	for _, data := range [][]byte{good, flipped, short, link} {
		if err := put(t, c, data); err != nil {
			t.Fatal(err)
		}
	}
	w := create(t, c, objectOf(content(5, 10), false))
	write(t, w, []byte("x"))
	w.Suspend()
	c.Close()
	check := func() (cache.Report, map[string]error) {
		t.Helper()
		found := map[string]error{}
		r, err := cache.Check(t.Context(), dir, func(file string, err error) { found[file] = err })
		if err != nil {
			t.Fatal(err)
		}
		return r, found
	}
	if r, found := check(); r != (cache.Report{Objects: 4, Bytes: 400*kib + 30, Parts: 1}) || len(found) != 0 {
		t.Errorf("%+v, %v", r, found)
	}
	flip(t, objectPath(dir, flipped))
	os.Truncate(objectPath(dir, short), 3)
	os.Remove(objectPath(dir, link))
	os.Symlink("/etc/passwd", objectPath(dir, link))
	stray := filepath.Join(filepath.Dir(objectPath(dir, good)), "stray")
	os.WriteFile(stray, nil, 0o644)
	r, found := check()
	if r != (cache.Report{Objects: 1, Bytes: 400 * kib, Parts: 1, Damaged: 3}) || len(found) != 4 {
		t.Errorf("%+v, %v", r, found)
	}
	for _, name := range []string{objectPath(dir, flipped), objectPath(dir, short), objectPath(dir, link), stray} {
		rel, _ := filepath.Rel(dir, name)
		want := cache.ErrMismatch
		if name == stray {
			want = cache.ErrStray
		}
		if err := found[filepath.ToSlash(rel)]; !errors.Is(err, want) {
			t.Errorf("%s: %v", rel, err)
		}
	}
	if _, err := cache.Check(t.Context(), t.TempDir(), nil); !os.IsNotExist(errors.Unwrap(err)) {
		t.Errorf("what is no cache: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := cache.Check(ctx, dir, func(string, error) {}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
