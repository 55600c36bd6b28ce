package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
)

const (
	currentLink = "current"
	versionsDir = "versions"
	unpacking   = ".unpacking" // below versions; of one run at a time
	discarded   = ".discarded"
)

// place unpacks an archive, or copies a file, into a directory for its version
// and then switches current to it.
func (in *Installer) place(ctx context.Context, h *held) (Outcome, error) {
	job := h.job
	start := time.Now()
	out := func(result patch.Outcome, err error) Outcome {
		o := Outcome{Result: result, Took: time.Since(start).Round(time.Millisecond)}
		if err != nil {
			o.Exit, o.Why = 1, err.Error()
		}
		return o
	}
	root, err := in.openProduct(job.Patch.Product)
	if err != nil {
		return Outcome{}, err
	}
	defer root.Close()
	if err := in.unpack(ctx, root, h); err != nil {
		return out(patch.Failure, errors.Join(err, root.RemoveAll(path.Join(versionsDir, unpacking)))), nil
	}
	if err := switchTo(root, job.Patch.Version); err != nil {
		return out(patch.Failure, err), nil
	}
	in.prune(root, job.Patch.Version, job.Previous)
	return out(patch.Success, nil), nil
}

// openProduct opens the product's directory below Root; none but this user
// and root may be able to change what is on the way to it.
func (in *Installer) openProduct(product string) (*os.Root, error) {
	if err := layout.CheckName(product); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(in.Root) {
		return nil, fmt.Errorf("install root %q is not an absolute path", in.Root)
	}
	dir := filepath.Join(in.Root, product)
	if err := os.MkdirAll(filepath.Join(dir, versionsDir), 0o755); err != nil {
		return nil, err
	}
	if err := checkOwned(dir); err != nil {
		return nil, err
	}
	return os.OpenRoot(dir)
}

// unpack fills versions/<version> by way of a temporary directory.
func (in *Installer) unpack(ctx context.Context, root *os.Root, h *held) error {
	job := h.job
	tmp := path.Join(versionsDir, unpacking)
	dst := path.Join(versionsDir, job.Patch.Version)
	old := path.Join(versionsDir, discarded)
	if err := errors.Join(root.RemoveAll(tmp), root.RemoveAll(old)); err != nil {
		return err
	}
	if err := root.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	sub, err := root.OpenRoot(tmp)
	if err != nil {
		return err
	}
	defer sub.Close()
	if job.Patch.Kind == patch.KindArchive {
		err = extract(ctx, sub, io.NewSectionReader(job.File, 0, job.Length), in.Archive.orDefault())
	} else {
		err = copyInto(ctx, sub, filepath.Base(job.Path), io.NewSectionReader(job.File, 0, job.Length), 0o644)
	}
	if err != nil {
		return err
	}
	if err := h.changed(); err != nil { // what was read is what was checked
		return err
	}
	if err := sub.Chmod(".", 0o755); err != nil {
		return err
	}
	if err := syncTree(filepath.Join(root.Name(), filepath.FromSlash(tmp))); err != nil {
		return fmt.Errorf("sync unpacked files: %w", err)
	}
	// The same version anew: the old directory makes room first.
	if err := root.Rename(dst, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := root.Rename(tmp, dst); err != nil {
		return err
	}
	if err := syncDir(filepath.Join(root.Name(), versionsDir)); err != nil {
		return err
	}
	return root.RemoveAll(old)
}

// switchTo makes current point to a version, by one rename.
func switchTo(root *os.Root, version string) error {
	const next = ".next"
	if err := root.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := root.Symlink(versionsDir+"/"+version, next); err != nil {
		if runtime.GOOS == "windows" {
			return fmt.Errorf("make a link, which Windows allows to services, administrators, and in developer mode: %w", err)
		}
		return err
	}
	err := root.Rename(next, currentLink)
	if err != nil && runtime.GOOS == "windows" {
		// It may not put a link to a directory over another: for a moment there is
		// none, which after a crash reads as not installed.
		if err = root.Remove(currentLink); err == nil {
			err = root.Rename(next, currentLink)
		}
	}
	if err != nil {
		return fmt.Errorf("switch to %s: %w", version, err)
	}
	return syncDir(root.Name())
}

// switchBack makes current point to the version before, or removes it.
func (in *Installer) switchBack(job Job) (Outcome, error) {
	root, err := in.openProduct(job.Patch.Product)
	if err != nil {
		return Outcome{}, err
	}
	defer root.Close()
	done := Outcome{Result: patch.Success}
	now, err := in.current(job.Patch.Product)
	if err != nil {
		return Outcome{}, err
	}
	if now == job.Previous {
		return done, nil
	}
	if job.Previous == "" {
		if err := root.Remove(currentLink); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Outcome{}, err
		}
		return done, syncDir(root.Name())
	}
	if layout.CheckName(job.Previous) != nil {
		return Outcome{}, fmt.Errorf("version %q before is not one of ours", job.Previous)
	}
	if info, err := root.Stat(path.Join(versionsDir, job.Previous)); err != nil || !info.IsDir() {
		return Outcome{}, fmt.Errorf("version %s is not there any more", job.Previous)
	}
	return done, switchTo(root, job.Previous)
}

// current is the version that current points to and that is there.
func (in *Installer) current(product string) (string, error) {
	link, err := os.Readlink(filepath.Join(in.Root, product, currentLink))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("detect %s: %w", product, err)
	}
	version, ok := strings.CutPrefix(filepath.ToSlash(link), versionsDir+"/")
	if !ok || layout.CheckName(version) != nil {
		return "", fmt.Errorf("detect %s: %s points to %q, which is no version", product, currentLink, link)
	}
	if info, err := os.Stat(filepath.Join(in.Root, product, versionsDir, version)); err != nil || !info.IsDir() {
		return "", nil //nolint:nilerr // half removed: not installed
	}
	return version, nil
}

// prune removes all versions but these. What cannot be removed (Windows: open
// files) is left for the next time.
func (in *Installer) prune(root *os.Root, keep ...string) {
	dir, err := root.Open(versionsDir)
	if err != nil {
		return
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return
	}
	kept := map[string]bool{}
	for _, k := range keep {
		kept[k] = true
	}
	for _, n := range names {
		if !kept[n] {
			_ = root.RemoveAll(path.Join(versionsDir, n))
		}
	}
}

// copyInto writes one new file.
func copyInto(ctx context.Context, root *os.Root, name string, r io.Reader, mode os.FileMode) error {
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, ctxReader{ctx, r})
	return errors.Join(err, f.Chmod(mode), f.Close())
}

type ctxReader struct {
	ctx context.Context //nolint:containedctx // of one copy
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// writeFile writes a new file and syncs it.
func writeFile(path string, r io.Reader, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Sync(), f.Close())
}

// Delivered is where a patch of kind file puts its file.
func (in *Installer) Delivered(p *patch.Patch, file string) string {
	return filepath.Join(in.Root, p.Product, versionsDir, p.Version, file)
}
