package install

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"
)

// ArchiveLimits bounds what an archive may unpack to; zero fields take the
// defaults.
type ArchiveLimits struct {
	Files int   // entries; default 200 000
	Bytes int64 // in all; default 16 GiB
}

func (l ArchiveLimits) orDefault() ArchiveLimits {
	if l.Files <= 0 {
		l.Files = 200_000
	}
	if l.Bytes <= 0 {
		l.Bytes = 16 << 30
	}
	return l
}

const (
	maxLink   = 4 << 10   // bytes of a symbolic link
	maxWindow = 128 << 20 // bytes of memory for zstd
)

// extract unpacks a tar, tar.gz, tar.zst or zip, told apart by their first
// bytes, into an empty directory that nobody else can reach.
func extract(ctx context.Context, root *os.Root, r *io.SectionReader, limits ArchiveLimits) error {
	x := &extraction{ctx: ctx, root: root, files: limits.Files, bytes: limits.Bytes, dirs: map[string]bool{".": true}}
	magic := make([]byte, 262)
	n, err := r.ReadAt(magic, 0)
	if err != nil && err != io.EOF {
		return err
	}
	magic = magic[:n]
	switch {
	case bytes.HasPrefix(magic, []byte("PK\x03\x04")), bytes.HasPrefix(magic, []byte("PK\x05\x06")):
		return x.zip(r)
	case bytes.HasPrefix(magic, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(bufio.NewReader(r))
		if err != nil {
			return bad("%w", err)
		}
		return x.tar(z)
	case bytes.HasPrefix(magic, []byte("\x28\xb5\x2f\xfd")):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return bad("%w", err)
		}
		defer z.Close()
		return x.tar(z)
	case len(magic) == 262 && string(magic[257:262]) == "ustar":
		return x.tar(bufio.NewReader(r))
	}
	return bad("it is no tar, tar.gz, tar.zst or zip")
}

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrBadArchive}, args...)...)
}

// extraction is the state of one unpacking.
type extraction struct {
	ctx   context.Context //nolint:containedctx // lives for one call
	root  *os.Root
	files int             // left
	bytes int64           // left
	dirs  map[string]bool // real directories that are there
}

func (x *extraction) tar(r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return bad("%w", err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		name, err := x.enter(h.Name)
		if err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = x.mkdir(name)
		case tar.TypeReg:
			err = x.file(name, tr, h.FileInfo().Mode())
		case tar.TypeSymlink:
			err = x.symlink(name, h.Linkname)
		case tar.TypeLink:
			err = x.hardlink(name, h.Linkname)
		default:
			err = bad("%q is a device, a pipe or something stranger", h.Name)
		}
		if err != nil {
			return err
		}
	}
}

func (x *extraction) zip(r *io.SectionReader) error {
	zr, err := zip.NewReader(r, r.Size())
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return bad("%w", err)
	}
	for _, f := range zr.File {
		name, err := x.enter(f.Name)
		if err != nil {
			return err
		}
		if err := x.zipEntry(f, name); err != nil {
			return err
		}
	}
	return nil
}

func (x *extraction) zipEntry(f *zip.File, name string) error {
	mode := f.Mode()
	if mode.IsDir() {
		return x.mkdir(name)
	}
	if !mode.IsRegular() && mode.Type() != fs.ModeSymlink {
		return bad("%q is a device, a pipe or something stranger", f.Name)
	}
	r, err := f.Open()
	if err != nil {
		return bad("%w", err)
	}
	defer r.Close()
	if mode.IsRegular() {
		return x.file(name, r, mode)
	}
	target, err := io.ReadAll(io.LimitReader(r, maxLink+1))
	if err != nil {
		return bad("%w", err)
	}
	return x.symlink(name, string(target))
}

