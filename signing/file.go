package signing

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// Key files: NAME.key holds the private key (PEM, mode 0600), NAME.pub the
// public one (PKIX PEM). Only the first is needed; the second makes a key
// known without its password.
const (
	privateSuffix = ".key"
	publicSuffix  = ".pub"
	maxKeyFile    = 64 << 10 // bytes
)

var keyName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// checkName refuses names that would leave the directory or hide in it.
func checkName(name string) error {
	if !keyName.MatchString(name) || strings.HasSuffix(name, privateSuffix) || strings.HasSuffix(name, publicSuffix) {
		return fmt.Errorf("%w: name %q must be 1 to 64 letters, digits, dots, dashes or underscores, without .key or .pub", ErrKey, name)
	}
	return nil
}

// publicPath is where the public half of a key file lies.
func publicPath(keyPath string) string {
	return strings.TrimSuffix(keyPath, privateSuffix) + publicSuffix
}

// readPrivate reads a private key file that nobody else can read.
func readPrivate(path string) (*lockedKey, error) {
	data, err := readKeyFile(path, true)
	if err != nil {
		return nil, fmt.Errorf("read key file: %w", err)
	}
	locked, err := parseLocked(data)
	if err != nil {
		return nil, fmt.Errorf("read key file %q: %w", path, err)
	}
	return locked, nil
}

// readKeyFile reads a regular file of bounded size. The mode is that of the
// open file, so that nothing can be swapped between look and read.
func readKeyFile(path string, private bool) ([]byte, error) {
	// Opening a FIFO would hang.
	if fi, err := os.Stat(path); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %q is not a regular file", ErrKey, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if mode := fi.Mode().Perm(); private && mode&0o077 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("%w: others can read %q (mode %04o); run: chmod 600 '%s'", ErrKey, path, mode,
			strings.ReplaceAll(path, "'", `'\''`))
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxKeyFile {
		return nil, fmt.Errorf("%w: %q is larger than %d bytes", ErrKey, path, maxKeyFile)
	}
	return data, nil
}

// writeKeyPair creates NAME.key and NAME.pub in dir; neither may exist. After
// an error neither is left; a crash in between leaves a usable NAME.key.
func writeKeyPair(dir, name string, private, public []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	keyPath := filepath.Join(dir, name+privateSuffix)
	pubPath := publicPath(keyPath)
	if err := createFile(keyPath, private, 0o600); err != nil {
		return err
	}
	if err := createFile(pubPath, public, 0o644); err != nil {
		_ = os.Remove(keyPath)
		return err
	}
	if err := syncDir(dir); err != nil {
		_ = os.Remove(keyPath)
		_ = os.Remove(pubPath)
		return err
	}
	return nil
}

// createFile makes a new file, which appears whole, and waits until its content
// is on disk.
func createFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	err = os.Link(f.Name(), path)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	// No hard links here, as on many a USB stick.
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%q: %w", path, fs.ErrExist)
	}
	return os.Rename(f.Name(), path)
}

func syncDir(dir string) error {
	if runtime.GOOS == "windows" { // directories cannot be flushed there
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
