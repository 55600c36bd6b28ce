//go:build unix

package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gofrs/flock"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

func TestInstallUpdateAndHistory(t *testing.T) {
	f := newFixture(t)
	f.add("hello", "1.0", "hello.tar", program("1.0"))
	f.publish()
	f.enroll()
	if got, _, err := f.apply(agent.ApplyOptions{DryRun: true}); got != "" || err != nil {
		t.Errorf("dry run: %q, %v", got, err)
	}
	if _, err := os.Stat(f.root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("dry run made %s: %v", f.root, err)
	}
	f.wantApply("hello 1.0 committed", nil)
	f.wantApply("", nil)
	f.add("hello", "1.1", "hello ü%41.tar", program("1.1"))
	f.publish()
	res := f.wantApply("hello 1.1 committed", nil)
	if res.Done[0].Previous != "1.0" || res.Report.Patches[1].State != agent.StateInstalled {
		t.Errorf("result %+v", res)
	}
	if got := f.read(f.root, "hello/current/bin/hello"); !strings.Contains(got, "echo 1.1") {
		t.Errorf("current is %q", got)
	}
	h, err := f.agent().History()
	if err != nil || len(h) != 2 || h[0].Version != "1.1" || h[0].Step != agent.StepCommitted || h[0].Previous != "1.0" {
		t.Errorf("history %+v, %v", h, err)
	}
	st, err := f.agent().Status()
	if err != nil || st.Installed["hello"].Version != "1.1" || st.Roles["timestamp"].Version != 3 || st.Reboot || len(st.Pending) > 0 || st.LastCheck == nil {
		t.Errorf("status %+v, %v", st, err)
	}
	// What was downloaded does not pile up.
	left, err := filepath.Glob(filepath.Join(f.dir, "downloads/*/*.tar"))
	if err != nil || len(left) > 0 {
		t.Errorf("left in downloads: %v, %v", left, err)
	}
}

func TestFailingVerifyRollsBack(t *testing.T) {
	f := newFixture(t)
	verify := func(p *patch.Patch) {
		p.Verify = &patch.Recipe{Argv: []string{"sh", "-c", `test "$($0)" = "$1" || { echo broken; exit 1; }`, "{root}/hello/current/bin/hello", "{version}"}}
	}
	f.add("hello", "1.0", "hello.tar", program("1.0"), verify)
	f.publish()
	f.enroll()
	f.wantApply("hello 1.0 committed", nil)
	f.add("hello", "1.1", "hello.tar", program("not 1.1"), verify)
	f.publish()
	for range agent.MaxAttempts {
		res := f.wantApply("hello 1.1 rolled-back", agent.ErrFailed)
		if got := f.read(f.root, "hello/current/bin/hello"); !strings.Contains(got, "echo 1.0") {
			t.Fatalf("current is %q", got)
		}
		if !strings.Contains(res.Done[0].Why, "the verify recipe says no") || !strings.Contains(f.read(res.Done[0].Log), "broken") {
			t.Errorf("done %+v", res.Done[0])
		}
	}
	// Enough: it waits for a person.
	f.wantApply("", nil)
	if it, err := f.check(); err != nil || it.State != agent.StateFailed || !strings.Contains(it.Why, "tried 3 times") {
		t.Errorf("%+v, %v", it, err)
	}
	if got, _, err := f.apply(agent.ApplyOptions{Retry: true, Only: "hello@1.1"}); got != "hello 1.1 rolled-back" || !errors.Is(err, agent.ErrFailed) {
		t.Errorf("retry: %q, %v", got, err)
	}
	if h, err := f.agent().History(); err != nil || len(h) != 5 || h[0].Why == "" {
		t.Errorf("history %+v, %v", h, err)
	}
}

func command(script string, change ...func(*patch.Patch)) func(*patch.Patch) {
	return func(p *patch.Patch) {
		p.Kind = patch.KindCommand
		p.Install = &patch.Recipe{Argv: []string{"sh", "-c", script, "{file}", "{root}"}}
		for _, c := range change {
			c(p)
		}
	}
}

