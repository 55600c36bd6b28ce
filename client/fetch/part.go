package fetch

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	filePerm        = 0o644
	maxProgressFile = 16 << 10
	maxName         = 255 // bytes of a file name, on every common file system
)

// part is a file under way: <Dest>.part holds its bytes, <Dest>.part.json says
// how many of them are synced. The lock on the former keeps others away.
type part struct {
	dir  *os.Root
	name string // of the finished file, in dir
	base string // of the partial one, without .part
	file *os.File
}

// openPart opens the directory of dest. Nothing outside of it is touched,
// whatever links lie there.
func openPart(dest string) (*part, error) {
	dir, err := os.OpenRoot(filepath.Dir(dest))
	if err != nil {
		return nil, err
	}
	p := &part{dir: dir, name: filepath.Base(dest)}
	p.base = p.name
	if len(p.base)+len(".part.json.new") > maxName {
		sum := sha256.Sum256([]byte(p.base))
		p.base = hex.EncodeToString(sum[:])
	}
	return p, nil
}

func (p *part) data() string { return p.base + ".part" }
func (p *part) note() string { return p.base + ".part.json" }

// open opens and locks the partial file.
func (p *part) open() error {
	for range 10 {
		f, err := p.dir.OpenFile(p.data(), os.O_RDWR|os.O_CREATE, filePerm)
		if err != nil {
			return err
		}
		if err := lockFile(f); err != nil {
			f.Close()
			return err
		}
		// The one who had the lock may have renamed or removed the file since.
		was, err1 := f.Stat()
		is, err2 := p.dir.Lstat(p.data())
		if err1 == nil && err2 == nil && os.SameFile(was, is) {
			if !is.Mode().IsRegular() {
				f.Close()
				return fmt.Errorf("%s is not a regular file", p.data())
			}
			p.file = f
			return nil
		}
		f.Close()
		if err2 == nil && is.Mode()&fs.ModeSymlink != 0 {
			return fmt.Errorf("%s is a symbolic link", p.data())
		}
	}
	return ErrBusy
}

func (p *part) close() {
	if p.file != nil {
		p.file.Close()
	}
	p.dir.Close()
}

// remove deletes all traces, as far as it can.
func (p *part) remove() {
	_ = p.dir.Remove(p.note())
	_ = p.dir.Remove(p.data())
}

// reset forgets what was there. keep leaves the bytes, for a block list to tell
// the good ones.
func (p *part) reset(keep bool) error {
	if err := p.dir.Remove(p.note()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if keep {
		return nil
	}
	return p.file.Truncate(0)
}

// publish makes the partial file the finished one.
func (p *part) publish(length int64) error {
	if err := p.file.Truncate(length); err != nil {
		return err
	}
	if err := p.file.Sync(); err != nil {
		return fmt.Errorf("sync file: %w", err)
	}
	if err := p.dir.Rename(p.data(), p.name); err != nil {
		return err
	}
	_ = p.dir.Remove(p.note())
	return syncDir(p.dir)
}

// progress is what <Dest>.part.json holds. It is as little trusted as the
// network: a wrong one costs time, never a wrong file.
type progress struct {
	Format   int               `json:"format"`
	Length   int64             `json:"length"`
	Hashes   map[string]string `json:"hashes"`
	Verified int64             `json:"verified"` // bytes from the beginning that are synced
	States   map[string][]byte `json:"states"`   // of the running hashes after them
}

const progressFormat = 1

// parseProgress reads a progress file of this very object.
func parseProgress(data []byte, r *Request) (progress, bool) {
	var pr progress
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if dec.Decode(&pr) != nil {
		return progress{}, false
	}
	ok := pr.Format == progressFormat && pr.Length == r.Length && maps.Equal(pr.Hashes, r.Hashes) &&
		pr.Verified > 0 && pr.Verified <= r.Length &&
		(pr.Verified%layout.BlockSize == 0 || pr.Verified == r.Length)
	return pr, ok
}

// load finds out how far an earlier try got and brings h there; 0 if there was
// none or anything about it does not fit.
func (p *part) load(r *Request, h *hashes) int64 {
	f, err := p.dir.Open(p.note())
	if err != nil {
		return 0
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxProgressFile))
	if err != nil {
		return 0
	}
	pr, ok := parseProgress(data, r)
	if !ok {
		return 0
	}
	if info, err := p.file.Stat(); err != nil || info.Size() < pr.Verified {
		return 0
	}
	fresh, err := newHashes(r.Hashes)
	if err != nil || !fresh.resume(pr.States) {
		return 0
	}
	*h = *fresh
	return pr.Verified
}

// save syncs the file and then writes down how far it is right. It may run
// beside writes further on in the file.
func (p *part) save(r *Request, verified int64, states map[string][]byte) error {
	if err := p.file.Sync(); err != nil {
		return fmt.Errorf("sync file: %w", err)
	}
	data, err := json.Marshal(progress{progressFormat, r.Length, r.Hashes, verified, states})
	if err != nil {
		return err
	}
	tmp := p.note() + ".new"
	f, err := p.dir.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, filePerm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = p.dir.Rename(tmp, p.note())
	}
	if err != nil {
		_ = p.dir.Remove(tmp)
		return fmt.Errorf("write progress: %w", err)
	}
	return nil
}