// enter counts an entry and checks its name: relative, inside, printable.
func (x *extraction) enter(name string) (string, error) {
	if err := x.ctx.Err(); err != nil {
		return "", err
	}
	if x.files--; x.files < 0 {
		return "", bad("too many files in it")
	}
	clean := path.Clean(name)
	if len(name) > maxLink || !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return r == '\\' || unicode.IsControl(r) }) {
		return "", bad("%.80q is no name for a file", name)
	}
	if clean == "." {
		return clean, nil
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", bad("%q leads outside", name)
		}
	}
	if path.IsAbs(name) || !filepath.IsLocal(filepath.FromSlash(clean)) {
		return "", bad("%q leads outside", name)
	}
	return clean, nil
}

// mkdir makes a directory and those above it. One that is there under this
// name but is a link is an error: nothing is ever unpacked through a link.
func (x *extraction) mkdir(name string) error {
	if x.dirs[name] {
		return nil
	}
	if err := x.mkdir(path.Dir(name)); err != nil {
		return err
	}
	if err := x.root.Mkdir(name, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return bad("%q stands in it twice, or a file is in its way", name)
		}
		return err
	}
	x.dirs[name] = true
	if x.files--; x.files < 0 {
		return bad("too many files in it")
	}
	return x.root.Chmod(name, 0o755)
}

// file writes a file. Of its mode only "executable" counts.
func (x *extraction) file(name string, r io.Reader, mode fs.FileMode) error {
	if err := x.mkdir(path.Dir(name)); err != nil {
		return err
	}
	perm := fs.FileMode(0o644)
	if mode&0o111 != 0 {
		perm = 0o755
	}
	counted := &counter{r: r, left: x.bytes}
	err := copyInto(x.ctx, x.root, name, counted, perm)
	x.bytes = counted.left
	switch {
	case errors.Is(err, fs.ErrExist):
		return bad("%q stands in it twice", name)
	case counted.err != nil && x.ctx.Err() == nil:
		return bad("%q: %w", name, counted.err)
	}
	return err
}

// symlink makes a link that stays inside, whatever other links there are: its
// own directory is real, and its target goes up only at its beginning.
func (x *extraction) symlink(name, target string) error {
	if err := x.mkdir(path.Dir(name)); err != nil {
		return err
	}
	up, down := 0, false
	for part := range strings.SplitSeq(target, "/") {
		switch {
		case part == ".." && !down:
			up++
		case part == "..":
			return bad("link %q leads through %q", name, target)
		case part != "" && part != ".":
			down = true
		}
	}
	if target == "" || len(target) > maxLink || path.IsAbs(target) || strings.ContainsAny(target, "\\\x00") || up > strings.Count(name, "/") ||
		!filepath.IsLocal(filepath.FromSlash(path.Join(path.Dir(name), target))) {
		return bad("link %q leads outside, to %.80q", name, target)
	}
	if err := x.root.Symlink(target, name); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return bad("%q stands in it twice", name)
		}
		return err
	}
	return nil
}

// hardlink links to a file that was unpacked before.
func (x *extraction) hardlink(name, target string) error {
	from := path.Clean(target)
	if path.IsAbs(target) || !filepath.IsLocal(filepath.FromSlash(from)) {
		return bad("link %q leads outside, to %.80q", name, target)
	}
	if err := x.mkdir(path.Dir(name)); err != nil {
		return err
	}
	if !x.dirs[path.Dir(from)] {
		return bad("link %q leads to %.80q, which is not in it", name, target)
	}
	if info, err := x.root.Lstat(from); err != nil || !info.Mode().IsRegular() {
		return bad("link %q leads to %.80q, which is no file in it", name, target)
	}
	if err := x.root.Link(from, name); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return bad("%q stands in it twice", name)
		}
		return err
	}
	return nil
}

// counter reads up to left bytes and then fails, so that a small archive
// cannot fill the disk. It keeps the first error of what it reads.
type counter struct {
	r    io.Reader
	left int64
	err  error
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if int64(n) > c.left {
		n, err = int(c.left), errors.New("it unpacks to more than is allowed")
	}
	c.left -= int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}
