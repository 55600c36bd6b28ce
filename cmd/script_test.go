package cmd_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/patchkeep/patchkeep/repo/store/storetest/s3server"
)

// TestScripts runs testdata/script/*.txtar over the real programs, which are
// built once and found on PATH. Beside testscript's own commands there are:
//
//	exits CODE program args…       the program ends with that exit code
//	mirror NAME args…              patchkeep-mirror serve on a free port, in $NAME its URL
//	stop NAME                      and stops it
//	s3                             a real S3 service: $S3 is a --repo, AWS_… give access
//	flip FILE OFFSET               flips a bit
func TestScripts(t *testing.T) {
	bin := buildPrograms(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("PATCHKEEP_KEY_PASSWORD", "correct horse")
			env.Setenv("PATCHKEEP_REPO", filepath.Join(env.WorkDir, "repo"))
			env.Setenv("PATCHKEEP_KEYS", filepath.Join(env.WorkDir, "keys"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "mirror": startMirror, "stop": stopMirror, "s3": startS3, "flip": flip,
		},
	})
}

func buildPrograms(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", bin+string(filepath.Separator), "./...")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE program args…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%s: %v", args[1], err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("%s ended with exit code %d, want %d", args[1], got, want)
	}
}

// servers are the mirrors of one script, by name.
type servers struct {
	stop map[string]func()
}

var running sync.Map // *testscript.TestScript → *servers

func serversOf(ts *testscript.TestScript) *servers {
	s, loaded := running.LoadOrStore(ts, &servers{stop: make(map[string]func())})
	if !loaded {
		ts.Defer(func() {
			for _, stop := range s.(*servers).stop {
				stop()
			}
			running.Delete(ts)
		})
	}
	return s.(*servers)
}

var listening = regexp.MustCompile(`http://127\.0\.0\.1:[0-9]+`)

func startMirror(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: mirror NAME args…")
	}
	path, err := exec.LookPath(filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], "patchkeep-mirror"))
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, append([]string{"serve", "--listen", "127.0.0.1:0", "--log-level", "info", "--poll", "200ms"}, args[1:]...)...)
	cmd.Dir = ts.Getenv("WORK")
	cmd.Env = os.Environ()
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	found := make(chan string, 1)
	var log strings.Builder
	var mu sync.Mutex // guards log
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			mu.Lock()
			log.WriteString(lines.Text() + "\n")
			mu.Unlock()
			if url := listening.FindString(lines.Text()); url != "" {
				select {
				case found <- url:
				default:
				}
			}
		}
		io.Copy(io.Discard, out)
	}()
	stop := func() {
		cancel()
		<-done
		cmd.Wait()
		mu.Lock()
		defer mu.Unlock()
		ts.Logf("[log of %s]\n%s", args[0], log.String())
	}
	select {
	case url := <-found:
		ts.Setenv(args[0], url)
		serversOf(ts).stop[args[0]] = stop
	case <-done:
		cmd.Wait()
		ts.Fatalf("mirror %s ended:\n%s", args[0], log.String())
	case <-time.After(30 * time.Second):
		stop()
		ts.Fatalf("mirror %s does not listen", args[0])
	}
}

func stopMirror(ts *testscript.TestScript, neg bool, args []string) {
	s := serversOf(ts)
	if neg || len(args) != 1 || s.stop[args[0]] == nil {
		ts.Fatalf("usage: stop NAME")
	}
	s.stop[args[0]]()
	delete(s.stop, args[0])
}

func startS3(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: s3")
	}
	srv, stop, err := s3server.StartProcess(ts.MkAbs("s3"))
	ts.Check(err)
	ts.Defer(stop)
	for _, kv := range srv.Env() {
		name, value, _ := strings.Cut(kv, "=")
		ts.Setenv(name, value)
	}
	ts.Setenv("S3", srv.Ref("prod"))
}

func flip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: flip FILE OFFSET")
	}
	files, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(files) != 1 {
		ts.Fatalf("%s names %d files", args[0], len(files))
	}
	offset, err := strconv.Atoi(args[1])
	ts.Check(err)
	data, err := os.ReadFile(files[0])
	ts.Check(err)
	if offset >= len(data) {
		ts.Fatalf("%s has %d bytes", files[0], len(data))
	}
	data[offset] ^= 1
	ts.Check(os.WriteFile(files[0], data, 0o644))
}
