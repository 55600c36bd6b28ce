package install

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/patchkeep/patchkeep/repo/patch"
)

// Open opens a file that lies in a private directory and checks that it is
// the verified one: a regular file of this length and SHA-256, by its handle.
func Open(path string, length int64, sha256 string) (*os.File, error) {
	before, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is not a regular file", ErrChanged, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := checkHandle(f, path, length, sha256); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// checkFile checks all that must hold right before the file is handed over,
// and makes it executable if it is the program.
func (in *Installer) checkFile(job Job) error {
	if job.File == nil || !filepath.IsAbs(job.Path) {
		return fmt.Errorf("%w: no open file, or its path is not absolute", ErrChanged)
	}
	if err := checkPrivate(filepath.Dir(job.Path)); err != nil {
		return err
	}
	if runtime.GOOS != "windows" {
		mode := os.FileMode(0o600)
		if own := job.Patch.InstallsItself(); own && job.Patch.Kind == patch.KindScript || !own && job.Patch.Install.Argv[0] == "{file}" {
			mode = 0o700
		}
		if err := job.File.Chmod(mode); err != nil {
			return fmt.Errorf("set mode of %s: %w", job.Path, err)
		}
	}
	return checkHandle(job.File, job.Path, job.Length, job.SHA256)
}

// checkHandle hashes the file behind the handle and then looks whether the
// path still leads to it.
func checkHandle(f *os.File, path string, length int64, sum string) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() != length {
		return fmt.Errorf("%w: %s has %d bytes instead of %d", ErrChanged, path, info.Size(), length)
	}
	h := sha256.New()
	n, err := io.Copy(h, io.NewSectionReader(f, 0, length+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); n != length || got != sum {
		return fmt.Errorf("%w: the SHA-256 of %s is %s instead of %s", ErrChanged, path, got, sum)
	}
	now, err := os.Lstat(path)
	if err != nil || !os.SameFile(info, now) {
		return fmt.Errorf("%w: another file was put at %s", ErrChanged, path)
	}
	if after, err := f.Stat(); err != nil || !after.ModTime().Equal(info.ModTime()) || after.Size() != info.Size() {
		return fmt.Errorf("%w: %s was written while it was read", ErrChanged, path)
	}
	return nil
}

// PrivateDir makes sure that dir is there and that nobody but this user and
// root (on Windows: administrators and the system) can read or change it, or
// put another in its place. The error, which wraps ErrUnsafe, says what to do.
func PrivateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := makePrivate(dir); err != nil {
		return err
	}
	return checkPrivate(dir)
}