// Each way an installer can end, and what the agent makes of it.
func TestOutcomes(t *testing.T) {
	exit := func(p *patch.Patch) {
		p.Install.Exit = map[string]patch.Outcome{"3": patch.Reboot, "4": patch.Retry, "5": patch.NotApplicable}
	}
	tests := []struct {
		name, script string
		change       func(*patch.Patch)
		want         string
		err          error
		after        agent.State // of the next check
	}{
		{"success", "exit 0", exit, "committed", nil, agent.StateInstalled},
		{"failure", "echo no; exit 1", exit, "failed", agent.ErrFailed, agent.StateOffered},
		{"reboot", "exit 3", exit, "reboot-pending", nil, agent.StateRebootPending},
		{"busy", "exit 4", exit, "retry-later", nil, agent.StateOffered},
		{"not applicable", "exit 5", exit, "not-applicable", nil, agent.StateNotApplicable},
		{"hangs", "sleep 600", func(p *patch.Patch) { p.Install.Timeout = 1 }, "failed", agent.ErrFailed, agent.StateOffered},
		{"huge output", "yes | head -c 10000000", exit, "committed", nil, agent.StateInstalled},
		{"lies", "exit 0", func(p *patch.Patch) { p.Verify = &patch.Recipe{Argv: []string{"false"}} }, "failed", agent.ErrFailed, agent.StateOffered},
		{"verify program missing", "exit 0", func(p *patch.Patch) { p.Verify = &patch.Recipe{Argv: []string{"no-such-program"}} }, "failed", agent.ErrFailed, agent.StateOffered},
		{"failure with rollback", "exit 1", func(p *patch.Patch) { p.Rollback = &patch.Recipe{Argv: []string{"true"}} }, "rolled-back", agent.ErrFailed, agent.StateOffered},
		{"rollback fails", "exit 1", func(p *patch.Patch) { p.Rollback = &patch.Recipe{Argv: []string{"false"}} }, "failed", agent.ErrFailed, agent.StateOffered},
		{"no such program", "", func(p *patch.Patch) { p.Install.Argv = []string{"no-such-program"} }, "failed", fs.ErrNotExist, agent.StateOffered},
		{"relative program", "", func(p *patch.Patch) { p.Install.Argv = []string{"bin/x"} }, "failed", errAny, agent.StateOffered},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			f.add("hello", "1.1", "hello.bin", []byte("x"), command(tt.script, tt.change))
			f.publish()
			f.enroll()
			got, res, err := f.apply(agent.ApplyOptions{})
			if got != "hello 1.1 "+tt.want || (err != nil) != (tt.err != nil) || errors.Is(tt.err, agent.ErrFailed) && !errors.Is(err, tt.err) {
				t.Fatalf("Apply = %q, %v; want %s, %v\n%+v", got, err, tt.want, tt.err, res)
			}
			if it, err := f.check(); err != nil || it.State != tt.after {
				t.Errorf("then: %s %q, %v; want %s", it.State, it.Why, err, tt.after)
			}
		})
	}
}

var errAny = errors.New("any")

func TestRebootThenCheck(t *testing.T) {
	f := newFixture(t)
	boot := "boot-1"
	f.opts.BootID = func() (string, error) { return boot, nil }
	works := filepath.Join(t.TempDir(), "works")
	f.add("hello", "1.1", "hello.bin", []byte("x"), command("exit 3", func(p *patch.Patch) {
		p.Install.Exit = map[string]patch.Outcome{"3": patch.Reboot}
		p.Verify = &patch.Recipe{Argv: []string{"test", "-e", works}}
	}))
	f.publish()
	f.enroll()
	f.wantApply("hello 1.1 reboot-pending", nil)
	f.wantApply("", nil)
	if st, err := f.agent().Status(); err != nil || !st.Reboot || len(st.Pending) != 1 {
		t.Errorf("status %+v, %v", st, err)
	}
	boot = "boot-2"
	f.must(os.WriteFile(works, nil, 0o600))
	if res := f.wantApply("hello 1.1 committed", nil); !res.Done[0].Resumed {
		t.Errorf("result %+v", res)
	}
	if st, err := f.agent().Status(); err != nil || st.Reboot || st.Installed["hello"].Version != "1.1" {
		t.Errorf("status %+v, %v", st, err)
	}
}

