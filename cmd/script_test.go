package cmd_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
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
//	eventually CODE program args…  it does so within 15 seconds, tried again and again
//	mirror NAME args…              patchkeep-mirror serve on a free port, in $NAME its URL
//	current NAME                   waits until it serves what is published in repo
//	stop NAME                      and stops it
//	s3                             a real S3 service: $S3 is a --repo, AWS_… give access
//	flip FILE OFFSET               flips a bit
func TestScripts(t *testing.T) {
	bin := buildPrograms(t)
	deb := debianPackage(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
			env.Setenv("HOME", env.WorkDir)
			for _, field := range []string{"Package", "Version"} {
				out, err := exec.Command("dpkg-deb", "-f", deb, field).Output()
				if err != nil {
					return fmt.Errorf("read %s of %s: %w", field, deb, err)
				}
				name := map[string]string{"Package": "DEB_PRODUCT", "Version": "DEB_VERSION"}[field]
				env.Setenv(name, strings.TrimSpace(string(out)))
			}
			env.Setenv("DEB", deb)
			// A window that is not open now, nor within the test.
			env.Setenv("CLOSED", time.Now().Add(6*time.Hour).Format("15:04")+"-"+time.Now().Add(7*time.Hour).Format("15:04"))
			env.Setenv("PATCHKEEP_KEY_PASSWORD", "correct horse")
			env.Setenv("PATCHKEEP_REPO", filepath.Join(env.WorkDir, "repo"))
			env.Setenv("PATCHKEEP_KEYS", filepath.Join(env.WorkDir, "keys"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "eventually": eventually, "mirror": startMirror, "stop": stopMirror, "s3": startS3, "flip": flip, "current": current,
		},
	})
}

func buildPrograms(t testing.TB) string {
	t.Helper()
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", bin+string(filepath.Separator), "./...")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

// debianPackage is the package that PATCHKEEP_TEST_DEB names, as .ci/run does
// with one that Debian publishes, or else one that dpkg-deb builds here.
func debianPackage(t *testing.T) string {
	t.Helper()
	if deb := os.Getenv("PATCHKEEP_TEST_DEB"); deb != "" {
		return deb
	}
	dir := filepath.Join(t.TempDir(), "greet")
	for name, content := range map[string]string{
		"DEBIAN/control":       "Package: greet\nVersion: 1.2-3\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: greets\n",
		"usr/share/greet/text": "hello\n",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "--build", dir).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v\n%s", err, out)
	}
	return dir + ".deb"
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE program args…")
	}
	if got := exitCode(ts, args[1:]); strconv.Itoa(got) != args[0] {
		ts.Fatalf("%s ended with exit code %d, want %s", args[1], got, args[0])
	}
}

func exitCode(ts *testscript.TestScript, args []string) int {
	err := ts.Exec(args[0], args[1:]...)
	if err == nil {
		return 0
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		ts.Fatalf("%s: %v", args[0], err)
	}
	return exit.ExitCode()
}

func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: eventually CODE program args…")
	}
	got := 0
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if got = exitCode(ts, args[1:]); strconv.Itoa(got) == args[0] {
			return
		}
	}
	ts.Fatalf("%s ends with exit code %d, want %s", args[1], got, args[0])
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
		waitReady(ts, url)
	case <-done:
		cmd.Wait()
		ts.Fatalf("mirror %s ended:\n%s", args[0], log.String())
	case <-time.After(30 * time.Second):
		stop()
		ts.Fatalf("mirror %s does not listen", args[0])
	}
}

// waitReady waits until a mirror has its first view.
func waitReady(ts *testscript.TestScript, url string) {
	for range 100 {
		resp, err := http.Get(url + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusUnauthorized { // it asks for a token: who has one finds out
				return
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	ts.Fatalf("%s does not become ready", url)
}

// current waits until a mirror serves the timestamp that lies in repo.
func current(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: current NAME")
	}
	want, err := os.ReadFile(ts.MkAbs("repo/metadata/timestamp.json"))
	ts.Check(err)
	for range 200 {
		if resp, err := http.Get(ts.Getenv(args[0]) + "/metadata/timestamp.json"); err == nil {
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil && bytes.Equal(got, want) {
				return
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	ts.Fatalf("%s does not catch up", args[0])
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
