package dirstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/patchkeep/patchkeep/repo/store"
)

// staged is a temporary file that waits for its name.
type staged struct {
	store *Store
	root  *os.Root
	tmp   string
	info  store.Info
}

// Stage implements store.Stager.
func (s *Store) Stage(ctx context.Context, r io.Reader, size int64, _ store.Options) (store.Staged, error) {
	root, err := s.make()
	if err != nil {
		return nil, fmt.Errorf("stage object: %w", err)
	}
	tmp, info, err := writeTemp(root, store.SizedReader(ctx, r, size), size)
	if err != nil {
		return nil, fmt.Errorf("stage object: %w", err)
	}
	return &staged{store: s, root: root, tmp: tmp, info: info}, nil
}

// Commit implements store.Staged.
func (s *staged) Commit(ctx context.Context, name string) (store.Info, error) {
	err := store.CheckName(name)
	if err == nil {
		err = s.store.show(ctx, s.root, s.tmp, name)
	}
	if err != nil {
		return store.Info{}, fmt.Errorf("create object %s: %w", name, err)
	}
	s.info.Name = name
	return s.info, s.Discard(ctx)
}

// Discard implements store.Staged.
func (s *staged) Discard(context.Context) error {
	if err := s.root.Remove(s.tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("discard staged object: %w", err)
	}
	return nil
}
