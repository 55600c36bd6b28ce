package cache_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/patchkeep/patchkeep/mirror/cache"
	"github.com/patchkeep/patchkeep/repo/store/storetest/smalldisk"
)

// occupy fills the disk but for free bytes, as another program may.
func occupy(t *testing.T, dir string, free int64) (name string) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	name = filepath.Join(dir, "foreign")
	if err := os.WriteFile(name, make([]byte, int64(st.Bavail*uint64(st.Bsize))-free), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestFullDisk: what is there is served, what comes is refused, and everything
// works again when there is room.
func TestFullDisk(t *testing.T) {
	dir := smalldisk.Mount(t)
	if dir == "" {
		return
	}
	c := open(t, cache.Config{Dir: dir})
	kept, fresh := content(1, mib), content(2, 2*mib)
	if err := put(t, c, kept); err != nil {
		t.Fatal(err)
	}
	c.SetPinned(map[string]bool{sumOf(kept): true})

	for _, list := range []bool{true, false} {
		w := create(t, c, objectOf(fresh, list))
		write(t, w, fresh[:300*kib])
		foreign := occupy(t, dir, 200*kib)
		n, err := w.Write(fresh[300*kib : mib+100*kib])
		if !errors.Is(err, cache.ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) || w.Written() != int64(300*kib+n) {
			t.Errorf("%d bytes more, %d written: %v", n, w.Written(), err)
		}
		wantObject(t, c, kept)
		if _, err := c.Create(t.Context(), objectOf(content(3, mib), false)); !errors.Is(err, cache.ErrNoSpace) {
			t.Errorf("the disk is full: %v", err)
		}
		w.Suspend()
		wantObject(t, c, kept)
		os.Remove(foreign)
		w = create(t, c, objectOf(fresh, list))
		if w.Written() == 0 {
			t.Error("nothing is left of what was written")
		}
		finish(t, c, w, fresh)
		c.Shrink(t.Context(), 1)
		if has(c, fresh) {
			t.Fatal("still there")
		}
	}
	wantObject(t, c, kept)

	// A cache can be opened and closed on a full disk.
	c.Close()
	foreign := occupy(t, dir, 0)
	c, err := cache.Open(t.Context(), cache.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	wantObject(t, c, kept)
	if err := c.Close(); err != nil && !errors.Is(err, cache.ErrNoSpace) {
		t.Error(err)
	}
	os.Remove(foreign)
	c = open(t, cache.Config{Dir: dir})
	wantObject(t, c, kept)
	if st := c.Stats(); st.Damaged != 0 {
		t.Errorf("%+v", st)
	}
}

// TestRoomIsMade: when the disk is full against all promises, what is not
// needed goes, and the write succeeds.
func TestRoomIsMade(t *testing.T) {
	dir := smalldisk.Mount(t)
	if dir == "" {
		return
	}
	c := open(t, cache.Config{Dir: dir})
	old, fresh := content(1, 3*mib), content(2, 2*mib)
	if err := put(t, c, old); err != nil {
		t.Fatal(err)
	}
	w := create(t, c, objectOf(fresh, true))
	write(t, w, fresh[:100])
	occupy(t, dir, 100*kib)
	finish(t, c, w, fresh)
	if has(c, old) || c.Stats().Evicted != 1 {
		t.Error("how was there room?")
	}
}

// TestReadOnlyDisk: as systems make a disk that is broken. Nothing is forgotten,
// and nothing counts as damaged.
func TestReadOnlyDisk(t *testing.T) {
	dir := smalldisk.Mount(t)
	if dir == "" {
		return
	}
	c := open(t, cache.Config{Dir: dir, MaxBytes: 2 * mib})
	kept, part, fresh := content(1, mib), content(2, mib), content(3, 3*mib/2)
	if err := put(t, c, kept); err != nil {
		t.Fatal(err)
	}
	w := create(t, c, objectOf(part, false))
	write(t, w, part[:500*kib])
	w.Suspend()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	before := c.Stats()
	for _, o := range []cache.Object{objectOf(fresh, false), objectOf(part, false)} {
		if w, err := c.Create(t.Context(), o); err == nil {
			w.Abort()
			t.Error("something can be written")
		}
	}
	if c.Shrink(t.Context(), 1) {
		t.Error("something was removed")
	}
	wantObject(t, c, kept)
	if st := c.Stats(); st.Objects != before.Objects || st.Bytes != before.Bytes || st.Reserved != 0 || st.Damaged != 0 {
		t.Errorf("%+v", st)
	}
	if r, err := cache.Check(t.Context(), dir, func(string, error) {}); err != nil || r.Damaged != 0 || r.Objects != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	w = create(t, c, objectOf(fresh, false)) // evicts
	finish(t, c, w, fresh)
}
