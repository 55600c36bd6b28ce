//go:build unix

package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

func command(script string, change ...func(*patch.Patch)) func(*patch.Patch) {
	return func(p *patch.Patch) {
		p.Kind = patch.KindCommand
		p.Install = &patch.Recipe{Argv: []string{"sh", "-c", script, "{file}"}, Exit: map[string]patch.Outcome{"3": patch.Reboot}}
		for _, c := range change {
			c(p)
		}
	}
}

func detect(argv ...string) func(*patch.Patch) {
	return func(p *patch.Patch) { p.Detect = &patch.Recipe{Argv: argv} }
}

// What goes wrong on a machine, what the agent says to a person at 3 a.m., and
// its exit code. In no case anything is installed that must not be.
func TestScenarios(t *testing.T) {
	apply := []string{"apply"}
	for _, tt := range []struct {
		name    string
		arrange func(s *site, ran string) // before it is published and the machine is enrolled
		upset   func(s *site, ran string) // after that
		args    []string                  // nil: apply
		code    int
		says    []string
		runs    int // how often an installer ran
		heal    func(s *site)
		healed  []string // what apply says then, with exit code 0
	}{
		{
			name: "clock a year back",
			upset: func(s *site, _ string) {
				s.repo.Timestamp.Signed.UnrecognizedFields = map[string]any{tuf.SignedAtField: time.Now().UTC().Format(time.RFC3339)}
				s.publish()
				s.want(0, []string{"check"})
				s.options = func(o *agent.Options) { o.Now = func() time.Time { return time.Now().AddDate(-1, 0, 0) } }
			},
			code: 11, says: []string{"clock", "hint: set the clock of this machine; nothing is installed until then"},
			heal: func(s *site) { s.options = func(*agent.Options) {} }, healed: []string{"hello 1.1: installed"},
		},
		{
			name: "clock a year ahead",
			upset: func(s *site, _ string) {
				s.options = func(o *agent.Options) { o.Now = func() time.Time { return time.Now().AddDate(1, 0, 0) } }
			},
			code: 11, says: []string{"expired", "hint: nothing is installed; the publisher must run 'patchkeep renew', or this machine's clock is ahead"},
			heal: func(s *site) { s.options = func(*agent.Options) {} }, healed: []string{"hello 1.1: installed"},
		},
		{
			name: "expired root",
			upset: func(s *site, _ string) {
				s.repo.Root.Signed.Expires = time.Now().UTC().Truncate(time.Second).Add(-time.Hour)
				s.repo.Publish("root")
			},
			code: 11, says: []string{"root", "expired", "hint: nothing is installed"},
			heal: func(s *site) {
				s.repo.Root.Signed.Expires = time.Now().UTC().Truncate(time.Second).AddDate(1, 0, 0)
				s.repo.Publish("root")
			}, healed: []string{"hello 1.1: installed"},
		},
		{
			name: "a plan for another ring",
			upset: func(s *site, _ string) {
				other := *s.plan
				other.Ring = "servers"
				data, err := other.Encode()
				s.must(err)
				s.repo.AddArtifact("ring-users", layout.PlanPath("users"), data)
				s.repo.PublishAll()
			},
			code: 10, says: []string{"read plan of ring users", "it says of itself that it is for ring servers", "hint: nothing of it is used"},
			heal: func(s *site) { s.publish() }, healed: []string{"hello 1.1: installed"},
		},
		{
			name: "a halted patch",
			arrange: func(s *site, _ string) {
				s.halts.Halts = []rollout.Halt{{ID: "h1", Product: "hello", Since: time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC), Reason: "it crashes", By: "ada"}}
			},
			code: 0, says: []string{"Nothing to do: 1 patch in the plan: 1 halted"},
		},
		{
			name: "a halted patch, and why",
			arrange: func(s *site, _ string) {
				s.halts.Halts = []rollout.Halt{{ID: "h1", Product: "hello", Since: time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC), Reason: "it crashes", By: "ada"}}
			},
			args: []string{"why", "hello"}, code: 0, says: []string{"hello 1.1: halted: stopped since 2026-01-03T00:00:00Z by ada: it crashes"},
		},
		{
			name: "a withdrawn patch",
			upset: func(s *site, _ string) {
				delete(s.repo.Targets["product-hello"].Signed.Targets, s.plan.Entries[0].Patch)
				s.publish()
			},
			args: []string{"why", "hello"}, code: 0, says: []string{"hello 1.1: refused: nobody who may sign for hello vouches for it: it was withdrawn, or never published"},
		},
		{
			name:    "a downgrade",
			arrange: func(s *site, ran string) { s.must(os.WriteFile(ran+".version", []byte("1.2\n"), 0o600)) },
			args:    []string{"why", "hello"}, code: 0, says: []string{"hello 1.1: not-applicable: 1.2 is installed, which is newer, and ring users has not asked to go back (no minimum-safe version)"},
		},
		{
			name:  "an unsigned file with the right name",
			upset: func(s *site, _ string) { s.repo.Artifacts[s.plan.Entries[0].Patch] = []byte("evil") },
			code:  10, says: []string{"hello 1.1: not installed: download: ", "hello.bin", "hint: nothing of it is used; tell whoever runs the repository"},
			heal: func(s *site) { s.repo.Artifacts[s.plan.Entries[0].Patch] = []byte("x") }, healed: []string{"hello 1.1: installed"},
		},
		{
			name: "a file that no mirror has",
			upset: func(s *site, _ string) {
				s.handle = func(w http.ResponseWriter, r *http.Request, h http.Handler) {
					if strings.HasSuffix(r.URL.Path, "hello.bin") {
						http.NotFound(w, r)
						return
					}
					h.ServeHTTP(w, r)
				}
			},
			code: 13, says: []string{"hello 1.1: not installed: download: ", "hint: check the network and the servers"},
		},
		{
			name: "nobody answers", upset: func(s *site, _ string) { s.srv.Close() },
			code: 13, says: []string{"hint: check the network and the servers of 'patchkeep-agent status'; it is tried again on the next run"},
		},
		{
			name: "a log-in page",
			upset: func(s *site, _ string) {
				s.handle = func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
					w.Header().Set("Content-Type", "text/html")
					fmt.Fprint(w, "<!DOCTYPE html><html>log in</html>")
				}
			},
			code: 13, says: []string{"hint: "},
			heal: func(s *site) { s.handle = nil }, healed: []string{"hello 1.1: installed"},
		},
		{
			name: "an installer that hangs",
			arrange: func(s *site, ran string) {
				s.plan.Entries = nil
				s.add("hello", "1.1", "hello.bin", []byte("x"), command("echo >>"+ran+"; echo working; sleep 600", func(p *patch.Patch) { p.Install.Timeout = 1 }))
			},
			code: 1, says: []string{"hello 1.1: FAILED: the installer failed: sh was still running after 1s and was stopped", "it said: working", "log: ", "hint: see 'patchkeep-agent history' and the log it names"}, runs: 1,
		},
		{
			name: "an installer that lies",
			arrange: func(s *site, ran string) {
				s.plan.Entries = nil
				s.add("hello", "1.1", "hello.bin", []byte("x"), command("echo >>"+ran, detect("sh", "-c", "exit 1")))
			},
			code: 1, says: []string{"hello 1.1: FAILED: hello is not installed, whatever its installer says; and the patch has no way to roll back"}, runs: 1,
		},
		{
			name: "an installer that needs a reboot",
			arrange: func(s *site, ran string) {
				s.plan.Entries = nil
				s.add("hello", "1.1", "hello.bin", []byte("x"), command("echo >>"+ran+"; exit 3"))
				s.options = func(o *agent.Options) { o.BootID = func() (string, error) { return "boot-1", nil } }
			},
			code: 0, says: []string{"hello 1.1: installed; this machine must be rebooted, then it is checked"}, runs: 1,
			heal: func(s *site) {
				s.want(0, []string{"apply"}, "Next: reboot this machine")
				s.want(0, []string{"status"}, "REBOOT:", "hello 1.1 is waiting for a reboot")
				s.options = func(o *agent.Options) { o.BootID = func() (string, error) { return "boot-2", nil } }
			},
			healed: []string{"hello 1.1: installed (new)"},
		},
		{
			name: "a file that is swapped once it was verified",
			upset: func(s *site, _ string) {
				s.options = func(o *agent.Options) {
					o.BootID = func() (string, error) { // asked right before an installation
						if files, _ := filepath.Glob(filepath.Join(s.state, "downloads", "*", "hello.bin")); len(files) == 1 {
							s.must(os.WriteFile(files[0]+".evil", []byte("y"), 0o600))
							s.must(os.Rename(files[0]+".evil", files[0]))
						}
						return "boot", nil
					}
				}
			},
			code: 10, says: []string{"hello 1.1: FAILED: install hello@1.1/any: file is not the one that was verified", "hint: nothing was run; somebody changes files in the state directory"},
			heal: func(s *site) { s.options = func(*agent.Options) {} }, healed: []string{"hello 1.1: installed"},
		},
		{
			name:  "a state directory that others can write",
			upset: func(s *site, _ string) { s.must(os.Chmod(filepath.Dir(s.state), 0o777)) },
			code:  1, says: []string{"can be changed by others than this user and root: chown it, and chmod go-w it", "hint: nothing is installed until that is mended"},
			heal: func(s *site) { s.must(os.Chmod(filepath.Dir(s.state), 0o700)) }, healed: []string{"hello 1.1: installed"},
		},
		{
			name:  "an enrolment that a power cut damaged",
			upset: func(s *site, _ string) { s.must(os.WriteFile(filepath.Join(s.state, "agent.json"), nil, 0o600)) },
			code:  1, says: []string{"agent.json is damaged: enroll this machine again, with --force"},
		},
		{
			name:  "a history that a power cut damaged",
			upset: func(s *site, _ string) { s.must(os.WriteFile(filepath.Join(s.state, "history.json"), nil, 0o600)) },
			args:  []string{"check"}, code: 0, says: []string{"DAMAGED:", "history.json.damaged", "offered"},
		},
		{
			name: "circular requirements",
			arrange: func(s *site, _ string) {
				s.plan.Entries = nil
				s.add("hello", "1.1", "hello.bin", []byte("x"), command("exit 0", func(p *patch.Patch) { p.Applies.Requires = []string{"tools"} }))
				s.add("tools", "1", "tools.bin", []byte("x"), command("exit 0", func(p *patch.Patch) { p.Applies.Requires = []string{"hello"} }))
			},
			args: []string{"why", "tools"}, code: 0, says: []string{"tools 1: refused: the requirements go in a circle: tools 1 requires hello 1.1 requires tools 1; the publisher must break it"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			ran := filepath.Join(t.TempDir(), "ran")
			s.add("hello", "1.1", "hello.bin", []byte("x"), command("echo >>"+ran+"; echo 1.1 >"+ran+".version", detect("cat", ran+".version")))
			if tt.arrange != nil {
				tt.arrange(s, ran)
			}
			s.publish()
			s.enroll()
			if tt.upset != nil {
				tt.upset(s, ran)
			}
			args := tt.args
			if args == nil {
				args = apply
			}
			out := s.want(tt.code, args, tt.says...)
			if strings.Contains(out, "goroutine ") || strings.Contains(out, "%!") {
				t.Errorf("it says\n%s", out)
			}
			if data, err := os.ReadFile(ran); len(data) != tt.runs {
				t.Errorf("installers ran %d times, want %d: %v", len(data), tt.runs, err)
			}
			if tt.heal != nil {
				tt.heal(s)
				s.want(0, apply, tt.healed...)
			}
		})
	}
}
