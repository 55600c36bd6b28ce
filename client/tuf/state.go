package tuf

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"
)

const (
	lockName  = "lock"
	clockName = "clock" // the newest time that the repository signed, RFC 3339

	historyName = "roots" // a line "<version> <SHA-256 of the signed part>" for each root ever trusted
	maxHistory  = 64 << 10
	dirMode     = 0o700
	fileMode    = 0o600
)

// state is the trusted state on disk, or in memory. Each file is replaced
// whole: temporary file, fsync, rename, fsync of the directory. Nothing read
// from it but the root is trusted without being verified again.
type state struct {
	dir  string
	lock *flock.Flock

	mu  sync.Mutex
	mem map[string][]byte // all files if there is no writable dir; nil: removed
}

func openState(dir string, readOnly bool) (*state, error) {
	s := &state{dir: dir}
	if dir == "" || readOnly {
		s.mem = map[string][]byte{}
		return s, nil
	}
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, fmt.Errorf("create state: %w", err)
	}
	s.lock = flock.New(filepath.Join(dir, lockName), flock.SetPermissions(fileMode))
	ok, err := s.lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock state: %w", err)
	}
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrLocked, dir)
	}
	return s, nil
}

func (s *state) close() error {
	if s.lock == nil {
		return nil
	}
	return s.lock.Unlock()
}

// stateFile names the file of a role: <role>.json, percent-encoded so that it
// is one path element that no file system takes for anything else.
func stateFile(role string) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(role) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("-_.~", c) >= 0:
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	if b.Len() > 200 { // file systems take 255 bytes
		sum := sha256.Sum256([]byte(role))
		return "%sha256-" + hex.EncodeToString(sum[:]) + ".json"
	}
	return b.String() + ".json"
}

// read returns at most max bytes of a file; absent: fs.ErrNotExist.
func (s *state) read(name string, max int64) ([]byte, error) {
	if s.mem != nil {
		s.mu.Lock()
		data, ok := s.mem[name]
		s.mu.Unlock()
		if ok && data == nil || !ok && s.dir == "" {
			return nil, fmt.Errorf("read state: %s: %w", name, fs.ErrNotExist)
		}
		if ok {
			return data, nil
		}
	}
	f, err := os.Open(filepath.Join(s.dir, name))
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("read state: %s: %w", name, ErrTooLarge)
	}
	return data, nil
}

func (s *state) write(name string, data []byte) error {
	if s.mem != nil {
		s.mu.Lock()
		s.mem[name] = data
		s.mu.Unlock()
		return nil
	}
	if err := replaceFile(s.dir, name, data); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

func (s *state) remove(name string) error {
	if s.mem != nil {
		s.mu.Lock()
		s.mem[name] = nil
		s.mu.Unlock()
		return nil
	}
	err := os.Remove(filepath.Join(s.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = syncDir(s.dir)
	}
	if err != nil {
		return fmt.Errorf("remove from state: %w", err)
	}
	return nil
}

func replaceFile(dir, name string, data []byte) (err error) {
	// No ending .json: a left-over is never taken for a role.
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

// readClock returns the trusted time floor; zero if there is none.
func (s *state) readClock() time.Time {
	data, err := s.read(clockName, 64)
	if err != nil {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, strings.TrimSpace(string(data)))
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

func (s *state) writeClock(t time.Time) error {
	return s.write(clockName, []byte(t.Format(time.RFC3339)+"\n"))
}
