//go:build unix

package fetch_test

import (
	"path/filepath"
	"syscall"
	"testing"
)

// pipe is a named pipe that nobody writes to.
func pipe(t *testing.T) string {
	name := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Skip(err)
	}
	return name
}
