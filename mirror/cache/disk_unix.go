//go:build linux || darwin || freebsd

package cache

import "golang.org/x/sys/unix"

// diskFull are the system's words for a disk that takes no more.
var diskFull = []error{unix.ENOSPC, unix.EDQUOT}

// unreadable are its words for a file whose bytes are lost.
var unreadable = []error{unix.EIO}

// freeBytes is what an unprivileged process may still write below dir.
func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}
