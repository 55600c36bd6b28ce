//go:build unix

package agent_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// clock lets a test move the machine's time on.
func (f *fixture) clock() (move func(time.Duration)) {
	moved := time.Duration(0)
	f.opts.Now = func() time.Time { return time.Now().Add(moved) }
	return func(d time.Duration) { moved += d }
}

// wantFailed looks at the last word on the only patch, and lets a person start
// it over.
func (f *fixture) wantFailed(why string) {
	f.Helper()
	f.wantApply("", nil)
	if it, err := f.check(); err != nil || it.State != agent.StateFailed || !strings.Contains(it.Why, why) {
		f.Fatalf("%s: %q, %v; want failed: %q", it.State, it.Why, err, why)
	}
	if _, res, _ := f.apply(agent.ApplyOptions{Retry: true}); len(res.Done) != 1 {
		f.Errorf("a person's retry did %+v", res.Done)
	}
}

// An installer that is always busy is asked less and less, and then no more.
func TestBusyForEver(t *testing.T) {
	f := newFixture(t)
	move := f.clock()
	f.add("hello", "1.1", "hello.bin", []byte("x"), command("exit 4", func(p *patch.Patch) {
		p.Install.Exit = map[string]patch.Outcome{"4": patch.Retry}
	}))
	f.publish()
	f.enroll()
	f.wantApply("hello 1.1 retry-later", nil)
	f.wantApply("hello 1.1 retry-later", nil)
	asked, waited := 2, time.Duration(0)
	for ; asked < agent.MaxRetries && waited < 30*24*time.Hour; asked++ {
		f.wantApply("", nil)
		it, err := f.check()
		if err != nil || it.State != agent.StateWaiting || it.Until.IsZero() || !strings.Contains(it.Why, "busy") {
			t.Fatalf("%+v, %v", it, err)
		}
		wait := it.Until.Sub(f.opts.Now()) + time.Second
		move(wait)
		waited += wait
		want, target := "hello 1.1 retry-later", error(nil)
		if asked+1 == agent.MaxRetries {
			want, target = "hello 1.1 failed", agent.ErrFailed
		}
		f.wantApply(want, target)
	}
	if waited < 48*time.Hour || waited > 7*24*time.Hour {
		t.Errorf("%d tries within %s", asked, waited)
	}
	f.wantFailed("busy")
}

// Each time after the reboot it wants another.
func TestRebootForEver(t *testing.T) {
	f := newFixture(t)
	boots := 0
	f.opts.BootID = func() (string, error) { return fmt.Sprint("boot-", boots), nil }
	f.add("hello", "1.1", "hello.bin", []byte("x"), command("exit 3", func(p *patch.Patch) {
		p.Install.Exit = map[string]patch.Outcome{"3": patch.Reboot}
		p.Verify = &patch.Recipe{Argv: []string{"false"}}
	}))
	f.publish()
	f.enroll()
	f.wantApply("hello 1.1 reboot-pending", nil)
	for range agent.MaxAttempts - 1 {
		f.wantApply("", nil)
		boots++
		f.wantApply("hello 1.1 failed, hello 1.1 reboot-pending", nil)
	}
	boots++
	f.wantApply("hello 1.1 failed", agent.ErrFailed)
	f.wantFailed("the verify recipe says no")
}

