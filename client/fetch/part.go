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

	"github.com/patchkeep/patchkeep/client/internal/boot"
	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	filePerm        = 0o644
	maxProgressFile = 16 << 10
	maxName         = 255 // bytes of a file name, on every common file system
)

// part is a file under way: <Dest>.part holds its bytes, <Dest>.part.json says
// which of them are synced. The lock on the former keeps others away.
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
		p.base = hashedName(p.base)
	}
	return p, nil
}

func hashedName(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
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
	Verified int64             `json:"verified"`         // bytes from the beginning that are synced
	States   map[string][]byte `json:"states,omitempty"` // of the running hashes after them
	// Boot is the run of the system in which the file was written on, in order,
	// beyond what is synced: while that lasts, all of it is there.
	Boot string `json:"boot,omitempty"`
	// Blocks are those that are synced in a file that was not written in order.
	Blocks bitmap `json:"blocks,omitempty"`
}

const progressFormat = 2

// parseProgress reads a progress file of this very object.
func parseProgress(data []byte, r *Request) (progress, bool) {
	var pr progress
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if dec.Decode(&pr) != nil {
		return progress{}, false
	}
	count := layout.BlockCount(r.Length)
	ok := pr.Format == progressFormat && pr.Length == r.Length && maps.Equal(pr.Hashes, r.Hashes) &&
		pr.Verified >= 0 && pr.Verified <= r.Length &&
		(pr.Verified%layout.BlockSize == 0 || pr.Verified == r.Length) &&
		(pr.Blocks == nil || pr.Boot == "" && len(pr.Blocks) == len(newBitmap(count)))
	return pr, ok
}

// load finds out how far an earlier try got and brings h there; the zero value
// if there was none or anything about it does not fit.
func (p *part) load(r *Request, h *hashes) progress {
	f, err := p.dir.Open(p.note())
	if err != nil {
		return progress{}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxProgressFile+int64(len(r.Blocks))/128))
	if err != nil {
		return progress{}
	}
	pr, ok := parseProgress(data, r)
	if !ok {
		return progress{}
	}
	if info, err := p.file.Stat(); err != nil || info.Size() < pr.Verified {
		return progress{}
	}
	if pr.Verified == 0 {
		return pr
	}
	fresh, err := newHashes(r.Hashes)
	if err != nil || !fresh.resume(pr.States) {
		return progress{}
	}
	*h = *fresh
	return pr
}

// loose finds out how far the file can be used without a block list: beyond
// what was synced as well, if it was written in order and the system has run
// ever since. What lies behind is cut off. From here on the same is true of
// what this process writes.
func (p *part) loose(r *Request, pr progress) (int64, error) {
	info, err := p.file.Stat()
	if err != nil {
		return 0, err
	}
	now, _ := boot.ID() // "": not known here
	end := pr.Verified
	if boot.Same(pr.Boot, now) {
		end = max(end, min(info.Size(), r.Length)/layout.BlockSize*layout.BlockSize)
	}
	if err := p.file.Truncate(end); err != nil {
		return 0, err
	}
	if pr.Boot == now || r.Length <= 2*layout.BlockSize {
		return end, nil
	}
	return end, p.save(r, progress{Verified: pr.Verified, States: pr.States, Boot: now})
}

// save syncs the file and then writes down how far it is right. It may run
// beside writes of what it does not speak of.
func (p *part) save(r *Request, pr progress) error {
	// At the very beginning there is nothing to be lost by a power cut.
	sync := pr.Verified > 0 || pr.Blocks != nil
	if sync {
		if err := p.file.Sync(); err != nil {
			return fmt.Errorf("sync file: %w", err)
		}
	}
	pr.Format, pr.Length, pr.Hashes = progressFormat, r.Length, r.Hashes
	data, err := json.Marshal(pr)
	if err != nil {
		return err
	}
	tmp := p.note() + ".new"
	f, err := p.dir.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, filePerm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if sync {
		err = errors.Join(err, f.Sync())
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = p.dir.Rename(tmp, p.note())
	}
	if err != nil {
		_ = p.dir.Remove(tmp)
		return fmt.Errorf("write progress: %w", err)
	}
	return nil
}

// bitmap has a bit for each block.
type bitmap []byte

func newBitmap(n int64) bitmap    { return make(bitmap, (n+7)/8) }
func (b bitmap) has(i int64) bool { return b[i/8]&(1<<(i%8)) != 0 }
func (b bitmap) set(i int64)      { b[i/8] |= 1 << (i % 8) }
