//go:build unix

package install_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// bench is an installer with scratch directories.
type bench struct {
	*install.Installer
	dir string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	files := filepath.Join(dir, "files")
	if err := install.PrivateDir(files); err != nil {
		t.Fatal(err)
	}
	return &bench{&install.Installer{
		Root: filepath.Join(dir, "root"), Dir: filepath.Join(dir, "work"), Grace: 200 * time.Millisecond,
	}, dir}
}

// job writes a file and makes the job to install it.
func (b *bench) job(t *testing.T, kind patch.Kind, version, file string, content []byte, change ...func(*patch.Patch)) install.Job {
	t.Helper()
	path := filepath.Join(b.dir, "files", file)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	p := &patch.Patch{Format: 1, ID: "hello@" + version + "/any", Product: "hello", Version: version, Platform: "any", Kind: kind}
	for _, c := range change {
		c(p)
	}
	sum := sha256.Sum256(content)
	job := install.Job{Patch: p, Path: path, Length: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}
	f, err := install.Open(path, job.Length, job.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	job.File = f
	return job
}

func recipe(argv ...string) func(*patch.Patch) {
	return func(p *patch.Patch) { p.Install = &patch.Recipe{Argv: argv} }
}

func run(t *testing.T, b *bench, job install.Job) install.Outcome {
	t.Helper()
	out, err := b.Run(t.Context(), job)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestCommandGetsItsArgumentsAndNothingElse(t *testing.T) {
	t.Setenv("SECRET_TOKEN", "x")
	t.Setenv("LD_PRELOAD", "/nowhere.so")
	b := newBench(t)
	job := b.job(t, patch.KindCommand, "1.1", "a b;$(touch x)%.bin", []byte("data"), recipe("sh", "-c", `
		env; pwd; echo "args:$*"; cat "$1"; read line && echo "got $line"; kill -0 -$$ && echo own group`,
		"sh", "{file}", "{product}", "{version}", "{previous}", "{root}", "x{file}"))
	job.Previous = "1.0"
	out := run(t, b, job)
	if out.Result != patch.Success {
		t.Fatalf("outcome %+v", out)
	}
	for _, want := range []string{
		"args:" + job.Path + " hello 1.1 1.0 " + b.Root + " x" + job.Path + "\n", "data", "own group",
		"PATH=/usr/local/sbin:", "LANG=C.UTF-8", "HOME=/", "TMPDIR=" + b.Dir, "PATCHKEEP_VERSION=1.1", "PATCHKEEP_ROOT=" + b.Root,
	} {
		if !strings.Contains(out.Output, want) {
			t.Errorf("output lacks %q:\n%s", want, out.Output)
		}
	}
	for _, leak := range []string{"SECRET_TOKEN", "LD_PRELOAD", "got "} {
		if strings.Contains(out.Output, leak) {
			t.Errorf("output has %q:\n%s", leak, out.Output)
		}
	}
	if log := read(t, out.Log); !strings.Contains(log, "own group") || !strings.Contains(log, "exit 0") {
		t.Errorf("log: %s", log)
	}
	left, err := filepath.Glob(filepath.Join(b.Dir, "tmp-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("temporary directories are left: %v, %v", left, err)
	}
}

func TestExitCodes(t *testing.T) {
	b := newBench(t)
	exit := map[string]patch.Outcome{"3": patch.Reboot, "4": patch.Retry, "5": patch.NotApplicable, "6": patch.RebootStarted}
	for code, want := range map[int]patch.Outcome{
		0: patch.Success, 1: patch.Failure, 3: patch.Reboot, 4: patch.Retry, 5: patch.NotApplicable, 6: patch.RebootStarted,
	} {
		job := b.job(t, patch.KindCommand, "1.1", "f", nil, recipe("sh", "-c", fmt.Sprintf("exit %d", code)))
		job.Patch.Install.Exit = exit
		if out := run(t, b, job); out.Result != want || out.Exit != code {
			t.Errorf("exit %d: %+v, want %s", code, out, want)
		}
	}
	job := b.job(t, patch.KindCommand, "1.1", "f", nil, recipe("sh", "-c", "kill -9 $$"))
	job.Patch.Install.Exit = map[string]patch.Outcome{"-1": patch.Success}
	if out := run(t, b, job); out.Result != patch.Failure || !strings.Contains(out.Why, "killed") {
		t.Errorf("killed by a signal: %+v", out)
	}
}

func TestTimeoutKillsTheGroup(t *testing.T) {
	b := newBench(t)
	pid := filepath.Join(b.dir, "pid")
	// Neither the program nor its child listens to SIGTERM.
	job := b.job(t, patch.KindCommand, "1.1", "f", nil, recipe("sh", "-c", `trap "" TERM; (trap "" TERM; sleep 600) & echo $! >`+pid+`; echo begun; wait; sleep 600`))
	job.Patch.Install.Timeout = 1
	out := run(t, b, job)
	if out.Result != patch.Failure || out.Exit != -1 || !strings.Contains(out.Why, "still running after 1s") || !strings.Contains(out.Output, "begun") {
		t.Errorf("outcome %+v", out)
	}
	gone(t, strings.TrimSpace(read(t, pid)))
}

func TestCancelStopsTheProgram(t *testing.T) {
	b := newBench(t)
	job := b.job(t, patch.KindCommand, "1.1", "f", nil, recipe("sleep", "600"))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	out, err := b.Run(ctx, job)
	if err != nil || out.Result != patch.Failure || !strings.Contains(out.Why, "was stopped: context deadline exceeded") {
		t.Errorf("Run = %+v, %v", out, err)
	}
}

// A program that leaves another one behind with its output open is not waited
// for, and its exit code counts.
func TestDaemonLeftBehind(t *testing.T) {
	b := newBench(t)
	pid := filepath.Join(b.dir, "pid")
	job := b.job(t, patch.KindCommand, "1.1", "f", nil, recipe("sh", "-c", "sleep 600 & echo $! >"+pid))
	if out := run(t, b, job); out.Result != patch.Success || out.Took > 30*time.Second {
		t.Errorf("outcome %+v", out)
	}
	if err := exec.Command("kill", strings.TrimSpace(read(t, pid))).Run(); err != nil {
		t.Errorf("the daemon was not left alone: %v", err)
	}
}

func gone(t *testing.T, pid string) {
	t.Helper()
	var n int
	if _, err := fmt.Sscan(pid, &n); err != nil {
		t.Fatal(err)
	}
	for range 200 {
		// A zombie that nobody has reaped yet is gone all the same.
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if errors.Is(syscall.Kill(n, 0), syscall.ESRCH) || err == nil && strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %d is still there", n)
}

func TestHugeOutputIsCapped(t *testing.T) {
	b := newBench(t)
	b.Output = 1000
	job := b.job(t, patch.KindCommand, "1.1", "f", nil, recipe("sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x; echo; echo the end"))
	out := run(t, b, job)
	if len(out.Output) > 1100 || !strings.HasSuffix(out.Output, "x\nthe end\n") || !strings.HasPrefix(out.Output, "[4999009 bytes left out]") {
		t.Errorf("%d bytes of output: %.60q…%q", len(out.Output), out.Output, out.Output[len(out.Output)-20:])
	}
}

func TestScript(t *testing.T) {
	b := newBench(t)
	job := b.job(t, patch.KindScript, "1.1", "do it.sh", []byte("#!/bin/sh -e\necho $PATCHKEEP_PRODUCT $PATCHKEEP_VERSION; grep -q fine \"$0\" && cmp \"$0\" \"$PATCHKEEP_FILE\" # fine\n"))
	if out := run(t, b, job); out.Result != patch.Success || out.Output != "hello 1.1\n" {
		t.Errorf("outcome %+v", out)
	}
	job = b.job(t, patch.KindScript, "1.1", "x.sh", []byte("echo no interpreter\n"))
	if _, err := b.Run(t.Context(), job); !errors.Is(err, install.ErrUnsupported) {
		t.Errorf("script without #!: %v", err)
	}
}

func TestFileIsItsOwnProgram(t *testing.T) {
	b := newBench(t)
	job := b.job(t, patch.KindEXE, "1.1", "setup.exe", []byte("#!/bin/sh\necho set up $1\n"), recipe("{file}", "/quiet"))
	if out := run(t, b, job); out.Output != "set up /quiet\n" {
		t.Errorf("outcome %+v", out)
	}
}

func TestRefusedPrograms(t *testing.T) {
	b := newBench(t)
	for _, argv0 := range []string{"./x", "bin/x", "../x", "no-such-program-here", "/no/such/program", "{file}x/y"} {
		job := b.job(t, patch.KindCommand, "1.1", "f", nil, recipe(argv0))
		if out, err := b.Run(t.Context(), job); err == nil {
			t.Errorf("%s: %+v, want an error", argv0, out)
		}
	}
	for _, kind := range []patch.Kind{patch.KindMSI, patch.KindPkg} {
		job := b.job(t, kind, "1.1", "f", nil)
		if _, err := b.Run(t.Context(), job); runtime.GOOS == "linux" && !errors.Is(err, install.ErrUnsupported) {
			t.Errorf("%s: %v, want ErrUnsupported", kind, err)
		}
	}
}

// What another process does to the file between verification and start.
func TestSwappedFileIsNotRun(t *testing.T) {
	evil := []byte("#!/bin/sh\ntouch pwned\n")
	good := []byte("#!/bin/sh\necho fine\n\n")
	tests := map[string]func(t *testing.T, path string){
		"written over": func(t *testing.T, path string) { mustDo(t, os.WriteFile(path, evil, 0o600)) },
		"renamed over": func(t *testing.T, path string) {
			mustDo(t, os.WriteFile(path+".evil", evil, 0o700))
			mustDo(t, os.Rename(path+".evil", path))
		},
		"same content, other file": func(t *testing.T, path string) {
			mustDo(t, os.WriteFile(path+".copy", good, 0o700))
			mustDo(t, os.Rename(path+".copy", path))
		},
		"symlink": func(t *testing.T, path string) {
			mustDo(t, os.Rename(path, path+".away"))
			mustDo(t, os.Symlink(path+".away", path))
		},
		"removed":        func(t *testing.T, path string) { mustDo(t, os.Remove(path)) },
		"longer":         func(t *testing.T, path string) { mustDo(t, os.WriteFile(path, append(good, 'x'), 0o600)) },
		"directory open": func(t *testing.T, path string) { mustDo(t, os.Chmod(filepath.Dir(path), 0o770)) },
	}
	for name, attack := range tests {
		b := newBench(t)
		job := b.job(t, patch.KindScript, "1.1", "s.sh", good)
		attack(t, job.Path)
		_, err := b.Run(t.Context(), job)
		if !errors.Is(err, install.ErrChanged) && !errors.Is(err, install.ErrUnsafe) {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
		if logs, _ := os.ReadDir(filepath.Join(b.Dir, "logs")); len(logs) > 0 {
			t.Errorf("%s: something was run", name)
		}
	}
	b := newBench(t)
	job := b.job(t, patch.KindScript, "1.1", "s.sh", good)
	if _, err := install.Open(job.Path, job.Length, strings.Repeat("0", 64)); !errors.Is(err, install.ErrChanged) {
		t.Errorf("Open with another hash: %v", err)
	}
	mustDo(t, os.Symlink(job.Path, job.Path+".link"))
	if _, err := install.Open(job.Path+".link", job.Length, job.SHA256); !errors.Is(err, install.ErrChanged) {
		t.Errorf("Open of a link: %v", err)
	}
}

func mustDo(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestPrivateDir(t *testing.T) {
	dir := t.TempDir()
	shared := filepath.Join(dir, "shared")
	mustDo(t, os.Mkdir(shared, 0o700))
	mustDo(t, os.Chmod(shared, 0o777))
	if err := install.PrivateDir(filepath.Join(shared, "mine")); !errors.Is(err, install.ErrUnsafe) {
		t.Errorf("below a directory that all can write: %v", err)
	}
	mustDo(t, os.Chmod(shared, 0o777|os.ModeSticky))
	if err := install.PrivateDir(filepath.Join(shared, "mine")); err != nil {
		t.Errorf("below a sticky one: %v", err)
	}
	mustDo(t, os.Chmod(filepath.Join(shared, "mine"), 0o755))
	if err := install.PrivateDir(filepath.Join(shared, "mine")); err != nil {
		t.Errorf("an own one is closed: %v", err)
	}
	if info, err := os.Stat(filepath.Join(shared, "mine")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	mustDo(t, os.Symlink(shared, filepath.Join(dir, "link")))
	if err := install.PrivateDir(filepath.Join(dir, "link")); !errors.Is(err, install.ErrUnsafe) {
		t.Errorf("a link: %v", err)
	}
	if os.Geteuid() == 0 {
		mustDo(t, os.Chown(filepath.Join(shared, "mine"), 12345, 12345))
		if err := install.PrivateDir(filepath.Join(shared, "mine")); !errors.Is(err, install.ErrUnsafe) {
			t.Errorf("of another user: %v", err)
		}
	}
}

func TestVerifyRollbackDetectRecipes(t *testing.T) {
	b := newBench(t)
	job := b.job(t, patch.KindCommand, "1.1", "f", nil, recipe("true"), func(p *patch.Patch) {
		p.Verify = &patch.Recipe{Argv: []string{"sh", "-c", "echo $0; exit 1", "{version}"}}
		p.Rollback = &patch.Recipe{Argv: []string{"echo", "back to {previous}"}}
		p.Detect = &patch.Recipe{Argv: []string{"echo", "1.2-3~x"}}
	})
	job.Previous = "1.0"
	v, err := b.Verify(t.Context(), job)
	if err != nil || v.Result != patch.Failure || v.Output != "1.1\n" {
		t.Errorf("Verify = %+v, %v", v, err)
	}
	r, err := b.Rollback(t.Context(), job)
	if err != nil || r.Result != patch.Success || r.Output != "back to 1.0\n" {
		t.Errorf("Rollback = %+v, %v", r, err)
	}
	for argv, want := range map[string]string{
		"echo 1.2-3~x": "1.2-3~x", "false": "", "no-such-program-here": "", "true": "", "printf 1.0\\nmore": "1.0",
		"echo Version 1.0": "!", "echo ../x": "!", "sleep 600": "!",
	} {
		job.Patch.Detect = &patch.Recipe{Argv: strings.SplitN(argv, " ", 2), Timeout: 1}
		got, err := b.Detect(t.Context(), job.Patch, install.Known{Version: "9"})
		if (err != nil) != (want == "!") || err == nil && got != want {
			t.Errorf("Detect by %s = %q, %v; want %q", argv, got, err, want)
		}
	}
	job.Patch.Detect, job.Patch.Verify, job.Patch.Rollback = nil, nil, nil
	if got, err := b.Detect(t.Context(), job.Patch, install.Known{Version: "9"}); got != "9" || err != nil {
		t.Errorf("Detect by the record = %q, %v", got, err)
	}
	if v, err := b.Verify(t.Context(), job); v != nil || err != nil {
		t.Errorf("Verify without a recipe = %+v, %v", v, err)
	}
	if r, err := b.Rollback(t.Context(), job); r != nil || err != nil {
		t.Errorf("Rollback without a recipe = %+v, %v", r, err)
	}
}
