package client

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	documentsDir = "documents"
	maxDocuments = 256 // kept on disk or in memory; the oldest go first
	dirPerm      = 0o700
	filePerm     = 0o600

	validatorFile = "timestamp.etag"
	maxValidator  = 8 << 10
)

// documents keeps small files by name, on disk or in memory. What comes out is
// verified again by the caller, so a damaged file costs one fetch.
type documents struct {
	dir      *os.Root // nil: memory
	readOnly bool
	mem      *memory
}

type memory struct {
	mu    sync.Mutex
	files map[string][]byte
	order []string // oldest first
}

func openDocuments(dir string, readOnly bool) (documents, error) {
	d := documents{readOnly: readOnly, mem: &memory{files: map[string][]byte{}}}
	if dir == "" {
		return d, nil
	}
	if !readOnly {
		if err := os.MkdirAll(dir, dirPerm); err != nil {
			return d, err
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		if readOnly && errors.Is(err, fs.ErrNotExist) {
			return d, nil
		}
		return d, err
	}
	defer root.Close()
	if !readOnly {
		if err := root.Mkdir(documentsDir, dirPerm); err != nil && !errors.Is(err, fs.ErrExist) {
			return d, err
		}
	}
	d.dir, err = root.OpenRoot(documentsDir)
	if readOnly && errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	return d, err
}

func (d *documents) close() error {
	if d.dir == nil {
		return nil
	}
	return d.dir.Close()
}

// get returns a file of at most max bytes.
func (d *documents) get(name string, max int64) ([]byte, error) {
	d.mem.mu.Lock()
	data, ok := d.mem.files[name]
	d.mem.mu.Unlock()
	if ok {
		return slices.Clone(data), nil
	}
	if d.dir == nil {
		return nil, fs.ErrNotExist
	}
	f, err := d.dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, max+1))
}

// put keeps a file. A crash may lose it: that costs one fetch.
func (d *documents) put(name string, data []byte) error {
	if d.dir == nil || d.readOnly {
		d.mem.put(name, slices.Clone(data))
		return nil
	}
	tmp := name + ".new"
	err := d.dir.WriteFile(tmp, data, filePerm)
	if err == nil {
		err = d.dir.Rename(tmp, name)
	}
	if err != nil {
		_ = d.dir.Remove(tmp)
		return fmt.Errorf("keep document: %w", err)
	}
	return d.prune()
}

func (m *memory) put(name string, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.files[name]; !ok {
		m.order = append(m.order, name)
	}
	m.files[name] = data
	if len(m.order) > maxDocuments {
		delete(m.files, m.order[0])
		m.order = m.order[1:]
	}
}

// prune removes the oldest files beyond maxDocuments.
func (d *documents) prune() error {
	dir, err := d.dir.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil || len(entries) <= maxDocuments {
		return err
	}
	type file struct {
		name string
		time time.Time
	}
	var files []file
	for _, e := range entries {
		if info, err := e.Info(); err == nil && e.Name() != validatorFile && e.Name() != serversFile {
			files = append(files, file{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return a.time.Compare(b.time) })
	for _, f := range files[:max(0, len(files)-maxDocuments)] {
		_ = d.dir.Remove(f.name)
	}
	return nil
}

// validator is what validatorFile holds: the ETag of the trusted timestamp, so
// that a new process, too, asks only whether there is a newer one.
type validator struct {
	fetch.Validated
	SHA256 string `json:"sha256"` // of the bytes that the ETag stands for
}

// remember keeps the ETag of the timestamp that was just verified.
func (c *Client) remember() {
	if c.metadata == nil {
		return
	}
	before := c.metadata.Known()
	c.metadata.Confirm(c.tuf.Bytes(layout.RoleTimestamp))
	known := c.metadata.Known()
	if c.docs.readOnly || c.docs.dir == nil || known.ETag == "" || known.URL == before.URL && known.ETag == before.ETag {
		return
	}
	sum := sha256.Sum256(known.Body)
	if data, err := json.Marshal(validator{known, hex.EncodeToString(sum[:])}); err == nil {
		_ = c.docs.put(validatorFile, data) // a loss costs one small fetch
	}
}

// recall is the inverse of remember. The bytes are those of the trusted
// metadata, which Open verified.
func (c *Client) recall() {
	if c.metadata == nil {
		return
	}
	data, err := c.docs.get(validatorFile, maxValidator)
	if err != nil {
		return
	}
	var v validator
	if json.Unmarshal(data, &v) != nil {
		return
	}
	body := c.tuf.Bytes(layout.RoleTimestamp)
	if sum := sha256.Sum256(body); len(body) > 0 && hex.EncodeToString(sum[:]) == v.SHA256 {
		v.Body = body
		c.metadata.SetKnown(v.Validated)
	}
}
