package install

import (
	"fmt"

	"golang.org/x/sys/windows"
)

// privateACL grants all to the system, administrators and the owner, and
// inherits nothing.
const privateACL = "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;OW)"

func makePrivate(dir string) error {
	sd, err := windows.SecurityDescriptorFromString(privateACL)
	if err != nil {
		return err
	}
	acl, _, err := sd.DACL()
	if err != nil {
		return err
	}
	err = windows.SetNamedSecurityInfo(dir, windows.SE_FILE_OBJECT,
		windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, acl, nil)
	if err != nil {
		return fmt.Errorf("%w: restrict %s: %w", ErrUnsafe, dir, err)
	}
	return nil
}

// checkPrivate sets the list of rights again: it is ours to set, or the
// directory is not ours.
func checkPrivate(dir string) error { return makePrivate(dir) }

func checkOwned(string) error { return nil }
