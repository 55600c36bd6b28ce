//go:build unix

package install_test

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// holdLock takes a POSIX lock on a file, as dpkg and apt do.
func holdLock(t *testing.T, path string) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	mustDo(t, err)
	mustDo(t, unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
	return func() { f.Close() }
}
