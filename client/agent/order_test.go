//go:build unix

package agent_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

func requires(refs ...string) func(*patch.Patch) {
	return func(p *patch.Patch) { p.Applies.Requires = refs }
}

func supersedes(refs ...string) func(*patch.Patch) {
	return func(p *patch.Patch) { p.Applies.Supersedes = refs }
}

// What goes in and in which order, and what is said of the others.
func TestRequiresAndSupersedes(t *testing.T) {
	add := func(f *fixture, product, version string, change ...func(*patch.Patch)) *rollout.Entry {
		return f.add(product, version, product+".tar", program(version), change...)
	}
	type said struct {
		state agent.State
		why   string
	}
	for _, tt := range []struct {
		name    string
		arrange func(f *fixture)
		check   map[string]said // before anything is done
		order   string          // of the check
		done    string
	}{
		{"what is required goes first", func(f *fixture) {
			add(f, "hello", "1", requires("base>=2"))
			add(f, "base", "2")
		}, map[string]said{"hello 1": {agent.StateWaiting, "it requires base>=2, which is not installed; base 2 goes in first"}}, "base 2, hello 1", "base 2, hello 1"},
		{"a chain", func(f *fixture) {
			add(f, "hello", "1", requires("base>=2"))
			add(f, "base", "2", requires("tools"))
			add(f, "tools", "3")
		}, map[string]said{
			"hello 1": {agent.StateWaiting, "tools 3, then base 2 goes in first"},
			"base 2":  {agent.StateWaiting, "it requires tools, which is not installed; tools 3 goes in first"},
		}, "tools 3, base 2, hello 1", "tools 3, base 2, hello 1"},
		{"the newest that will do", func(f *fixture) {
			add(f, "hello", "1", requires("base>=2"))
			add(f, "base", "1.5")
			add(f, "base", "2")
			add(f, "base", "3")
		}, map[string]said{"base 2": {agent.StateSuperseded, "base 3 is offered, which is newer"}, "hello 1": {agent.StateWaiting, "base 3 goes in first"}}, "base 3, hello 1", "base 3, hello 1"},
		{"a stepping stone is not dropped", func(f *fixture) {
			add(f, "hello", "1")
			add(f, "hello", "2", requires("base"))
			add(f, "base", "1", requires("hello>=1"))
		}, map[string]said{"hello 2": {agent.StateWaiting, "hello 1, then base 1 goes in first"}}, "hello 1, base 1, hello 2", "hello 1, base 1, hello 2"},
		{"nobody has it", func(f *fixture) { add(f, "hello", "1", requires("base>=2")); add(f, "base", "1") }, map[string]said{
			"hello 1": {agent.StateNotApplicable, "it requires base>=2, which is not installed, and the plan holds no patch for it"},
		}, "base 1", "base 1"},
		{"what is required is halted", func(f *fixture) {
			add(f, "tools", "1", requires("hello"))
			add(f, "base", "1", requires("tools"))
			add(f, "hello", "2")
			f.halts.Halts = []rollout.Halt{halt("h1")}
		}, map[string]said{
			"tools 1": {agent.StateWaiting, "it requires hello, which is not installed; hello 2 is halted: stopped since"},
			"base 1":  {agent.StateWaiting, "it requires tools, which is not installed; tools 1 is waiting: it requires hello, which is not installed; hello 2 is halted: stopped since"},
		}, "", ""},
		{"what is required waits", func(f *fixture) {
			add(f, "hello", "1", requires("base>=2"))
			e := add(f, "base", "2")
			e.Paused, e.PausedReason = true, "wait for QA"
		}, map[string]said{"hello 1": {agent.StateWaiting, "base 2 is waiting: the rollout is paused: wait for QA"}}, "", ""},
		{"what is required is not for this machine", func(f *fixture) {
			add(f, "hello", "1", requires("base>=2"))
			add(f, "base", "2", func(p *patch.Patch) { p.Applies.OS = []string{"plan9"} })
		}, map[string]said{"hello 1": {agent.StateNotApplicable, "base 2 is not-applicable: it is not for"}}, "", ""},
		{"a circle", func(f *fixture) {
			add(f, "hello", "1", requires("base>=2"))
			add(f, "base", "2", requires("tools"))
			add(f, "tools", "3", requires("base"))
		}, map[string]said{
			"hello 1": {agent.StateNotApplicable, "base 2 is refused: the requirements go in a circle"},
			"base 2":  {agent.StateRefused, "the requirements go in a circle: base 2 requires tools 3 requires base 2; the publisher must break it"},
			"tools 3": {agent.StateRefused, "tools 3 requires base 2 requires tools 3"},
		}, "", ""},
		{"itself", func(f *fixture) { add(f, "hello", "1", requires("hello")) }, map[string]said{
			"hello 1": {agent.StateRefused, "hello 1 requires hello 1"},
		}, "", ""},
		{"a circle with a way out", func(f *fixture) {
			add(f, "hello", "1", requires("base>=2"))
			add(f, "base", "3", requires("hello"))
			add(f, "base", "2")
		}, map[string]said{"base 3": {agent.StateWaiting, "base 2, then hello 1 goes in first"}}, "base 2, hello 1, base 3", "base 2, hello 1, base 3"},
		{"superseded by an offered one", func(f *fixture) {
			add(f, "hello", "1")
			add(f, "base", "2", supersedes("hello@1"))
		}, map[string]said{"hello 1": {agent.StateSuperseded, "base 2 is offered, which supersedes it"}}, "base 2", "base 2"},
		{"superseded over two steps", func(f *fixture) {
			add(f, "hello", "1")
			add(f, "base", "2", supersedes("hello@1"))
			add(f, "tools", "3", supersedes("base@2"))
		}, map[string]said{
			"hello 1": {agent.StateSuperseded, "tools 3 is offered"},
			"base 2":  {agent.StateSuperseded, "tools 3 is offered"},
		}, "tools 3", "tools 3"},
		{"superseded by one that follows", func(f *fixture) {
			add(f, "hello", "1")
			add(f, "base", "2", supersedes("hello@1"), requires("tools"))
			add(f, "tools", "3")
		}, map[string]said{"hello 1": {agent.StateSuperseded, "base 2"}}, "tools 3, base 2", "tools 3, base 2"},
		{"superseded by one that cannot go in", func(f *fixture) {
			add(f, "hello", "1")
			add(f, "base", "2", supersedes("hello@1"), requires("tools"))
		}, map[string]said{"base 2": {agent.StateNotApplicable, "it requires tools"}}, "hello 1", "hello 1"},
		{"required and superseded by the same", func(f *fixture) {
			add(f, "hello", "1")
			add(f, "base", "2", supersedes("hello@1"), requires("hello"))
		}, map[string]said{"base 2": {agent.StateWaiting, "hello 1 goes in first"}}, "hello 1, base 2", "hello 1, base 2"},
		{"required by one, superseded by another", func(f *fixture) {
			add(f, "hello", "1")
			add(f, "base", "2", supersedes("hello@1"))
			add(f, "tools", "3", requires("hello"))
		}, map[string]said{"tools 3": {agent.StateNotApplicable, "hello 1 is superseded: base 2 is offered, which supersedes it"}}, "base 2", "base 2"},
		{"they supersede each other", func(f *fixture) {
			add(f, "hello", "1", supersedes("base@2"))
			add(f, "base", "2", supersedes("hello@1"))
			add(f, "tools", "3")
		}, map[string]said{
			"hello 1": {agent.StateRefused, "hello 1, base 2 each say that they supersede the other"},
			"base 2":  {agent.StateRefused, "base 2, hello 1 each say that they supersede the other"},
		}, "tools 3", "tools 3"},
		{"supersedes itself", func(f *fixture) { add(f, "hello", "1", supersedes("hello@1")) }, map[string]said{
			"hello 1": {agent.StateRefused, "supersedes itself"},
		}, "", ""},
		{"the older supersedes the newer", func(f *fixture) {
			add(f, "hello", "1.1", supersedes("hello@1.2"))
			add(f, "hello", "1.2")
		}, map[string]said{"hello 1.2": {agent.StateSuperseded, "hello 1.1 is offered, which supersedes it"}}, "hello 1.1", "hello 1.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			tt.arrange(f)
			f.publish()
			f.enroll()
			rep, err := f.agent().Check(t.Context())
			f.must(err)
			for i := range rep.Patches {
				it := &rep.Patches[i]
				if want, ok := tt.check[it.ID()]; ok && (it.State != want.state || !strings.Contains(it.Why, want.why) || it.Trace[len(it.Trace)-1].Why != it.Why) {
					t.Errorf("%s is %s: %q; want %s: %q", it.ID(), it.State, it.Why, want.state, want.why)
				}
			}
			ids := func(items []*agent.Item) string {
				var out []string
				for _, it := range items {
					out = append(out, it.ID())
				}
				return strings.Join(out, ", ")
			}
			if got := ids(rep.Order("")); got != tt.order {
				t.Errorf("order %q, want %q", got, tt.order)
			}
			got, _, err := f.apply(agent.ApplyOptions{})
			if got = strings.ReplaceAll(got, " committed", ""); got != tt.done || err != nil {
				t.Errorf("Apply did %q, %v; want %q", got, err, tt.done)
			}
			f.wantApply("", nil)
		})
	}
}

