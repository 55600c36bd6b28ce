package install

import (
	"os"

	"golang.org/x/sys/unix"
)

// syncTree syncs a directory with all in it: by one call for its whole file
// system, which is far cheaper than one for each file.
func syncTree(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
