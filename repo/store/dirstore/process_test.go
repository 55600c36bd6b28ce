//go:build linux || darwin

package dirstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/repo/store"
)

// The test binary runs itself as another process: childEnv names what to do
// in which directory.
const childEnv = "PATCHKEEP_DIRSTORE_CHILD"

func TestMain(m *testing.M) {
	mode, dir, ok := strings.Cut(os.Getenv(childEnv), ":")
	if !ok {
		os.Exit(m.Run())
	}
	if err := children[mode](dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

var children = map[string]func(dir string) error{
	"count": childCount,
	"hang":  childHang,
}

func child(t *testing.T, mode, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+mode+":"+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

const countEach = 20

// childCount adds to a counter, and tries to create objects that other
// processes try to create as well. It prints a letter for each it has won.
func childCount(dir string) error {
	s, err := New(dir)
	if err != nil {
		return err
	}
	ctx, cancel := contextWithTimeout()
	defer cancel()
	for i := range countEach {
		_, err := s.Create(ctx, fmt.Sprintf("won/%d", i), strings.NewReader("x"), 1, store.Options{})
		if err == nil {
			fmt.Print("w")
		} else if !errors.Is(err, store.ErrConflict) {
			return err
		}
		for {
			rc, info, err := s.Open(ctx, "counter", 0)
			if err != nil {
				return err
			}
			var n int
			_, err = fmt.Fscan(rc, &n)
			rc.Close()
			if err != nil {
				return err
			}
			_, err = s.Replace(ctx, "counter", []byte(fmt.Sprint(n+1)), info.ETag, store.Options{})
			if err == nil {
				break
			}
			if !errors.Is(err, store.ErrConflict) {
				return err
			}
		}
	}
	return nil
}

func TestProcesses(t *testing.T) {
	dir := t.TempDir()
	s := mustNew(t, dir)
	if _, err := s.Replace(t.Context(), "counter", []byte("0"), "", store.Options{}); err != nil {
		t.Fatal(err)
	}
	const processes = 4
	var cmds []*exec.Cmd
	var outs []*strings.Builder
	for range processes {
		cmd, out := child(t, "count", dir), new(strings.Builder)
		cmd.Stdout = out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds, outs = append(cmds, cmd), append(outs, out)
	}
	won := 0
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		won += outs[i].Len()
	}
	if won != countEach {
		t.Errorf("%d creates of %d objects have succeeded", won, countEach)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "counter")); string(got) != fmt.Sprint(processes*countEach) {
		t.Errorf("the counter is %s, want %d", got, processes*countEach)
	}
}

// childHang creates an object out of standard input.
func childHang(dir string) error {
	s, err := New(dir)
	if err != nil {
		return err
	}
	ctx, cancel := contextWithTimeout()
	defer cancel()
	_, err = s.Create(ctx, "targets/file", os.Stdin, -1, store.Options{})
	return err
}

func TestKilledWriter(t *testing.T) {
	dir := t.TempDir()
	cmd := child(t, "hang", dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(in, io.LimitReader(zero{}, 3<<20)); err != nil {
		t.Fatal(err)
	}
	// Most of that has been written when the pipe takes no more: it holds
	// 64 KiB, the child's buffer 256 KiB.
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()

	tmps := temps(t, dir)
	if len(tmps) != 1 {
		t.Fatalf("temporary files: %q", tmps)
	}
	if fi, err := os.Stat(tmps[0]); err != nil || fi.Size() < 2<<20 {
		t.Errorf("the writer was not in the middle: %v, %v", fi, err)
	}
	s := mustNew(t, dir)
	if got := names(t, s); len(got) != 0 {
		t.Errorf("List = %q", got)
	}
	if _, err := s.Create(t.Context(), "targets/file", strings.NewReader("x"), 1, store.Options{}); err != nil {
		t.Error(err)
	}
	if got := temps(t, dir); len(got) != 1 {
		t.Errorf("a young temporary file may have a writer, but: %q", got)
	}
	// A day later the next writer removes it.
	old := time.Now().Add(-staleAfter - time.Minute)
	if err := os.Chtimes(tmps[0], old, old); err != nil {
		t.Fatal(err)
	}
	if _, err := mustNew(t, dir).Create(t.Context(), "targets/other", strings.NewReader("x"), 1, store.Options{}); err != nil {
		t.Error(err)
	}
	if got := temps(t, dir); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}
