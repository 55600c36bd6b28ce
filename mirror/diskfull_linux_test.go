package mirror_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/repo/store/storetest/smalldisk"
)

// fillUp leaves no byte of the file system.
func fillUp(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "somebody else's"))
	must(t, err)
	defer f.Close()
	for buf := make([]byte, 4096); err == nil; {
		_, err = f.Write(buf)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// TestDiskFilledByOthers: somebody else fills the disk. What is cached is
// served, new metadata comes, and a patch that has no room is refused; when
// there is room again it comes.
func TestDiskFilledByOthers(t *testing.T) {
	disk := smalldisk.Mount(t)
	if disk == "" {
		return
	}
	s := newSite(t, func(s *site) { s.cfg.Dir = filepath.Join(disk, "mirror") })
	s.want(patchA, bytesA)
	s.want(patchB, bytesB)
	until(t, "both in the cache", func() bool { return s.m.Status().Cache.Objects == 2 })
	fillUp(t, disk)

	const large = "patches/app/2/any/large"
	data := content("large", 2<<20)
	s.publish(func(r *tuftest.Repo) { r.AddArtifact("product-app", large, data) })
	before := s.timestamp()
	must(t, s.m.Refresh(t.Context()))
	if now := s.timestamp(); now <= before {
		t.Errorf("timestamp %d after %d: a full disk keeps clients from what is new", now, before)
	}
	if n := s.m.Status().Cache.Objects; n == 0 {
		t.Error("all of the cache went for a little metadata")
	}
	asked := s.up.transfers.Load()
	s.want(patchB, bytesB) // used last, so A went for the metadata if one had to
	if s.up.transfers.Load() != asked {
		t.Error("what was cached is gone")
	}
	if resp, body, err := s.try("GET", urlOf(large, data)); err == nil && (resp.StatusCode != 503 || len(body) > 100) {
		t.Errorf("a patch without room: status %d, %d bytes", resp.StatusCode, len(body))
	}

	must(t, os.Remove(filepath.Join(disk, "somebody else's")))
	until(t, "the patch, now that there is room", func() bool {
		resp, body, err := s.try("GET", urlOf(large, data))
		return err == nil && resp.StatusCode == 200 && bytes.Equal(body, data)
	})
}
