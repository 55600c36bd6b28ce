package repo

import (
	"context"
	"fmt"
	"io/fs"
	"slices"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/mirrors"
)

func (d *draft) mirrors(ctx context.Context) (*mirrors.List, error) {
	data, err := d.document(ctx, layout.RoleMirrors, layout.MirrorsPath, mirrors.MaxSize)
	if err != nil {
		return nil, err
	}
	if data == nil {
		return &mirrors.List{Format: mirrors.Format, Mirrors: []mirrors.Mirror{}}, nil
	}
	return mirrors.Parse(data)
}

func (d *draft) putMirrors(ctx context.Context, l *mirrors.List) error {
	data, err := l.Encode()
	if err != nil {
		return err
	}
	return d.putDocument(ctx, layout.RoleMirrors, layout.MirrorsPath, data)
}

// AddMirror puts a mirror into the signed list. One that is there is ErrExists.
func (r *Repository) AddMirror(ctx context.Context, m mirrors.Mirror, dryRun bool) (*Change, error) {
	return r.publish(ctx, dryRun, func(ctx context.Context, d *draft) error {
		l, err := d.mirrors(ctx)
		if err != nil {
			return err
		}
		if l.Find(m.URL) != nil {
			return fmt.Errorf("mirror %s %w", m.URL, ErrExists)
		}
		l.Mirrors = append(l.Mirrors, m)
		return d.putMirrors(ctx, l)
	})
}

// RemoveMirror takes a mirror out of the signed list. One that is not there is
// [io/fs.ErrNotExist].
func (r *Repository) RemoveMirror(ctx context.Context, canonicalURL string, dryRun bool) (*Change, error) {
	return r.publish(ctx, dryRun, func(ctx context.Context, d *draft) error {
		l, err := d.mirrors(ctx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(l.Mirrors, func(m mirrors.Mirror) bool { return m.URL == canonicalURL })
		if i < 0 {
			return fmt.Errorf("mirror %s is not in the list: %w", canonicalURL, fs.ErrNotExist)
		}
		l.Mirrors = slices.Delete(l.Mirrors, i, i+1)
		return d.putMirrors(ctx, l)
	})
}

// Mirrors reads the signed list, in the order in which they were added.
func (r *Repository) Mirrors(ctx context.Context) ([]mirrors.Mirror, error) {
	base, err := r.load(ctx)
	if err != nil {
		return nil, err
	}
	l, err := r.draftOn(base).mirrors(ctx)
	if err != nil {
		return nil, err
	}
	return append([]mirrors.Mirror{}, l.Mirrors...), nil // a list in JSON, even without any
}
