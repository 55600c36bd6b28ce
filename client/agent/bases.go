package agent

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// basesDir holds the file that a product was last installed from, as
// downloads/bases/<product>/<sha256>: the next version may share most of its bytes with
// it. It is a cache: whatever lies there is verified when it is used, and goes
// as soon as the disk is needed for something else.
const basesDir = "downloads/bases"

const defaultMaxBases = 1 << 30

// base is a file in basesDir.
type base struct {
	fetch.Base
	product string
	size    int64
	kept    time.Time // when it was put there
}

// keptBases lists all of them, the oldest first.
func (s *session) keptBases() []base {
	var out []base
	products, _ := os.ReadDir(s.path(basesDir))
	for _, p := range products {
		files, _ := os.ReadDir(s.path(basesDir, p.Name()))
		for _, f := range files {
			info, err := f.Info()
			if err != nil || !info.Mode().IsRegular() || !layout.IsSHA256(f.Name()) {
				continue
			}
			out = append(out, base{fetch.Base{Path: s.path(basesDir, p.Name(), f.Name()), SHA256: f.Name()}, p.Name(), info.Size(), info.ModTime()})
		}
	}
	slices.SortFunc(out, func(a, b base) int { return cmp.Or(a.kept.Compare(b.kept), cmp.Compare(a.Path, b.Path)) })
	return out
}

// bases are the files that a new version of a product may share bytes with.
func (s *session) bases(product string) []fetch.Base {
	var out []fetch.Base
	for _, b := range s.keptBases() {
		if b.product == product {
			out = append(out, b.Base)
		}
	}
	slices.Reverse(out)
	if b, ok := s.delivered(product); ok {
		out = append(out, b)
	}
	return out
}

// delivered is the installed file of a product whose patches are files: it is
// not kept a second time.
func (s *session) delivered(product string) (fetch.Base, bool) {
	known, err := s.installed()
	if err != nil || known[product].Version == "" {
		return fetch.Base{}, false
	}
	records, _, err := s.journal.all()
	if err != nil {
		return fetch.Base{}, false
	}
	slices.Reverse(records)
	for _, r := range records {
		if r.Step != StepCommitted || r.Patch.Product != product || r.Patch.Version != known[product].Version || !isDelivered(r.Patch) {
			continue
		}
		path := s.installer.Delivered(r.Patch, filepath.Base(s.filePath(r)))
		if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
			return fetch.Base{Path: path, SHA256: r.SHA256}, true
		}
	}
	return fetch.Base{}, false
}

func isDelivered(p *patch.Patch) bool { return p.Kind == patch.KindFile && p.InstallsItself() }

func (s *session) maxBases() int64 {
	if s.opts.MaxBases == 0 {
		return defaultMaxBases
	}
	return max(0, s.opts.MaxBases)
}

// keepBase takes over the file of a patch that was just committed, in place of
// the one before. Not to keep it costs bytes next time, and is no error.
func (s *session) keepBase(ctx context.Context, r *Record) {
	if isDelivered(r.Patch) || r.Length > s.maxBases() {
		_ = os.RemoveAll(s.path(basesDir, r.Patch.Product))
		return
	}
	dir := s.path(basesDir, r.Patch.Product)
	path := filepath.Join(dir, r.SHA256)
	err := install.PrivateDir(dir)
	if err == nil {
		err = os.Rename(s.filePath(r), path)
	}
	if err == nil {
		now := s.opts.Now()
		err = errors.Join(os.Chmod(path, 0o600), os.Chtimes(path, now, now))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // an installer may take its file away
		zerolog.Ctx(ctx).Warn().Err(err).Str("patch", r.Patch.ID).Msg("keep the file for deltas")
	}
	others, _ := os.ReadDir(dir)
	for _, o := range others {
		if o.Name() != r.SHA256 {
			_ = os.RemoveAll(filepath.Join(dir, o.Name()))
		}
	}
	s.trimBases(ctx, 0)
}

// putBase puts a patch's file where it is to be downloaded to, if it was
// installed before and is still here. The download verifies it.
func (s *session) putBase(r *Record, path string) {
	from := s.path(basesDir, r.Patch.Product, r.SHA256)
	if info, err := os.Lstat(from); err == nil && info.Mode().IsRegular() && info.Size() == r.Length && !isThere(path) {
		_ = os.Rename(from, path)
	}
}

// makeRoom drops the bases of other products, the oldest first, as long as the
// disk has no room for what a download still needs; then the product's own.
func (s *session) makeRoom(ctx context.Context, r *Record, path string) {
	need := r.Length
	for _, part := range []string{path, path + ".part"} {
		if info, err := os.Lstat(part); err == nil {
			need -= info.Size()
		}
	}
	s.trimBases(ctx, max(0, need), r.Patch.Product)
}

// trimBases drops bases, the oldest first, until they are within their bound
// and the disk has need bytes to spare; those of last after all others.
func (s *session) trimBases(ctx context.Context, need int64, last ...string) {
	kept := s.keptBases()
	slices.SortStableFunc(kept, func(a, b base) int {
		return cmp.Compare(btoi(slices.Contains(last, a.product)), btoi(slices.Contains(last, b.product)))
	})
	total := int64(0)
	for _, b := range kept {
		total += b.size
	}
	for _, b := range kept {
		free, known := fetch.FreeSpace(s.opts.Dir)
		if total <= s.maxBases() && (!known || free >= need+fetch.SpareSpace) {
			return
		}
		zerolog.Ctx(ctx).Info().Str("product", b.product).Int64("bytes", b.size).Msg("drop a file that was kept for deltas")
		if os.Remove(b.Path) == nil {
			total -= b.size
		}
	}
}

// dropBases drops all. It reports whether there were any.
func (s *session) dropBases(ctx context.Context) bool {
	if len(s.keptBases()) == 0 {
		return false
	}
	zerolog.Ctx(ctx).Info().Msg("drop all files that were kept for deltas: the disk is full")
	return os.RemoveAll(s.path(basesDir)) == nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
