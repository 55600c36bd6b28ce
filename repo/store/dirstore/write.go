package dirstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"github.com/patchkeep/patchkeep/repo/store"
)

const (
	tmpDir   = store.ReservedDir + "/tmp"
	lockFile = store.ReservedDir + "/lock"

	staleAfter = 24 * time.Hour        // a temporary file not written to for so long has no writer any more
	lockPoll   = 10 * time.Millisecond // how often the lock of another process is tried
	copyBuffer = 256 << 10

	dirPerm  = 0o755 // read by web servers, written by the publisher alone
	filePerm = 0o644
)

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, name string, r io.Reader, size int64, _ store.Options) (store.Info, error) {
	err := store.CheckName(name)
	var info store.Info
	if err == nil {
		info, err = s.create(ctx, name, r, size)
	}
	if err != nil {
		return store.Info{}, fmt.Errorf("create object %s: %w", name, err)
	}
	return info, nil
}

func (s *Store) create(ctx context.Context, name string, r io.Reader, size int64) (store.Info, error) {
	root, err := s.make()
	if err != nil {
		return store.Info{}, err
	}
	// Only to spare the work: the link below is what decides.
	if lookUp(root, name) == nil {
		return store.Info{}, store.ErrConflict
	}
	tmp, info, err := writeTemp(root, store.SizedReader(ctx, r, size), size)
	if err != nil {
		return store.Info{}, err
	}
	defer root.Remove(tmp)
	if err := ctx.Err(); err != nil {
		return store.Info{}, err
	}
	info.Name = name
	return info, s.show(ctx, root, tmp, name)
}

// show gives a temporary file its name, unless that is taken.
func (s *Store) show(ctx context.Context, root *os.Root, tmp, name string) error {
	err := s.link(root, tmp, name)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		err = s.showLocked(ctx, root, tmp, name)
	}
	if errors.Is(err, fs.ErrExist) {
		return taken(root, name)
	}
	if err != nil {
		return err
	}
	return syncDir(root, path.Dir(name))
}

