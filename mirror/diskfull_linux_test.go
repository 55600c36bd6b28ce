package mirror_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
)

// smallDisk runs the test once more in a mount namespace of its own, where it
// is given an empty file system of 8 MiB. It needs no root.
func smallDisk(t *testing.T) (dir string) {
	t.Helper()
	const env = "PATCHKEEP_TEST_SMALL_DISK"
	if dir := os.Getenv(env); dir != "" {
		if err := syscall.Mount("small", dir, "tmpfs", 0, "size=8m,mode=700"); err != nil {
			t.Fatalf("mount a small disk: %v", err)
		}
		return dir
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), env+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("on a small disk: %v\n%s", err, out)
	}
	return ""
}

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
	disk := smallDisk(t)
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
