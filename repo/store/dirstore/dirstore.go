// Package dirstore keeps a repository in a plain directory.
//
// An object is a file whose path below the directory is the object's name, so
// any web server can serve the directory and any TUF client can read it.
// `.patchkeep` in it is the store's own: files being written, and the lock.
//
// Many processes may use one directory at once, if its file system has
// rename and flock as POSIX wants them. Every object is written to a temporary
// file, synced, and then shown under its name at once: Create by link(2), which
// never overwrites, Replace by rename(2) under the lock. Where a file system has
// no hard links, Create takes the lock as well.
//
// All paths go through [os.Root]: neither a name nor a symbolic link leads out
// of the directory.
package dirstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/patchkeep/patchkeep/repo/store"
)

// errIrregular is for what lies where an object should be, and is none.
var errIrregular = errors.New("not a regular file")

// Store is a directory. Use New.
type Store struct {
	dir  string                                             // absolute
	turn chan struct{}                                      // holds a token while this process has, or waits for, the lock
	link func(root *os.Root, oldname, newname string) error // os.Root.Link, but in tests

	mu    sync.Mutex
	root  *os.Root // guarded by mu; nil until the directory is there
	swept bool     // guarded by mu; old temporary files were removed
}

var _ store.Store = (*Store)(nil)

// New returns the store in directory dir. The directory need not exist: it
// reads as empty then, and the first write makes it.
func New(dir string) (*Store, error) {
	if dir == "" {
		return nil, errors.New("open directory store: no directory given")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open directory store: %w", err)
	}
	s := &Store{dir: abs, turn: make(chan struct{}, 1), link: (*os.Root).Link}
	if _, err := s.open(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open directory store: %w", err)
	}
	return s, nil
}

// String is the absolute path of the directory.
func (s *Store) String() string { return s.dir }

// open returns the root, and an error that wraps fs.ErrNotExist while there is
// no directory.
func (s *Store) open() (*os.Root, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.root != nil {
		return s.root, nil
	}
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return nil, err
	}
	s.root = root
	return root, nil
}

// Open implements store.Reader.
func (s *Store) Open(ctx context.Context, name string, offset int64) (io.ReadCloser, store.Info, error) {
	f, info, err := s.openObject(ctx, name)
	if err == nil {
		if offset < 0 {
			err = fmt.Errorf("negative offset %d", offset)
		} else {
			_, err = f.Seek(min(offset, info.Size), io.SeekStart)
		}
		if err != nil {
			f.Close()
		}
	}
	if err != nil {
		return nil, store.Info{}, fmt.Errorf("open object %s: %w", name, err)
	}
	return &reader{f: f, left: max(info.Size-offset, 0)}, info, nil
}

// Stat implements store.Reader.
func (s *Store) Stat(ctx context.Context, name string) (store.Info, error) {
	f, info, err := s.openObject(ctx, name)
	if err != nil {
		return store.Info{}, fmt.Errorf("stat object %s: %w", name, err)
	}
	f.Close()
	return info, nil
}

func (s *Store) openObject(ctx context.Context, name string) (*os.File, store.Info, error) {
	if err := ctx.Err(); err != nil {
		return nil, store.Info{}, err
	}
	if err := store.CheckName(name); err != nil {
		return nil, store.Info{}, err
	}
	root, err := s.open()
	if err != nil {
		return nil, store.Info{}, err
	}
	return openFile(root, name)
}

// openFile opens an object and describes the very bytes that will be read,
// also when the name is replaced meanwhile.
func openFile(root *os.Root, name string) (*os.File, store.Info, error) {
	if err := lookUp(root, name); err != nil {
		return nil, store.Info{}, err
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, store.Info{}, err
	}
	info, err := describe(f, name)
	if err != nil {
		f.Close()
		return nil, store.Info{}, err
	}
	return f, info, nil
}

// lookUp returns nil if name is an object, an error that wraps fs.ErrNotExist
// if it is not there, and another one if something else is. Nothing is opened,
// which alone could block (a FIFO) or have effects (a device).
func lookUp(root *os.Root, name string) error {
	switch fi, err := root.Lstat(name); {
	case errors.Is(err, syscall.ENOTDIR): // "a/b" where "a" is an object
		return fs.ErrNotExist
	case err != nil:
		return err
	case fi.IsDir():
		return fs.ErrNotExist
	case !fi.Mode().IsRegular():
		return errIrregular
	}
	return nil
}

// describe returns the Info of an open object, and leaves f at its beginning.
//
// The ETag of up to store.MaxReplace bytes is the SHA-256 of the content, in
// hex, so that it tells apart two contents written within one tick of the file
// system's clock. Larger objects are never replaced by the store; theirs is made
// of size and time of modification.
func describe(f *os.File, name string) (store.Info, error) {
	fi, err := f.Stat()
	if err != nil {
		return store.Info{}, err
	}
	if !fi.Mode().IsRegular() {
		return store.Info{}, errIrregular
	}
	info := store.Info{Name: name, Size: fi.Size(), Modified: fi.ModTime().UTC()}
	if info.Size > store.MaxReplace {
		info.ETag = strconv.FormatInt(info.Size, 16) + "-" + strconv.FormatInt(fi.ModTime().UnixNano(), 16)
		return info, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, info.Size)); err != nil {
		return store.Info{}, err
	}
	info.ETag = hex.EncodeToString(h.Sum(nil))
	return info, nil
}

// reader yields what Info.Size promised, or an error.
type reader struct {
	f    *os.File
	left int64
}

func (r *reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.f.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	if err == io.EOF && r.left > 0 {
		err = fmt.Errorf("file became %d bytes shorter: %w", r.left, io.ErrUnexpectedEOF)
	}
	return n, err
}

func (r *reader) Close() error { return r.f.Close() }

// Probe implements store.Store. It makes the directory if there is none.
func (s *Store) Probe(ctx context.Context) error {
	if err := s.probe(ctx); err != nil {
		return fmt.Errorf("probe directory %s: %w", s.dir, err)
	}
	return nil
}

func (s *Store) probe(ctx context.Context) error {
	name := path.Join(store.ReservedDir, "probe-"+randomName())
	body := []byte("probe")
	first, err := s.create(ctx, name, bytes.NewReader(body), int64(len(body)))
	if err != nil {
		return err
	}
	defer s.remove(context.WithoutCancel(ctx), name)
	if _, err := s.create(ctx, name, bytes.NewReader(body), int64(len(body))); err == nil {
		return fmt.Errorf("%w: an object was created twice", store.ErrUnsupported)
	} else if !errors.Is(err, store.ErrConflict) {
		return err
	}
	if _, err := s.replace(ctx, name, []byte("replaced"), first.ETag); err != nil {
		return err
	}
	if _, err := s.replace(ctx, name, body, first.ETag); err == nil {
		return fmt.Errorf("%w: an object was replaced by a stale writer", store.ErrUnsupported)
	} else if !errors.Is(err, store.ErrConflict) {
		return err
	}
	return s.remove(ctx, name)
}
