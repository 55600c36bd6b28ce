package agent

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// lockRun takes a lock that lasts as long as this process or any program that
// inherits the handle: nobody else can open the file meanwhile. ok is false if
// such a one is still there.
func lockRun(path string, fresh bool) (f *os.File, ok bool, err error) {
	if fresh {
		// A program that an earlier run left behind may hold the old file.
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, false, err
		}
	}
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, false, err
	}
	h, err := windows.CreateFile(name, windows.GENERIC_READ|windows.GENERIC_WRITE, windows.FILE_SHARE_DELETE, nil, windows.OPEN_ALWAYS, windows.FILE_ATTRIBUTE_NORMAL, 0)
	if errors.Is(err, windows.ERROR_SHARING_VIOLATION) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(h), path), true, nil
}
