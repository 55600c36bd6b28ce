package store

import (
	"fmt"
	"strings"

	"github.com/patchkeep/patchkeep/repo/layout"
)

// ReservedDir is where drivers keep what is not an object: temporary files,
// the lock, probes. No object's name begins with it, and List never shows it.
const ReservedDir = ".patchkeep"

// CheckName checks an object's name: one that layout.CheckTargetPath allows,
// outside ReservedDir. The error wraps layout.ErrBadName.
func CheckName(name string) error {
	if err := layout.CheckTargetPath(name); err != nil {
		return err
	}
	// EqualFold, since some file systems do not tell case apart.
	if first, _, _ := strings.Cut(name, "/"); strings.EqualFold(first, ReservedDir) {
		return fmt.Errorf("%w: %s is reserved", layout.ErrBadName, ReservedDir)
	}
	return nil
}

// CheckPrefix checks a prefix for List: empty, or the beginning of a name. The
// error wraps layout.ErrBadName.
func CheckPrefix(prefix string) error {
	dir, _ := SplitPrefix(prefix)
	if dir == "" && !strings.HasPrefix(prefix, "/") {
		return nil
	}
	return CheckName(dir)
}

// SplitPrefix returns the directory that every name beginning with prefix is
// in or below, without its slash, and the rest of prefix.
func SplitPrefix(prefix string) (dir, rest string) {
	i := strings.LastIndexByte(prefix, '/')
	return prefix[:max(i, 0)], prefix[i+1:]
}