// showLocked is for when a link alone does not do. Directories may be missing:
// the lock keeps a Delete from removing them, empty as they are. Or there are
// no hard links here: the lock keeps others in the same position out between
// the look and the rename. If it was something else, the rename fails for the
// same reason.
func (s *Store) showLocked(ctx context.Context, root *os.Root, tmp, name string) error {
	unlock, err := s.lock(ctx, root)
	if err != nil {
		return err
	}
	defer unlock()
	if err := makeDirs(root, path.Dir(name)); err != nil {
		return err
	}
	if err := s.link(root, tmp, name); err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	switch _, err := root.Lstat(name); {
	case err == nil:
		return fs.ErrExist
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return root.Rename(tmp, name)
}

// taken tells why name cannot be created: an object has it, or something that
// is none, which is no conflict that going on could solve.
func taken(root *os.Root, name string) error {
	if fi, err := root.Lstat(name); err == nil && !fi.Mode().IsRegular() {
		return fmt.Errorf("the name is taken: %w", errIrregular)
	}
	return store.ErrConflict
}

// Replace implements store.Store.
func (s *Store) Replace(ctx context.Context, name string, data []byte, etag string, _ store.Options) (store.Info, error) {
	err := store.CheckName(name)
	var info store.Info
	switch {
	case err != nil:
	case len(data) > store.MaxReplace:
		err = fmt.Errorf("%d bytes, more than the %d that can be replaced", len(data), store.MaxReplace)
	case etag == "":
		info, err = s.create(ctx, name, bytes.NewReader(data), int64(len(data)))
	default:
		info, err = s.replace(ctx, name, data, etag)
	}
	if err != nil {
		return store.Info{}, fmt.Errorf("replace object %s: %w", name, err)
	}
	return info, nil
}

func (s *Store) replace(ctx context.Context, name string, data []byte, etag string) (store.Info, error) {
	root, err := s.make()
	if err != nil {
		return store.Info{}, err
	}
	tmp, info, err := writeTemp(root, bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return store.Info{}, err
	}
	defer root.Remove(tmp)
	unlock, err := s.lock(ctx, root)
	if err != nil {
		return store.Info{}, err
	}
	defer unlock()
	f, old, err := openFile(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return store.Info{}, store.ErrConflict
	}
	if err != nil {
		return store.Info{}, err
	}
	f.Close() // Windows renames over a closed file only
	if old.ETag != etag {
		return store.Info{}, store.ErrConflict
	}
	if err := root.Rename(tmp, name); err != nil {
		return store.Info{}, err
	}
	info.Name = name
	return info, syncDir(root, path.Dir(name))
}

// Delete implements store.Store. Directories that become empty go too.
func (s *Store) Delete(ctx context.Context, name string) error {
	err := store.CheckName(name)
	if err == nil {
		err = s.remove(ctx, name)
	}
	if err != nil {
		return fmt.Errorf("delete object %s: %w", name, err)
	}
	return nil
}

func (s *Store) remove(ctx context.Context, name string) error {
	root, err := s.open()
	if err == nil {
		err = lookUp(root, name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	unlock, err := s.lock(ctx, root) // not between a Replace's look and its rename
	if err != nil {
		return err
	}
	defer unlock()
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for d := path.Dir(name); d != "." && d != store.ReservedDir; d = path.Dir(d) {
		if root.Remove(d) != nil { // not empty
			break
		}
	}
	return nil
}

// make returns the root for writing: the directory is made if there is none,
// and once per Store what writers that died have left is removed.
func (s *Store) make() (*os.Root, error) {
	root, err := s.open()
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeRoot(s.dir); err != nil {
			return nil, err
		}
		root, err = s.open()
	}
	if err != nil {
		return nil, err
	}
	if err := makeDirs(root, tmpDir); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.swept {
		s.swept = true
		sweep(root, time.Now().Add(-staleAfter))
	}
	return root, nil
}

// sweep removes temporary files last written to before the given time. What it
// cannot remove harms nobody.
func sweep(root *os.Root, before time.Time) {
	d, err := root.Open(tmpDir)
	if err != nil {
		return
	}
	defer d.Close()
	entries, _ := d.ReadDir(-1)
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && fi.ModTime().Before(before) {
			root.Remove(path.Join(tmpDir, e.Name()))
		}
	}
}

func randomName() string { return strings.ToLower(rand.Text()) }

// writeTemp writes all of r to a new temporary file and syncs it. An error
// leaves no file.
func writeTemp(root *os.Root, r io.Reader, size int64) (_ string, info store.Info, err error) {
	tmp := path.Join(tmpDir, randomName())
	f, err := root.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, filePerm)
	if err != nil {
		return "", store.Info{}, err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			root.Remove(tmp)
		}
	}()
	buf := make([]byte, copyBuffer)
	if size >= 0 {
		buf = buf[:min(size+1, copyBuffer)]
	}
	// Without its ReadFrom, the file would ignore buf and copy by 32 KiB.
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, r, buf); err != nil {
		return "", store.Info{}, err
	}
	if err := f.Sync(); err != nil {
		return "", store.Info{}, err
	}
	info, err = describe(f, "")
	return tmp, info, err
}

// lock takes the lock among processes, and among goroutines of this one.
func (s *Store) lock(ctx context.Context, root *os.Root) (unlock func(), err error) {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() {
		if err != nil {
			<-s.turn
		}
	}()
	// flock opens by path; this makes the file, and refuses a link that leads
	// elsewhere.
	f, err := root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, filePerm)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	f.Close()
	l := flock.New(filepath.Join(s.dir, filepath.FromSlash(lockFile)))
	if _, err := l.TryLockContext(ctx, lockPoll); err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	return func() {
		_ = l.Unlock() // closing the file, which it does too, is what unlocks
		<-s.turn
	}, nil
}

// makeRoot makes the store's directory and its parents, and syncs what they
// were made in.
func makeRoot(dir string) error {
	parent := filepath.Dir(dir)
	if _, err := os.Stat(parent); errors.Is(err, fs.ErrNotExist) && parent != dir {
		if err := makeRoot(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, dirPerm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.Open(parent)
	if err != nil {
		return err
	}
	return syncClose(d)
}

// makeDirs makes a directory below the root with its parents, and syncs what
// they were made in.
func makeDirs(root *os.Root, dir string) error {
	if dir == "." {
		return nil
	}
	if fi, err := root.Lstat(dir); err == nil && fi.IsDir() {
		return nil
	}
	if err := makeDirs(root, path.Dir(dir)); err != nil {
		return err
	}
	if err := root.Mkdir(dir, dirPerm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(root, path.Dir(dir))
}

func syncDir(root *os.Root, dir string) error {
	d, err := root.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a Delete removed the object, and then the directory
	}
	if err != nil {
		return err
	}
	return syncClose(d)
}

// syncClose makes the names in a directory durable. Windows has no such call,
// and some network file systems refuse it.
func syncClose(d *os.File) error {
	defer d.Close()
	if runtime.GOOS == "windows" {
		return nil
	}
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}
