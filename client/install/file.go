package install

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/patchkeep/patchkeep/repo/patch"
)

// Open opens a file that lies in a private directory and checks that it is
// the verified one: a regular file of this length and SHA-256, by its handle. On
// Windows nobody can write, rename or remove it until the handle is closed.
func Open(path string, length int64, sha256 string) (*os.File, error) {
	before, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is not a regular file", ErrChanged, path)
	}
	f, err := openForReading(path)
	if err != nil {
		return nil, err
	}
	if _, err := checkHandle(f, path, length, sha256); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// held is a file that was found to be the verified one, and is watched from
// then on.
type held struct {
	job    Job
	was    stamp
	leased bool
}

// afterCheck is called between the check and what it is for; tests are the
// other process there.
var afterCheck = func() {}

// hold checks all that must hold right before the file is handed over, and
// makes it executable if it is the program.
func (in *Installer) hold(job Job) (*held, error) {
	if job.File == nil || !filepath.IsAbs(job.Path) {
		return nil, fmt.Errorf("%w: no open file, or its path is not absolute", ErrChanged)
	}
	if err := checkPrivate(filepath.Dir(job.Path)); err != nil {
		return nil, err
	}
	if runtime.GOOS != "windows" {
		mode := os.FileMode(0o600)
		if own := job.Patch.InstallsItself(); own && job.Patch.Kind == patch.KindScript || !own && job.Patch.Install.Argv[0] == "{file}" {
			mode = 0o700
		}
		if err := job.File.Chmod(mode); err != nil {
			return nil, fmt.Errorf("set mode of %s: %w", job.Path, err)
		}
	}
	h := &held{job: job}
	var err error
	if h.leased, err = lease(job.File); err != nil {
		return nil, err
	}
	if h.was, err = checkHandle(job.File, job.Path, job.Length, job.SHA256); err != nil {
		h.release()
		return nil, err
	}
	afterCheck()
	if h.leased && !leased(job.File) {
		h.release()
		return nil, fmt.Errorf("%w: another process wants to write %s", ErrChanged, job.Path)
	}
	return h, nil
}

func (h *held) release() {
	if h.leased {
		unlease(h.job.File)
	}
}

// changed is an error if another process has got at the file since the check.
// What a patch's own recipe, or a script, does to its file is its own business,
// as long as the content stays.
func (h *held) changed() error {
	now, err := stampOf(h.job.File)
	if err != nil {
		return err
	}
	if h.job.Patch.Kind == patch.KindScript || !h.job.Patch.InstallsItself() {
		now.touch(h.was)
	}
	if now != h.was {
		return fmt.Errorf("%w: another process changed %s meanwhile", ErrChanged, h.job.Path)
	}
	info, err := h.job.File.Stat()
	if err != nil {
		return err
	}
	at, err := os.Lstat(h.job.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed, as some set-up programs do with themselves
	}
	if err != nil || !os.SameFile(info, at) {
		return fmt.Errorf("%w: another file was put at %s meanwhile", ErrChanged, h.job.Path)
	}
	return nil
}

// checkHandle hashes the file behind the handle and then looks whether the
// path still leads to it, and nobody has touched it.
func checkHandle(f *os.File, path string, length int64, sum string) (stamp, error) {
	info, err := f.Stat()
	if err != nil {
		return stamp{}, err
	}
	if !info.Mode().IsRegular() || info.Size() != length {
		return stamp{}, fmt.Errorf("%w: %s has %d bytes instead of %d", ErrChanged, path, info.Size(), length)
	}
	before, err := stampOf(f)
	if err != nil {
		return stamp{}, err
	}
	h := sha256.New()
	n, err := io.Copy(h, io.NewSectionReader(f, 0, length+1))
	if err != nil {
		return stamp{}, fmt.Errorf("read %s: %w", path, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); n != length || got != sum {
		return stamp{}, fmt.Errorf("%w: the SHA-256 of %s is %s instead of %s", ErrChanged, path, got, sum)
	}
	now, err := os.Lstat(path)
	if err != nil || !os.SameFile(info, now) {
		return stamp{}, fmt.Errorf("%w: another file was put at %s", ErrChanged, path)
	}
	if after, err := stampOf(f); err != nil || after != before {
		return stamp{}, fmt.Errorf("%w: %s was written while it was read", ErrChanged, path)
	}
	return before, nil
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
