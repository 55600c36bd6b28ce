//go:build linux

// Package smalldisk gives tests a file system that can be filled up, without
// root.
package smalldisk

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// Mount runs the test once more, in a mount namespace of its own, and returns
// there the directory of an empty file system of 8 MiB. To the test that it was
// called from it returns "": nothing is left to do.
func Mount(t *testing.T) (dir string) {
	t.Helper()
	return MountSize(t, 8)
}

// MountSize is Mount with a file system of so many MiB.
func MountSize(t *testing.T, mib int) (dir string) {
	t.Helper()
	const env = "PATCHKEEP_TEST_SMALL_DISK"
	if dir := os.Getenv(env); dir != "" {
		if err := syscall.Mount("small", dir, "tmpfs", 0, fmt.Sprintf("mode=700,size=%dm", mib)); err != nil {
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