// A system that does not tell when it was booted: a person says so.
func TestNobodyKnowsOfTheReboot(t *testing.T) {
	f := newFixture(t)
	f.opts.BootID = func() (string, error) { return "", errors.New("not known here") }
	f.add("hello", "1.1", "hello.bin", []byte("x"), command("exit 3", func(p *patch.Patch) {
		p.Install.Exit = map[string]patch.Outcome{"3": patch.Reboot}
	}))
	f.publish()
	f.enroll()
	f.wantApply("hello 1.1 reboot-pending", nil)
	f.wantApply("", nil)
	if got, _, err := f.apply(agent.ApplyOptions{Retry: true}); got != "hello 1.1 committed" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// An installer that reboots the machine is the last that is started.
func TestRebootStarted(t *testing.T) {
	f := newFixture(t)
	f.add("hello", "1.1", "hello.bin", []byte("x"), command("exit 3", func(p *patch.Patch) {
		p.Install.Exit = map[string]patch.Outcome{"3": patch.RebootStarted}
	}))
	f.add("tools", "1", "tools.bin", []byte("y"), command("exit 0"))
	f.publish()
	f.enroll()
	f.wantApply("hello 1.1 reboot-pending", nil)
	f.wantApply("tools 1 committed", nil) // there was none after all
}

// The agent dies each time at the same place: installing, checking, rolling
// back. It comes to an end.
func TestCrashForEver(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(p *patch.Patch)
	}{
		{"installer", func(p *patch.Patch) { p.Install.Argv[2] = "kill -9 $PPID; exit 1" }},
		{"verify", func(p *patch.Patch) { p.Verify = &patch.Recipe{Argv: []string{"sh", "-c", "kill -9 $PPID; exit 1"}} }},
		{"rollback", func(p *patch.Patch) {
			p.Verify = &patch.Recipe{Argv: []string{"false"}}
			p.Rollback = &patch.Recipe{Argv: []string{"sh", "-c", "kill -9 $PPID; exit 1"}}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			dir := t.TempDir()
			f.add("hello", "1.1", "hello.bin", []byte("x"), command("echo run >>"+dir+"/runs", func(p *patch.Patch) {
				p.Detect = &patch.Recipe{Argv: []string{"false"}}
				tt.change(p)
			}))
			f.publish()
			f.enroll()
			kills := 0
			for ; kills < 100 && killed(t, f); kills++ {
			}
			if kills <= agent.MaxAttempts || kills > agent.MaxResumes+1 {
				t.Errorf("the agent died %d times", kills)
			}
			f.wantApply("", nil)
			if it, err := f.check(); err != nil || it.State != agent.StateFailed || !strings.Contains(it.Why, "the agent was cut off 10 times") {
				t.Errorf("%s: %q, %v", it.State, it.Why, err)
			}
		})
	}
}

// Something takes away what was installed, or its detect recipe is wrong.
func TestGoneAgainForEver(t *testing.T) {
	f := newFixture(t)
	move := f.clock()
	f.add("hello", "1.1", "hello.tar", program("1.1"))
	f.publish()
	f.enroll()
	for range agent.MaxReturns + 1 {
		f.wantApply("hello 1.1 committed", nil)
		f.must(os.RemoveAll(filepath.Join(f.root, "hello")))
		move(time.Hour)
	}
	f.wantFailed("gone again")
	// Later it may have been something else.
	f.must(os.RemoveAll(filepath.Join(f.root, "hello")))
	move(8 * 24 * time.Hour)
	f.wantApply("hello 1.1 committed", nil)
}

// What is installed is what the machine says, not what was done before.
func TestTheMachineDecidesWhatIsInstalled(t *testing.T) {
	f := newFixture(t)
	dir := t.TempDir()
	now := filepath.Join(dir, "now")
	f.add("hello", "1.1", "hello.bin", []byte("x"), counted(dir))
	f.publish()
	f.enroll()
	// Installed by hand.
	f.must(os.WriteFile(now, []byte("1.1\n"), 0o600))
	f.wantApply("", nil)
	if it, err := f.check(); err != nil || it.State != agent.StateInstalled {
		t.Errorf("installed by hand: %s %q, %v", it.State, it.Why, err)
	}
	// Removed by hand.
	f.must(os.Remove(now))
	f.wantApply("hello 1.1 committed", nil)
	f.must(os.Remove(now))
	f.wantApply("hello 1.1 committed", nil)
	// A newer one by hand.
	f.must(os.WriteFile(now, []byte("2.0\n"), 0o600))
	if it, err := f.check(); err != nil || it.State != agent.StateNotApplicable || it.Installed != "2.0" {
		t.Errorf("newer by hand: %s %q, %v", it.State, it.Why, err)
	}
}

