package install

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lease keeps a file from being opened for writing while it is hashed and handed
// over: fcntl(2), F_SETLEASE. Who tries waits for the seconds that
// /proc/sys/fs/lease-break-time says. It is an error that somebody has it open for
// writing already. Where the file system has no leases there is none.
func lease(f *os.File) (held bool, err error) {
	for wait := time.Millisecond; ; wait *= 2 {
		_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, unix.EAGAIN) {
			return false, nil // none to be had
		}
		// A process that was just forked has for a moment all that we have open,
		// the download of a moment ago among it.
		if wait > time.Second {
			return false, fmt.Errorf("%w: another process has %s open for writing", ErrChanged, f.Name())
		}
		time.Sleep(wait)
	}
}

// leased reports whether nobody has asked to write since.
func leased(f *os.File) bool {
	now, err := unix.FcntlInt(f.Fd(), unix.F_GETLEASE, 0)
	return err == nil && now == unix.F_RDLCK
}

func unlease(f *os.File) { _, _ = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK) } // it ends with the handle at the latest
