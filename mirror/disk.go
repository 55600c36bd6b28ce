package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// The view lies in metadata/ as in any TUF repository: immutable files, then
// timestamp.json, whose replacement is the commit.
const (
	metadataDir = "metadata"
	newSuffix   = ".new" // a file being written
	maxSyncs    = 16     // files written at once
)

// saveView puts the newest view on the disk, durably, and removes the files
// that no view shown needs any more.
func (m *Mirror) saveView(ctx context.Context, s *shown) error {
	root, err := os.OpenRoot(filepath.Join(m.cfg.Dir, metadataDir))
	if err != nil {
		return fmt.Errorf("save view: %w", err)
	}
	defer root.Close()
	v := s.current()
	var g errgroup.Group
	g.SetLimit(maxSyncs)
	for _, d := range v.docs {
		if d.file != layout.TimestampName && !m.files[d.file] {
			g.Go(func() error { return writeFile(root, d.file, d.body) })
		}
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("save view: %w", err)
	}
	for _, d := range v.docs {
		m.files[d.file] = true
	}
	if err := syncDir(root); err != nil {
		return fmt.Errorf("save view: %w", err)
	}
	if err := writeFile(root, layout.TimestampName, v.docs[layout.TimestampName].body); err != nil {
		return fmt.Errorf("save view: %w", err)
	}
	if err := syncDir(root); err != nil {
		return fmt.Errorf("save view: %w", err)
	}
	m.prune(ctx, root, v)
	return nil
}

// prune removes the files that the newest view does not have: after a restart
// it is the only one, and until then the others are in memory.
func (m *Mirror) prune(ctx context.Context, root *os.Root, v *view) {
	needed := make(map[string]bool, len(v.docs))
	for _, d := range v.docs {
		needed[d.file] = true
	}
	for file := range m.files {
		if needed[file] {
			continue
		}
		delete(m.files, file)
		if err := root.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			zerolog.Ctx(ctx).Warn().Err(err).Str("file", file).Msg("cannot remove old metadata")
		}
	}
}

func writeFile(root *os.Root, name string, data []byte) error {
	f, err := root.OpenFile(name+newSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = root.Rename(name+newSuffix, name)
	}
	if err != nil {
		_ = root.Remove(name + newSuffix)
	}
	return err
}

// syncDir makes the names in a directory durable; Windows does so by itself.
func syncDir(root *os.Root) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// loadView verifies the view on the disk from the pinned root on, as if it came
// from an upstream, and shows it. That it may have expired since does not
// matter: clients decide on that. So it is verified as of the last moment at
// which its top-level roles were all valid.
func (m *Mirror) loadView(ctx context.Context) (err error) {
	root, err := os.OpenRoot(filepath.Join(m.cfg.Dir, metadataDir))
	if err != nil {
		return fmt.Errorf("load view: %w", err)
	}
	defer root.Close()
	d := diskFetcher{root}
	if err := m.known(root); err != nil {
		return fmt.Errorf("load view: %w", err)
	}
	defer func() {
		if err != nil { // nothing there can be relied upon: all is written anew
			clear(m.files)
		}
	}()
	if err := m.roots.walk(ctx, d); err != nil {
		return fmt.Errorf("load view: %w", err)
	}
	if _, err := m.roots.extendBack(ctx, d); err != nil {
		zerolog.Ctx(ctx).Warn().Err(err).Msg("roots before the pinned one")
	}
	now := d.validUntil(m.cfg.Now(), m.roots.files[m.roots.last])
	c, err := tuf.Open(tuf.Config{Root: m.cfg.Root, Fetcher: d, Now: func() time.Time { return now }, PassExpired: true})
	if err != nil {
		return fmt.Errorf("load view: %w", err)
	}
	defer c.Close()
	if err := c.Refresh(ctx); err != nil {
		return fmt.Errorf("load view: %w", err)
	}
	v, err := buildView(ctx, c, m.roots, nil)
	if err != nil {
		return fmt.Errorf("load view: %w", err)
	}
	v.verified = now
	m.shown.Store(m.shown.Load().with(v))
	zerolog.Ctx(ctx).Info().Int64("timestamp", v.timestamp).Int("objects", len(v.objects)).Msg("serving the view of an earlier run")
	return nil
}

// known reads which files there are, and removes those half-written.
func (m *Mirror) known(root *os.Root) error {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := e.Name(); strings.HasSuffix(name, newSuffix) {
			_ = root.Remove(name)
		} else if _, _, ok := layout.ParseMetadataFile(name); ok {
			m.files[name] = true
		}
	}
	return nil
}

// diskFetcher reads metadata/ as a repository.
type diskFetcher struct{ root *os.Root }

func (d diskFetcher) FetchMetadata(_ context.Context, name string, max int64) ([]byte, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(data)) > max {
		err = tuf.ErrTooLarge
	}
	return data, err
}

// validUntil returns the last moment, but not after now, at which root and the
// top-level roles on the disk are valid, if they are what they say. Whether
// that can be believed is seen when they are verified as of that moment.
func (d diskFetcher) validUntil(now time.Time, root []byte) time.Time {
	data := root
	for _, next := range []string{layout.RoleTimestamp, layout.RoleSnapshot, layout.RoleTargets, ""} {
		var md struct {
			Signed struct {
				Expires time.Time `json:"expires"`
				Meta    map[string]struct {
					Version int64 `json:"version"`
				} `json:"meta"`
			} `json:"signed"`
		}
		if json.Unmarshal(data, &md) != nil {
			break
		}
		if last := md.Signed.Expires.Add(-time.Second); last.Before(now) {
			now = last
		}
		if next != "" {
			data, _ = d.FetchMetadata(context.Background(), layout.MetadataFile(next, md.Signed.Meta[next+".json"].Version), 64<<20)
		}
	}
	return now
}