// Without a way to detect it, the verify recipe's no counts against the record.
func TestVerifySaysItWasRemoved(t *testing.T) {
	f := newFixture(t)
	dir := t.TempDir()
	f.add("hello", "1.1", "hello.bin", []byte("x"), counted(dir), func(p *patch.Patch) {
		p.Detect, p.Verify = nil, &patch.Recipe{Argv: []string{"test", "-e", dir + "/now"}}
	})
	f.publish()
	f.enroll()
	f.must(os.WriteFile(filepath.Join(dir, "now"), []byte("1.0\n"), 0o600)) // an older one, perhaps
	f.wantApply("hello 1.1 committed", nil)
	f.wantApply("", nil)
	f.must(os.Remove(filepath.Join(dir, "now")))
	f.wantApply("hello 1.1 committed", nil)
	if got := f.read(dir, "runs"); got != "1.1\n1.1\n" {
		t.Errorf("runs: %q", got)
	}
}

// An installer says that all is well, and it is not.
func TestDetectFindsTheLie(t *testing.T) {
	for lie, want := range map[string]string{"": "hello is not installed, whatever", "echo 1.0 >now": "hello 1.0 is installed, whatever"} {
		f := newFixture(t)
		dir := t.TempDir()
		f.add("hello", "1.1", "hello.bin", []byte("x"), command("cd "+dir+"; "+lie, func(p *patch.Patch) {
			p.Detect = &patch.Recipe{Argv: []string{"cat", dir + "/now"}}
		}))
		f.publish()
		f.enroll()
		res := f.wantApply("hello 1.1 failed", agent.ErrFailed)
		if !strings.Contains(res.Done[0].Why, want) {
			t.Errorf("%q: %q", lie, res.Done[0].Why)
		}
	}
}

// While one version waits for its reboot, no other of the product goes in.
func TestOneVersionAtATime(t *testing.T) {
	f := newFixture(t)
	f.add("hello", "1.1", "hello.bin", []byte("x"), command("exit 3", func(p *patch.Patch) {
		p.Install.Exit = map[string]patch.Outcome{"3": patch.Reboot}
	}))
	f.publish()
	f.enroll()
	f.wantApply("hello 1.1 reboot-pending", nil)
	f.add("hello", "1.2", "hello.bin", []byte("y"), command("exit 0"))
	f.publish()
	f.wantApply("", nil)
	if it, err := f.check(); err != nil || it.State != agent.StateWaiting || !strings.Contains(it.Why, "hello 1.1 of the same product is waiting for a reboot") {
		t.Errorf("%s: %q, %v", it.State, it.Why, err)
	}
}

// Metadata that has expired: the agent keeps running, says so, installs nothing,
// and goes on by itself once the repository was renewed.
func TestRunRecoversFromExpiry(t *testing.T) {
	f := newFixture(t)
	f.add("hello", "1.1", "hello.tar", program("1.1"))
	f.repo.Timestamp.Signed.Expires = time.Now().UTC().Truncate(time.Second).Add(-time.Minute)
	f.publish()
	o := f.enrollment()
	o.Offline = true
	_, err := agent.Enroll(t.Context(), o)
	f.must(err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	wake := make(chan struct{}, 1)
	expired := 0
	err = f.agent().Run(ctx, agent.RunOptions{Interval: time.Second, Wake: wake, Each: func(res *agent.Result, err error) {
		switch {
		case errors.Is(err, tuf.ErrExpired):
			if expired++; len(res.Done) > 0 {
				t.Errorf("it did %+v", res.Done)
			}
			if expired == 2 {
				f.mu.Lock()
				f.repo.Timestamp.Signed.Expires = time.Now().UTC().Truncate(time.Second).Add(time.Hour)
				f.mu.Unlock()
				f.publish()
			}
			wake <- struct{}{}
		case err != nil:
			t.Errorf("Run: %v", err)
			cancel()
		default:
			if len(res.Done) != 1 || res.Done[0].Step != agent.StepCommitted || expired != 2 {
				t.Errorf("after %d looks at expired metadata it did %+v", expired, res.Done)
			}
			cancel()
		}
	}})
	f.must(err)
}
