//go:build !windows

package tuf

import "os"

// syncDir makes a rename or a removal in dir survive a power loss.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
