package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// ErrStray is wrapped by what Check reports of files that are not the cache's.
// They do no harm.
var ErrStray = errors.New("not a file of the cache")

// Report is what Check found.
type Report struct {
	Objects int   `json:"objects"` // sound ones
	Bytes   int64 `json:"bytes"`   // of them
	Parts   int   `json:"parts"`   // suspended; they are verified when they are gone on with
	Damaged int   `json:"damaged"` // objects
}

// Check reads the whole of a cache directory that no process uses, and changes
// nothing. It tells report of every damaged object, and of every stray file
// with an error that wraps ErrStray; file is relative to dir. Its own error is
// that the directory cannot be read, or is no cache at all.
func Check(ctx context.Context, dir string, report func(file string, err error)) (Report, error) {
	r, err := check(ctx, dir, report)
	if err != nil {
		return r, fmt.Errorf("check cache %s: %w", dir, err)
	}
	return r, nil
}

func check(ctx context.Context, dir string, report func(file string, err error)) (r Report, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return r, err
	}
	defer root.Close()
	fans, err := fs.ReadDir(root.FS(), casDir)
	if err != nil {
		return r, err
	}
	for _, fan := range fans {
		sub := casDir + "/" + fan.Name()
		if !fan.IsDir() {
			report(sub, ErrStray)
			continue
		}
		files, err := fs.ReadDir(root.FS(), sub)
		if err != nil {
			return r, err
		}
		for _, f := range files {
			name := sub + "/" + f.Name()
			if !isObject(sub, f.Name()) {
				report(name, ErrStray)
				continue
			}
			n, err := checkObject(ctx, root, name, f)
			switch {
			case ctx.Err() != nil:
				return r, ctx.Err()
			case err != nil:
				r.Damaged++
				report(name, err)
			default:
				r.Objects++
				r.Bytes += n
			}
		}
	}
	parts, err := fs.ReadDir(root.FS(), tmpDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	for _, f := range parts {
		if name, ok := strings.CutSuffix(f.Name(), partSuffix); ok {
			if _, _, ok := parsePart(name); ok && f.Type().IsRegular() {
				r.Parts++
			}
		}
	}
	return r, nil
}

func checkObject(ctx context.Context, root *os.Root, name string, d fs.DirEntry) (int64, error) {
	if !d.Type().IsRegular() {
		return 0, fmt.Errorf("not a regular file: %w", ErrMismatch)
	}
	f, err := root.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), hashFile(ctx, f, d.Name(), nil)
}