// One patch brings what it requires, and nothing else.
func TestOnlyBringsWhatItRequires(t *testing.T) {
	f := newFixture(t)
	f.add("hello", "1", "hello.tar", program("1"), requires("base"))
	f.add("tools", "3", "tools.tar", program("3"))
	f.add("base", "2", "base.tar", program("2"))
	f.publish()
	f.enroll()
	if got, _, err := f.apply(agent.ApplyOptions{Only: "hello"}); got != "base 2 committed, hello 1 committed" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// What requires a patch that fails waits for it, and says so.
func TestRequirementFails(t *testing.T) {
	f := newFixture(t)
	f.add("hello", "1", "hello.tar", program("1"), requires("base"))
	f.add("base", "2", "base.bin", []byte("x"), command("exit 1"))
	f.publish()
	f.enroll()
	for range agent.MaxAttempts {
		f.wantApply("base 2 failed", agent.ErrFailed)
	}
	x, err := f.agent().Why(t.Context(), "hello")
	f.must(err)
	if it := x.Items[0]; it.State != agent.StateWaiting || !strings.Contains(it.Why, "it requires base, which is not installed; base 2 is failed: tried 3 times") {
		t.Errorf("%s: %q", it.State, it.Why)
	}
	if !slices.Equal(x.Items[0].After, nil) {
		t.Errorf("after %v", x.Items[0].After)
	}
}
