//go:build linux || darwin

package dirstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/store"
)

func init() {
	children["full"] = childFull
	children["readonly"] = childReadOnly
}

func contextWithTimeout() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), time.Minute)
}

type zero struct{}

func (zero) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func temps(t *testing.T, dir string) []string {
	t.Helper()
	got, err := filepath.Glob(filepath.Join(dir, filepath.FromSlash(tmpDir), "*"))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func names(t *testing.T, s *Store) []string {
	t.Helper()
	var got []string
	if err := s.List(t.Context(), "", func(i store.Info) error { got = append(got, i.Name); return nil }); err != nil {
		t.Fatal(err)
	}
	return got
}

// childFull has the kernel refuse to write beyond 1 MiB of any file, as a full
// disk does in the middle of one.
func childFull(dir string) error {
	signal.Ignore(syscall.SIGXFSZ)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}); err != nil {
		return err
	}
	s, err := New(dir)
	if err != nil {
		return err
	}
	ctx, cancel := contextWithTimeout()
	defer cancel()
	if _, err := s.Create(ctx, "targets/large", io.LimitReader(zero{}, 3<<20), 3<<20, store.Options{}); !errors.Is(err, syscall.EFBIG) {
		return fmt.Errorf("create: %v", err)
	}
	if _, err := s.Stage(ctx, io.LimitReader(zero{}, 3<<20), -1, store.Options{}); !errors.Is(err, syscall.EFBIG) {
		return fmt.Errorf("stage: %v", err)
	}
	_, err = s.Create(ctx, "targets/small", strings.NewReader("x"), 1, store.Options{})
	return err
}

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := child(t, "full", dir).Run(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, mustNew(t, dir)); !slices.Equal(got, []string{"targets/small"}) {
		t.Errorf("List = %q", got)
	}
	if got := temps(t, dir); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}

// childReadOnly is without root's rights, which permissions do not stop.
func childReadOnly(dir string) error {
	s, err := New(dir)
	if err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err := syscall.Setuid(65534); err != nil {
			return err
		}
	}
	ctx, cancel := contextWithTimeout()
	defer cancel()
	if _, err := s.Create(ctx, "targets/x", strings.NewReader("x"), 1, store.Options{}); !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("create: %v", err)
	}
	if err := s.Probe(ctx); !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("probe: %v", err)
	}
	_, err = s.Stat(ctx, "there")
	return err
}

func TestReadOnlyDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "there"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(dir, 0o755) })
	if err := child(t, "readonly", dir).Run(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, mustNew(t, dir)); !slices.Equal(got, []string{"there"}) {
		t.Errorf("List = %q", got)
	}
}

func TestSymlinksAndOthers(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"out": outside, "secret": secret, "up": "..", "inside": "real"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "real"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := mustNew(t, dir)
	for _, name := range []string{"out/secret", "secret", "up/x", "fifo", "out/new", "inside"} {
		if _, _, err := s.Open(t.Context(), name, 0); err == nil {
			t.Errorf("Open(%s) succeeds", name)
		} else if !strings.HasPrefix(name, "out") && !strings.HasPrefix(name, "up") && errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open(%s): %v", name, err)
		}
		if _, err := s.Create(t.Context(), name, strings.NewReader("x"), 1, store.Options{}); err == nil || errors.Is(err, store.ErrConflict) {
			t.Errorf("Create(%s): %v", name, err)
		}
		if _, err := s.Replace(t.Context(), name, []byte("x"), "etag", store.Options{}); err == nil {
			t.Errorf("Replace(%s) succeeds", name)
		}
		if err := s.Delete(t.Context(), name); err == nil && name != "up/x" && name != "out/new" {
			t.Errorf("Delete(%s) succeeds", name)
		}
	}
	if got := names(t, s); !slices.Equal(got, []string{"real"}) {
		t.Errorf("List = %q", got)
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 1 {
		t.Errorf("outside has changed: %v", entries)
	}
	if b, _ := os.ReadFile(secret); string(b) != "secret" {
		t.Errorf("outside has changed: %q", b)
	}
	if got := temps(t, dir); len(got) != 0 {
		t.Errorf("left: %q", got)
	}

	// The store's own directory may be a trap as well.
	trap := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(trap, store.ReservedDir)); err != nil {
		t.Fatal(err)
	}
	if _, err := mustNew(t, trap).Create(t.Context(), "x", strings.NewReader("x"), 1, store.Options{}); err == nil {
		t.Error("temporary files are written outside")
	}
}

// TestNoHardLinks is on a file system without them.
func TestNoHardLinks(t *testing.T) {
	s := mustNew(t, t.TempDir())
	s.link = func(*os.Root, string, string) error {
		return &os.LinkError{Op: "link", Err: syscall.EPERM}
	}
	if err := s.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []error{nil, store.ErrConflict} {
		_, err := s.Create(t.Context(), "a/b/c", strings.NewReader("x"), 1, store.Options{})
		if !errors.Is(err, want) {
			t.Errorf("Create: %v, want %v", err, want)
		}
	}
	if got := temps(t, s.dir); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}

func TestNew(t *testing.T) {
	if _, err := New(""); err == nil {
		t.Error("no error for no directory")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := New(file); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("New of a file: %v", err)
	}
	missing := filepath.Join(t.TempDir(), "missing")
	s := mustNew(t, missing)
	if _, err := s.Stat(t.Context(), "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := os.Stat(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading made the directory: %v", err)
	}
	if _, err := s.Stat(t.Context(), "../x"); !errors.Is(err, layout.ErrBadName) {
		t.Error(err)
	}
}

// TestShrunkFile: somebody truncates a file that is being read.
func TestShrunkFile(t *testing.T) {
	s := mustNew(t, t.TempDir())
	if _, err := s.Create(t.Context(), "f", strings.NewReader("0123456789"), 10, store.Options{}); err != nil {
		t.Fatal(err)
	}
	rc, _, err := s.Open(t.Context(), "f", 2)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if err := os.Truncate(filepath.Join(s.dir, "f"), 5); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(rc); string(got) != "234" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read %q, %v", got, err)
	}
}

// TestCreateBesideDelete: a Delete removes directories that a Create needs.
func TestCreateBesideDelete(t *testing.T) {
	s := mustNew(t, t.TempDir())
	done := make(chan struct{})
	for w := range 4 {
		go func() {
			defer func() { done <- struct{}{} }()
			for i := range 50 {
				name := fmt.Sprintf("busy/dir/%d-%d", w, i)
				if _, err := s.Create(t.Context(), name, strings.NewReader("x"), 1, store.Options{}); err != nil {
					t.Error(err)
				}
				if err := s.Delete(t.Context(), name); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	for range 4 {
		<-done
	}
	if got := names(t, s); len(got) != 0 {
		t.Errorf("List = %q", got)
	}
}

// TestLockWaits: a writer waits for the lock of another process as long as its
// context allows.
func TestLockWaits(t *testing.T) {
	dir := t.TempDir()
	s, other := mustNew(t, dir), mustNew(t, dir)
	info, err := s.Create(t.Context(), "x", strings.NewReader("x"), 1, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	root, err := other.open()
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := other.lock(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Replace(ctx, "x", []byte("y"), info.ETag, store.Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Replace beside a holder of the lock: %v", err)
	}
	unlock()
	if _, err := s.Replace(t.Context(), "x", []byte("y"), info.ETag, store.Options{}); err != nil {
		t.Error(err)
	}
}