// One patch fails, the others go in; what requires another goes in after it.
func TestPartialAndOrder(t *testing.T) {
	f := newFixture(t)
	dir := t.TempDir()
	f.add("hello", "1.1", "hello.bin", []byte("x"), counted(dir), func(p *patch.Patch) { p.Applies.Requires = []string{"base>=2"} })
	f.add("base", "2", "base.tar", program("2"))
	f.add("tools", "3", "tools.bin", []byte("bad"), command("exit 1"))
	f.publish()
	f.enroll()
	got, _, err := f.apply(agent.ApplyOptions{})
	if got != "base 2 committed, hello 1.1 committed, tools 3 failed" {
		t.Errorf("Apply did %q", got)
	}
	if !errors.Is(err, agent.ErrPartial) || !strings.Contains(err.Error(), "tools 3") {
		t.Errorf("Apply: %v, want ErrPartial", err)
	}
}

func TestOnly(t *testing.T) {
	f := newFixture(t)
	f.add("hello", "1.1", "hello.tar", program("1.1"))
	f.add("base", "2", "base.tar", program("2"))
	f.publish()
	f.enroll()
	if got, _, err := f.apply(agent.ApplyOptions{Only: "base"}); got != "base 2 committed" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if got, _, err := f.apply(agent.ApplyOptions{Only: "hello@1.0"}); got != "" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// A halt that is published while the file is downloaded stops it.
func TestHaltedDuringDownload(t *testing.T) {
	f := newFixture(t)
	f.add("hello", "1.1", "hello.tar", program("1.1"))
	f.publish()
	f.enroll()
	inner, done := f.srv.Config.Handler, false
	f.srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".hello.tar") && !done {
			done = true
			f.halts.Halts = []rollout.Halt{halt("h1")}
			f.publish()
		}
		inner.ServeHTTP(w, r)
	})
	res := f.wantApply("hello 1.1 verified", nil)
	if !strings.Contains(res.Done[0].Why, "halted: stopped since") {
		t.Errorf("result %+v", res.Done)
	}
	if _, err := os.Stat(filepath.Join(f.root, "hello")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("it was installed")
	}
}

// Bytes that are not those that were signed are not installed.
func TestTamperedFile(t *testing.T) {
	f := newFixture(t)
	e := f.add("hello", "1.1", "hello.tar", program("1.1"))
	f.publish()
	f.enroll()
	f.repo.Artifacts[e.Patch] = program("6.6")
	got, _, err := f.apply(agent.ApplyOptions{})
	if got != "hello 1.1 offered" || !errors.Is(err, tuf.ErrNotTrusted) {
		t.Errorf("Apply = %q, %v; want ErrNotTrusted", got, err)
	}
}

