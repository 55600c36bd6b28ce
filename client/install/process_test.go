//go:build unix

package install_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/patchkeep/patchkeep/repo/patch"
)

// Time is over for those, too, who have left the group, the terminal and their
// parent, and for whoever they start.
func TestTimeoutReachesWhatLeftTheGroup(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells the environment of others")
	}
	b := newBench(t)
	pid := filepath.Join(b.dir, "pid")
	job := b.job(t, patch.KindCommand, "1.1", "f", nil, recipe("sh", "-c",
		`setsid sh -c 'trap "" TERM HUP; (sleep 600; :) & echo $$ $! >`+pid+`.new; mv `+pid+`.new `+pid+`; wait' >/dev/null 2>&1 </dev/null & wait`))
	job.Patch.Install.Timeout = 2
	if out := run(t, b, job); out.Result != patch.Failure || !strings.Contains(out.Why, "still running after 2s") {
		t.Errorf("outcome %+v", out)
	}
	for _, p := range strings.Fields(read(t, pid)) {
		gone(t, p)
	}
}

// What programs do that are not made to be run by others.
func TestRudePrograms(t *testing.T) {
	b := newBench(t)
	for name, tt := range map[string]struct {
		script string
		want   patch.Outcome
		exit   int
	}{
		"closes its output":           {"exec >&- 2>&-; exit 0", patch.Success, 0},
		"asks":                        {"read answer || exit 9; exit 0", patch.Failure, 9},
		"goes elsewhere":              {"cd / && exit 0", patch.Success, 0},
		"removes its directory":       {"rm -rf \"$PWD\"", patch.Success, 0},
		"ends itself":                 {"kill -TERM $$", patch.Failure, -1},
		"leaves its output open":      {"setsid sleep 5 & exit 0", patch.Success, 0},
		"kills its group":             {"kill -KILL 0", patch.Failure, -1},
		"says what is no text":        {`printf '\377\376\000ok'`, patch.Success, 0},
		"a code that looks like -1":   {"exit 255", patch.Failure, 255},
		"removes the file it is from": {"rm -f \"$PATCHKEEP_FILE\"", patch.Success, 0},
	} {
		job := b.job(t, patch.KindCommand, "1.1", "f", nil, recipe("sh", "-c", tt.script))
		if out := run(t, b, job); out.Result != tt.want || out.Exit != tt.exit {
			t.Errorf("%s: outcome %+v, want %s, exit %d", name, out, tt.want, tt.exit)
		}
	}
}

// The lock lasts as long as anything of the installer, in whatever session.
func TestLockOutlivesTheInstaller(t *testing.T) {
	b := newBench(t)
	path, pid := filepath.Join(b.dir, "lock"), filepath.Join(b.dir, "pid")
	lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	mustDo(t, err)
	mustDo(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	job := b.job(t, patch.KindCommand, "1.1", "f", nil, recipe("sh", "-c",
		`setsid sh -c 'echo $$ >`+pid+`.new; mv `+pid+`.new `+pid+`; exec sleep 600' >/dev/null 2>&1 </dev/null & while ! test -e `+pid+`; do sleep 0.01; done`))
	job.Lock = lock
	if out := run(t, b, job); out.Result != patch.Success {
		t.Fatalf("outcome %+v", out)
	}
	lock.Close()
	again, err := os.Open(path)
	mustDo(t, err)
	defer again.Close()
	if err := unix.Flock(int(again.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		t.Error("the lock is free while something of the installer runs")
	}
	command(t, nil, "kill", "-KILL", strings.TrimSpace(read(t, pid)))
	mustDo(t, unix.Flock(int(again.Fd()), unix.LOCK_EX)) // now it comes
}

// Files that a reboot is to put in place stay where the installer left them;
// what runs that were cut off have left goes in time.
func TestTemporaryFiles(t *testing.T) {
	b := newBench(t)
	old := filepath.Join(b.Dir, "tmp-old")
	mustDo(t, os.MkdirAll(old, 0o700))
	mustDo(t, os.Chtimes(old, time.Time{}, time.Now().Add(-8*24*time.Hour)))
	job := b.job(t, patch.KindCommand, "1.1", "f", nil, recipe("sh", "-c", "echo later >$TMPDIR/at-boot; exit 10"))
	job.Patch.Install.Exit = map[string]patch.Outcome{"10": patch.Reboot}
	run(t, b, job)
	left, err := filepath.Glob(filepath.Join(b.Dir, "tmp-*", "*"))
	if err != nil || len(left) != 1 || read(t, left[0]) != "later\n" {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("what a run left long ago is still there")
	}
}
