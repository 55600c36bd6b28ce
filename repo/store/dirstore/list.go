package dirstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/patchkeep/patchkeep/repo/store"
)

// List implements store.Reader. ETags are left empty, since they would cost a
// read of each object. Symbolic links and other files that are no objects are
// passed over.
func (s *Store) List(ctx context.Context, prefix string, fn func(store.Info) error) error {
	if err := store.CheckPrefix(prefix); err != nil {
		return fmt.Errorf("list objects: %w", err)
	}
	root, err := s.open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list objects: %w", err)
	}
	dir, _ := store.SplitPrefix(prefix)
	w := walk{root: root, prefix: prefix, fn: fn}
	if err := w.dir(ctx, dir); err != nil {
		if w.stopped {
			return err
		}
		return fmt.Errorf("list objects: %w", err)
	}
	return nil
}

type walk struct {
	root    *os.Root
	prefix  string
	fn      func(store.Info) error
	stopped bool // fn returned an error
}

// dir lists the directory named dir, "" being the root. One directory's names
// are in memory at a time for each level.
func (w *walk) dir(ctx context.Context, dir string) error {
	entries, err := readDir(w.root, dir)
	if err != nil {
		return err
	}
	// With a slash after the names of directories, the order of the entries is
	// that of the objects' full names: "a.b" comes before "a/b".
	key := func(e fs.DirEntry) string {
		if e.IsDir() {
			return e.Name() + "/"
		}
		return e.Name()
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(key(a), key(b)) })
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := path.Join(dir, e.Name())
		if store.CheckName(name) != nil || !strings.HasPrefix(name, w.prefix) && !e.IsDir() {
			continue
		}
		switch {
		case e.IsDir():
			if strings.HasPrefix(name+"/", w.prefix) {
				err = w.dir(ctx, name)
			}
		case e.Type().IsRegular():
			err = w.object(e, name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) object(e fs.DirEntry, name string) error {
	fi, err := e.Info()
	if errors.Is(err, fs.ErrNotExist) { // deleted meanwhile
		return nil
	}
	if err != nil {
		return err
	}
	err = w.fn(store.Info{Name: name, Size: fi.Size(), Modified: fi.ModTime().UTC()})
	w.stopped = err != nil
	return err
}

// readDir returns the entries of a directory; what is not there, or is no
// directory, has none.
func readDir(root *os.Root, dir string) ([]fs.DirEntry, error) {
	if dir == "" {
		dir = "."
	}
	d, err := root.OpenFile(dir, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if fi, err := d.Stat(); err != nil || !fi.IsDir() {
		return nil, err
	}
	return d.ReadDir(-1)
}