// Another process swaps the file between its verification and the installer.
func TestSwappedAfterVerification(t *testing.T) {
	for _, how := range []string{"over", "rename"} {
		f := newFixture(t)
		dir := t.TempDir()
		f.add("hello", "1.1", "hello.sh", []byte("#!/bin/sh\ntouch "+dir+"/good\n"))
		f.publish()
		f.enroll()
		agent.OnStep(func(point string) {
			if point != "after installing" {
				return
			}
			files, err := filepath.Glob(filepath.Join(f.dir, "downloads/*/hello.sh"))
			if err != nil || len(files) != 1 {
				t.Errorf("downloads: %v, %v", files, err)
				return
			}
			evil := []byte("#!/bin/sh\ntouch " + dir + "/evil\n")
			if how == "over" {
				f.must(os.WriteFile(files[0], evil, 0o700))
				return
			}
			f.must(os.WriteFile(files[0]+".x", evil, 0o700))
			f.must(os.Rename(files[0]+".x", files[0]))
		})
		t.Cleanup(func() { agent.OnStep(func(string) {}) })
		got, _, err := f.apply(agent.ApplyOptions{})
		if got != "hello 1.1 failed" || !errors.Is(err, install.ErrChanged) {
			t.Errorf("%s: Apply = %q, %v; want ErrChanged", how, got, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: something was run: %v, %v", how, left, err)
		}
		agent.OnStep(func(string) {})
		f.wantApply("hello 1.1 committed", nil)
	}
}

func TestTwoAgents(t *testing.T) {
	f := newFixture(t)
	f.add("hello", "1.1", "hello.tar", program("1.1"))
	f.publish()
	f.enroll()
	if _, err := f.check(); err != nil {
		t.Fatal(err)
	}
	lock := flock.New(filepath.Join(f.dir, "agent.lock"))
	if ok, err := lock.TryLock(); !ok || err != nil {
		t.Fatal(ok, err)
	}
	defer lock.Unlock()
	f.wantApply("", agent.ErrBusy)
	if _, err := f.agent().Check(t.Context()); !errors.Is(err, agent.ErrBusy) {
		t.Errorf("Check: %v", err)
	}
	// Looking goes on.
	if x, err := f.agent().Why(t.Context(), "hello"); err != nil || x.Note == "" || x.Items[0].Version != "1.1" {
		t.Errorf("Why = %+v, %v", x, err)
	}
	if _, err := f.agent().Status(); err != nil {
		t.Errorf("Status: %v", err)
	}
}

func TestCancelledDownload(t *testing.T) {
	f := newFixture(t)
	f.add("hello", "1.1", "hello.tar", program("1.1"))
	f.publish()
	f.enroll()
	ctx, cancel := context.WithCancel(t.Context())
	inner := f.srv.Config.Handler
	f.srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".hello.tar") {
			cancel()
			<-r.Context().Done()
			return
		}
		inner.ServeHTTP(w, r)
	})
	if _, err := f.agent().Apply(ctx, agent.ApplyOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Apply: %v, want cancelled", err)
	}
	f.srv.Config.Handler = inner
	f.wantApply("hello 1.1 committed", nil)
}

// A run in a loop installs what comes, survives a server that is away, and
// ends when it is told to.
func TestRunRecovers(t *testing.T) {
	f := newFixture(t)
	f.add("hello", "1.1", "hello.tar", program("1.1"))
	f.publish()
	f.enroll()
	inner := f.srv.Config.Handler
	f.srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "away", http.StatusBadGateway) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var seen []string
	err := f.agent().Run(ctx, agent.RunOptions{Interval: time.Second, Each: func(res *agent.Result, err error) {
		switch {
		case errors.Is(err, tuf.ErrOffline):
			seen = append(seen, "offline")
			f.srv.Config.Handler = inner
		case err != nil:
			t.Errorf("Run: %v", err)
			cancel()
		case len(res.Done) == 1:
			seen = append(seen, string(res.Done[0].Step))
			cancel()
		}
	}})
	if fmt.Sprint(seen) != "[offline committed]" || err != nil {
		t.Errorf("Run: %v, %v", seen, err)
	}
}

func TestDownload(t *testing.T) {
	f := newFixture(t)
	e := f.add("hello", "1.1", "hello.tar", program("1.1"))
	f.plan.Entries = nil // not approved: one may look at it all the same
	path := e.Patch
	f.publish()
	f.enroll()
	out := filepath.Join(t.TempDir(), "out")
	target, _, err := f.agent().Download(t.Context(), path, out)
	if err != nil || f.read(out) != string(program("1.1")) || target.Path != path {
		t.Errorf("Download: %+v, %v", target, err)
	}
	if _, _, err := f.agent().Download(t.Context(), "patches/hello/2/any/x", out+"2"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Download of nothing: %v", err)
	}
	f.repo.Artifacts[path] = []byte("tampered")
	if _, _, err := f.agent().Download(t.Context(), path, out+"3"); !errors.Is(err, tuf.ErrNotTrusted) {
		t.Errorf("Download of a tampered file: %v", err)
	}
	for _, n := range []string{"2", "3"} {
		if _, err := os.Stat(out + n); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a file was left: %v", err)
		}
	}
}

