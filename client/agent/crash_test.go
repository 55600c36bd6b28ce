//go:build unix

package agent_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// crash runs an agent in a process of its own that kills itself at its n-th
// step. It returns the point, "" if the agent came to its end before.
func crash(t *testing.T, f *fixture, n int) string {
	t.Helper()
	return crashAt(t, f, strconv.Itoa(n))
}

// crashAt is crash at the step of a name, or of a number.
func crashAt(t *testing.T, f *fixture, step string) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^$")
	cmd.Env = append(os.Environ(), "TEST_AGENT_DIR="+f.dir, "TEST_AGENT_DIE_AT="+step)
	out, err := cmd.Output()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return strings.TrimSpace(string(out))
	}
	if err != nil {
		t.Fatalf("agent that should die at step %s: %v", step, err)
	}
	return ""
}

// killed runs an agent in a process of its own, and reports whether it was
// killed, by what it ran.
func killed(t *testing.T, f *fixture) bool {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^$")
	cmd.Env = append(os.Environ(), "TEST_AGENT_DIR="+f.dir, "TEST_AGENT_DIE_AT=0")
	_ = cmd.Run() // it fails, or is killed
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled()
}

// A process that is killed at any step leaves a machine that the next run
// brings to a right end; and nothing is installed twice or half.
func TestKilledAtEachStep(t *testing.T) {
	for _, tt := range []struct {
		name  string
		add   func(f *fixture, dir string)
		check func(f *fixture, dir string) string // "" if right
	}{
		{"archive", func(f *fixture, dir string) {
			f.add("hello", "1.1", "hello.tar", program("1.1"), func(p *patch.Patch) {
				p.Verify = &patch.Recipe{Argv: []string{"{root}/hello/current/bin/hello"}}
			})
		}, func(f *fixture, dir string) string {
			if got := f.read(f.root, "hello/current/bin/hello"); !strings.Contains(got, "echo 1.1") {
				return got
			}
			return ""
		}},
		{
			"command", func(f *fixture, dir string) { f.add("hello", "1.1", "hello.bin", []byte("x"), counted(dir)) },
			func(f *fixture, dir string) string {
				if got := f.read(dir, "runs"); got != "1.1\n" {
					return "installed: " + got
				}
				return ""
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			points := map[string]bool{}
			for n := 1; ; n++ {
				f := newFixture(t)
				dir := t.TempDir()
				tt.add(f, dir)
				f.publish()
				f.enroll()
				point := crash(t, f, n)
				points[point] = true
				_, res, err := f.apply(agent.ApplyOptions{})
				if err != nil {
					t.Errorf("after a kill at %q: %v\n%+v", point, err, res)
				}
				if wrong := tt.check(f, dir); wrong != "" {
					t.Errorf("after a kill at %q: %s", point, wrong)
				}
				f.wantApply("", nil)
				if it, err := f.check(); err != nil || it.State != agent.StateInstalled {
					t.Errorf("after a kill at %q: %+v, %v", point, it, err)
				}
				h, err := f.agent().History()
				if err != nil || len(h) == 0 || h[0].Step != agent.StepCommitted {
					t.Errorf("after a kill at %q: history %+v, %v", point, h, err)
				}
				if point == "" {
					break
				}
			}
			for _, want := range []string{"before offered", "after fetched", "after verified", "after installing", "installed", "after checking", "before committed", "after committed"} {
				if !points[want] {
					t.Errorf("no run was killed at %q; points: %v", want, points)
				}
			}
		})
	}
}

// Killed while it rolls back: the next run rolls back.
func TestKilledWhileRollingBack(t *testing.T) {
	for n := 1; ; n++ {
		f := newFixture(t)
		f.add("hello", "1.0", "hello.tar", program("1.0"))
		f.publish()
		f.enroll()
		f.wantApply("hello 1.0 committed", nil)
		f.add("hello", "1.1", "hello.tar", program("1.1"), func(p *patch.Patch) { p.Verify = &patch.Recipe{Argv: []string{"false"}} })
		f.publish()
		exe, err := os.Executable()
		f.must(err)
		cmd := exec.Command(exe, "-test.run=^$")
		cmd.Env = append(os.Environ(), "TEST_AGENT_DIR="+f.dir, "TEST_AGENT_DIE_AT="+strconv.Itoa(n))
		out, _ := cmd.Output() // it fails, or is killed
		for range agent.MaxAttempts {
			_, res, _ := f.apply(agent.ApplyOptions{})
			if got := f.read(f.root, "hello/current/bin/hello"); !strings.Contains(got, "echo 1.0") {
				t.Errorf("after a kill at %q: current is %q\n%+v", out, got, res)
			}
		}
		if it, err := f.check(); err != nil || it.State != agent.StateFailed {
			t.Errorf("after a kill at %q: %+v, %v", out, it, err)
		}
		if len(out) == 0 {
			break
		}
	}
}

// A command that nothing tells of is not run again after a kill, until a
// person says so.
func TestKilledAndNothingTells(t *testing.T) {
	f := newFixture(t)
	dir := t.TempDir()
	f.add("hello", "1.1", "hello.bin", []byte("x"), counted(dir), func(p *patch.Patch) { p.Detect = nil })
	f.publish()
	f.enroll()
	if point := crashAt(t, f, "installed"); point != "installed" {
		t.Fatalf("the agent was killed at %q", point)
	}
	res := f.wantApply("hello 1.1 failed", agent.ErrFailed)
	if !strings.Contains(res.Done[0].Why, "apply --retry") {
		t.Errorf("result %+v", res.Done)
	}
	f.wantApply("", nil)
	if got := f.read(dir, "runs"); got != "1.1\n" {
		t.Errorf("it ran: %q", got)
	}
	if got, _, err := f.apply(agent.ApplyOptions{Retry: true}); got != "hello 1.1 committed" || err != nil {
		t.Errorf("retry: %q, %v", got, err)
	}
}

// The agent is killed, its installer lives on: the next run leaves it alone.
func TestInstallerOutlivesTheAgent(t *testing.T) {
	f := newFixture(t)
	dir := t.TempDir()
	f.add("hello", "1.1", "hello.bin", []byte("x"), func(p *patch.Patch) {
		p.Kind = patch.KindCommand
		// It kills its parent, and goes on until the test lets it end.
		p.Install = &patch.Recipe{Argv: []string{"sh", "-c", fmt.Sprintf(
			`echo run >>%[1]s/runs; kill -9 $PPID; while ! test -e %[1]s/go; do sleep 0.05; done; echo 1.1 >%[1]s/now`, dir)}}
		p.Detect = &patch.Recipe{Argv: []string{"cat", dir + "/now"}}
	})
	f.publish()
	f.enroll()
	if point := crash(t, f, 1<<30); point != "" {
		t.Fatalf("killed at %q", point)
	}
	f.wantApply("", agent.ErrBusy)
	f.must(os.WriteFile(filepath.Join(dir, "go"), nil, 0o600))
	for range 200 {
		got, _, err := f.apply(agent.ApplyOptions{})
		if err == nil {
			if got != "hello 1.1 committed" || f.read(dir, "runs") != "run\n" {
				t.Errorf("Apply = %q; runs: %s", got, f.read(dir, "runs"))
			}
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("the installer never ended")
}
