package install

import (
	"os"

	"golang.org/x/sys/unix"
)

// syncFileSystem syncs the file system that dir is on.
func syncFileSystem(dir string) (done bool, err error) {
	d, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer d.Close()
	return true, unix.Syncfs(int(d.Fd()))
}
