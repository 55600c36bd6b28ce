//go:build unix

package install

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// makePrivate takes from others what they should not have; a directory that
// is not ours is left to checkPrivate.
func makePrivate(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if info.IsDir() && info.Mode().Perm() != 0o700 && owner(info) == os.Geteuid() {
		return os.Chmod(dir, 0o700)
	}
	return nil
}

// checkPrivate checks that dir is ours with mode 0700, and that nobody else
// can put another in its place.
func checkPrivate(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() || owner(info) != os.Geteuid() || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%w: %s must be a directory of this user with mode 0700", ErrUnsafe, dir)
	}
	return checkOwned(dir)
}

// checkOwned checks that none but this user and root can change dir, or any
// directory on the way to it.
func checkOwned(dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	for child := true; ; child = false {
		info, err := os.Lstat(dir)
		if err != nil {
			return err
		}
		// In a sticky directory like /tmp others cannot rename what is ours;
		// the last directory itself must be closed to them all the same.
		open := info.Mode().Perm()&0o022 != 0 && (child || info.Mode()&os.ModeSticky == 0)
		if o := owner(info); open || o != 0 && o != os.Geteuid() {
			return fmt.Errorf("%w: %s can be changed by others than this user and root: chown it, and chmod go-w it", ErrUnsafe, dir)
		}
		up := filepath.Dir(dir)
		if up == dir {
			return nil
		}
		dir = up
	}
}

func owner(info os.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}
