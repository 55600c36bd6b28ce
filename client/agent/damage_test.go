//go:build unix

package agent_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// What power cuts leave of a file.
var wrecks = map[string][]byte{
	"empty":     {},
	"zeros":     make([]byte, 4096),
	"cut":       []byte(`[{"id": "x", "pro`),
	"other":     []byte(`"hello"`),
	"not JSON":  []byte("\x7fELF"),
	"too large": append([]byte("["), make([]byte, 33<<20)...),
}

// The agent goes on without the files that it can do without, keeps them for a
// look, and says so.
func TestDamagedStateIsSetAside(t *testing.T) {
	for _, name := range []string{"seen.json", "looks.json", "reboots.json", "report.json", "history.json", "installed.json", "halts.json", "halts-copy.json"} {
		for kind, data := range wrecks {
			if name != "history.json" && kind != "zeros" && kind != "other" { // one file is enough for all kinds
				continue
			}
			t.Run(name+" "+kind, func(t *testing.T) {
				f := newFixture(t)
				dir := t.TempDir()
				f.add("hello", "1.1", "hello.bin", []byte("x"), counted(dir), func(p *patch.Patch) { p.Detect = nil })
				f.halts.Halts = []rollout.Halt{{ID: "h1", Product: "tools", Since: halt("h1").Since}}
				f.publish()
				f.enroll()
				f.wantApply("hello 1.1 committed", nil)
				f.must(os.WriteFile(filepath.Join(f.dir, name), data, 0o600))
				if _, err := f.agent().Status(); err != nil {
					t.Errorf("Status: %v", err)
				}
				res := f.wantApply("", nil)
				if got := f.read(dir, "runs"); got != "1.1\n" {
					t.Errorf("it was installed anew: %q", got)
				}
				aside := filepath.Join(f.dir, name+".damaged")
				if d := res.Report.Damaged; len(d) != 1 || d[0].File != aside || d[0].Why == "" {
					t.Errorf("the report says %+v", d)
				}
				if got := f.read(aside); got != string(data) {
					t.Errorf("it was not kept")
				}
				st, err := f.agent().Status()
				if err != nil || len(st.Damaged) != 1 || st.Installed["hello"].Version != "1.1" {
					t.Errorf("then Status = %+v, %v", st, err)
				}
				f.must(os.Remove(aside))
				if res := f.wantApply("", nil); len(res.Report.Damaged) != 0 {
					t.Errorf("it is damaged still: %+v", res.Report.Damaged)
				}
				// What was stopped is not forgotten with one of its copies.
				f.halts.Halts = nil
				f.add("tools", "1", "tools.bin", []byte("y"), command("exit 0"))
				f.publish()
				if it, err := f.check(); err != nil || it.State != agent.StateHalted {
					t.Errorf("tools is %s, %v", it.State, err)
				}
			})
		}
	}
}

// Without knowing what was stopped nothing is installed, until a person looked.
func TestBothCopiesOfTheHaltsDamaged(t *testing.T) {
	f := newFixture(t)
	f.halts.Halts = []rollout.Halt{halt("h1")}
	f.publish()
	f.enroll()
	_, err := f.check()
	f.must(err)
	f.halts.Halts = nil
	f.add("tools", "1", "tools.bin", []byte("y"), command("exit 0"))
	f.publish()
	paths := []string{filepath.Join(f.dir, "halts.json"), filepath.Join(f.dir, "halts-copy.json")}
	for _, p := range paths {
		f.must(os.WriteFile(p, nil, 0o600))
	}
	for range 2 {
		f.wantApply("", agent.ErrDamaged)
	}
	_, err = f.check()
	for _, want := range append(paths, "nothing is installed", "patchkeep halt list") {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	for _, p := range paths {
		f.must(os.Remove(p))
	}
	f.wantApply("tools 1 committed", nil)
}

// Whom to trust cannot be guessed.
func TestDamagedEnrolment(t *testing.T) {
	for _, name := range []string{"agent.json", "root.json"} {
		f := newFixture(t)
		f.add("hello", "1.1", "hello.tar", program("1.1"))
		f.publish()
		f.enroll()
		f.must(os.WriteFile(filepath.Join(f.dir, name), nil, 0o600))
		_, err := agent.Open(f.opts)
		if !errors.Is(err, agent.ErrDamaged) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "--force") {
			t.Errorf("%s: Open: %v", name, err)
		}
		o := f.enrollment()
		o.Force = true
		_, err = agent.Enroll(t.Context(), o)
		f.must(err)
		f.wantApply("hello 1.1 committed", nil)
	}
}

// A damaged journal says nothing of how far a patch had come. The machine is
// asked, and where it cannot tell, a person.
func TestDamagedJournal(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(p *patch.Patch, dir string)
		ran    bool // its installer, before the power cut
		want   string
		runs   string // in all
	}{
		{"detected: installed", func(*patch.Patch, string) {}, true, "", "1.1\n"},
		{"detected: not installed", func(*patch.Patch, string) {}, false, "hello 1.1 committed", "1.1\n"},
		{"verified: installed", func(p *patch.Patch, dir string) {
			p.Detect, p.Verify = nil, &patch.Recipe{Argv: []string{"test", "-e", dir + "/now"}}
		}, true, "hello 1.1 committed", "1.1\n"},
		{"verified: not installed", func(p *patch.Patch, dir string) {
			p.Detect, p.Verify = nil, &patch.Recipe{Argv: []string{"test", "-e", dir + "/now"}}
		}, false, "hello 1.1 committed", "1.1\n"},
		{"nothing tells", func(p *patch.Patch, _ string) { p.Detect = nil }, true, "", "1.1\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			dir := t.TempDir()
			f.add("hello", "1.1", "hello.bin", []byte("x"), counted(dir), func(p *patch.Patch) { tt.change(p, dir) })
			f.publish()
			f.enroll()
			step := "after verified"
			if tt.ran {
				step = "installed"
			}
			if point := crashAt(t, f, step); point != step {
				t.Fatalf("it was killed at %q", point)
			}
			records, err := filepath.Glob(filepath.Join(f.dir, "patches/*.json"))
			if err != nil || len(records) != 1 {
				t.Fatal(records, err)
			}
			f.must(os.WriteFile(records[0], nil, 0o600))
			res := f.wantApply(tt.want, nil)
			if got := f.read(dir, "runs"); got != tt.runs {
				t.Errorf("its installer ran: %q", got)
			}
			it, err := f.check()
			if tt.name != "nothing tells" {
				if err != nil || it.State != agent.StateInstalled {
					t.Errorf("then %s: %s, %v", it.State, it.Why, err)
				}
				return
			}
			if it.State != agent.StateFailed || !strings.Contains(it.Why, "apply --retry") || len(res.Report.Damaged) != 1 {
				t.Errorf("%s: %s; %+v", it.State, it.Why, res.Report.Damaged)
			}
			if got, _, err := f.apply(agent.ApplyOptions{Retry: true}); got != "hello 1.1 committed" || err != nil {
				t.Errorf("retry: %q, %v", got, err)
			}
			if res := f.wantApply("", nil); len(res.Report.Damaged) != 0 {
				t.Errorf("it is damaged still: %+v", res.Report.Damaged)
			}
		})
	}
}
