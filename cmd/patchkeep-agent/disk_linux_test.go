package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/patchkeep/patchkeep/repo/store/storetest/smalldisk"
)

// onSmallDisk is a site whose machine keeps its state on a disk of 24 MiB.
func onSmallDisk(t *testing.T, disk string) (s *site, ran string) {
	t.Helper()
	s = newSite(t)
	s.state = filepath.Join(disk, "state")
	ran = filepath.Join(t.TempDir(), "ran")
	s.add("hello", "1.1", "hello.bin", make([]byte, 6<<20), command("echo >>"+ran+"; echo 1.1 >"+ran+".version", detect("cat", ran+".version")))
	s.publish()
	s.enroll()
	return s, ran
}

func TestFullDisk(t *testing.T) {
	disk := smalldisk.MountSize(t, 24)
	if disk == "" {
		return
	}
	s, ran := onSmallDisk(t, disk)
	ballast := filepath.Join(disk, "ballast")
	s.must(os.WriteFile(ballast, make([]byte, 4<<20), 0o600))
	s.want(1, []string{"apply"}, "hello 1.1: not installed: download: ", "not enough disk space: 7 MiB needed, ", "hint: make room on this machine's disk; it is tried again on the next run")
	if _, err := os.Stat(ran); err == nil {
		t.Error("it was installed")
	}
	s.must(os.Remove(ballast))
	s.want(0, []string{"apply"}, "hello 1.1: installed")
}

func TestReadOnlyDisk(t *testing.T) {
	disk := smalldisk.MountSize(t, 24)
	if disk == "" {
		return
	}
	s, ran := onSmallDisk(t, disk)
	s.must(syscall.Mount("", disk, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
	s.want(1, []string{"apply"}, "read-only file system", "hint: nothing is installed while the state directory cannot be written")
	if _, err := os.Stat(ran); err == nil {
		t.Error("it was installed")
	}
	s.must(syscall.Mount("", disk, "", syscall.MS_REMOUNT, ""))
	s.want(0, []string{"apply"}, "hello 1.1: installed")
}