func TestEnroll(t *testing.T) {
	f := newFixture(t)
	f.add("hello", "1.1", "hello.tar", program("1.1"))
	f.publish()
	if _, err := agent.Open(f.opts); !errors.Is(err, agent.ErrNotEnrolled) {
		t.Errorf("Open: %v", err)
	}
	other := newFixture(t)
	other.publish()
	html := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "<html>log in</html>") }))
	defer html.Close()
	bad := map[string]struct {
		change func(o *agent.EnrollOptions)
		err    error
	}{
		"unknown ring":     {func(o *agent.EnrollOptions) { o.Ring = "office" }, agent.ErrUnknownRing},
		"bad ring":         {func(o *agent.EnrollOptions) { o.Ring = "../x" }, errAny},
		"no root":          {func(o *agent.EnrollOptions) { o.Root = nil }, errAny},
		"rubbish for root": {func(o *agent.EnrollOptions) { o.Root = []byte("{}") }, tuf.ErrNotTrusted},
		"another root":     {func(o *agent.EnrollOptions) { o.Root = other.repo.Published["root"][0] }, tuf.ErrNotTrusted},
		"no server":        {func(o *agent.EnrollOptions) { o.Servers = nil }, errAny},
		"bad server":       {func(o *agent.EnrollOptions) { o.Servers = []string{"ftp://x"} }, errAny},
		"password in URL":  {func(o *agent.EnrollOptions) { o.Servers = []string{"https://a:b@example.org"} }, errAny},
		"no one there":     {func(o *agent.EnrollOptions) { o.Servers = []string{"http://127.0.0.1:1"} }, tuf.ErrOffline},
		"captive portal":   {func(o *agent.EnrollOptions) { o.Servers = []string{html.URL} }, fetch.ErrCaptivePortal},
	}
	for name, tt := range bad {
		o := f.enrollment()
		tt.change(&o)
		_, err := agent.Enroll(t.Context(), o)
		if err == nil || !errors.Is(tt.err, errAny) && !errors.Is(err, tt.err) {
			t.Errorf("%s: %v, want %v", name, err, tt.err)
		}
		if _, err := agent.Open(f.opts); !errors.Is(err, agent.ErrNotEnrolled) {
			t.Errorf("%s: the machine is enrolled: %v", name, err)
		}
	}
	f.enroll()
	info, err := os.Stat(f.dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("state directory: %v, %v", info.Mode(), err)
	}
	f.wantApply("hello 1.1 committed", nil)
	if _, err := agent.Enroll(t.Context(), f.enrollment()); !errors.Is(err, agent.ErrEnrolled) {
		t.Errorf("again: %v", err)
	}
	// By force and to another repository: nothing of the old one is believed.
	o := other.enrollment()
	o.Dir, o.Force, o.MachineID = f.dir, true, ""
	c, err := agent.Enroll(t.Context(), o)
	if err != nil || c.MachineID != "machine-1" {
		t.Fatalf("Enroll = %+v, %v", c, err)
	}
	f.wantApply("", nil)
	// Offline the root is pinned as it is, and what it serves is seen later.
	o = f.enrollment()
	o.Force, o.Offline, o.Servers = true, true, []string{"http://127.0.0.1:1"}
	_, err = agent.Enroll(t.Context(), o)
	f.must(err)
	f.wantApply("", tuf.ErrOffline)
}

// A state directory that others can write is not worked on.
func TestUnsafeState(t *testing.T) {
	f := newFixture(t)
	f.publish()
	f.enroll()
	f.must(os.Chmod(filepath.Dir(f.dir), 0o777))
	f.wantApply("", install.ErrUnsafe)
}

// Two versions with the same bytes are two patches.
func TestSameContentTwice(t *testing.T) {
	f := newFixture(t)
	f.add("hello", "1.0", "hello.tar", program("1"))
	f.publish()
	f.enroll()
	f.wantApply("hello 1.0 committed", nil)
	f.add("hello", "1.1", "hello.tar", program("1"))
	f.add("tools", "1.1", "hello.tar", program("1"))
	f.publish()
	f.wantApply("hello 1.1 committed, tools 1.1 committed", nil)
	f.wantApply("", nil)
}
