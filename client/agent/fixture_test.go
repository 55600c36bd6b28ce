//go:build unix

package agent_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// fixture is a repository behind a server, and a machine in ring users.
type fixture struct {
	*testing.T
	repo  *tuftest.Repo
	srv   *httptest.Server
	plan  *rollout.Plan // of ring users
	halts *rollout.Halts
	dir   string // state
	root  string // install root
	opts  agent.Options

	mu sync.Mutex // held while a request is answered and while the repository is changed
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{
		T: t, repo: tuftest.New(), dir: filepath.Join(t.TempDir(), "state"), root: filepath.Join(t.TempDir(), "root"),
		plan: &rollout.Plan{Format: 1, Ring: "users", Entries: []rollout.Entry{}}, halts: &rollout.Halts{Format: 1, Halts: []rollout.Halt{}},
	}
	for _, d := range []tuftest.Delegation{
		{Role: "product-hello", Terminating: true, Paths: layout.ProductPatterns("hello")},
		{Role: "product-base", Terminating: true, Paths: layout.ProductPatterns("base")},
		{Role: "product-tools", Terminating: true, Paths: layout.ProductPatterns("tools")},
		{Role: "ring-users", Terminating: true, Paths: layout.RingPatterns("users")},
		{Role: "ring-servers", Terminating: true, Paths: layout.RingPatterns("servers")},
		{Role: "halt", Terminating: true, Paths: layout.HaltPatterns()},
	} {
		f.repo.Delegate(metadata.TARGETS, d)
	}
	f.srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.repo.ServeHTTP(w, r)
	}))
	t.Cleanup(f.srv.Close)
	f.opts = agent.Options{Dir: f.dir, Fetch: fetch.Options{Attempts: 2, BackoffMin: time.Millisecond, BackoffMax: time.Millisecond}}
	return f
}

// publish signs the plan and the halts with everything else.
func (f *fixture) publish() {
	f.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	plan, err := f.plan.Encode()
	f.must(err)
	f.repo.AddArtifact("ring-users", layout.PlanPath("users"), plan)
	halts, err := f.halts.Encode()
	f.must(err)
	f.repo.AddArtifact("halt", layout.HaltsPath, halts)
	f.repo.PublishAll()
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// add puts a patch under its product's role and approves it for ring users.
func (f *fixture) add(product, version, file string, content []byte, change ...func(*patch.Patch)) *rollout.Entry {
	f.Helper()
	p := &patch.Patch{
		Format: 1, ID: patch.MakeID(product, version, "any"), Product: product, Version: version, Platform: "any",
		Kind: patch.KindOf(file), Released: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	for _, c := range change {
		c(p)
	}
	path := layoutPath(f.T, p, file)
	custom := f.sign(layout.ProductRole(product), path, content, p)
	digest, err := patch.Digest(custom)
	f.must(err)
	sum := sha256.Sum256(content)
	f.plan.Entries = append(f.plan.Entries, rollout.Entry{
		Patch: path, SHA256: hex.EncodeToString(sum[:]), Custom: digest, NotBefore: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC),
	})
	return &f.plan.Entries[len(f.plan.Entries)-1]
}

func layoutPath(t *testing.T, p *patch.Patch, file string) string {
	t.Helper()
	path, err := layout.PatchPath(p.Product, p.Version, p.Platform, file)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func (f *fixture) sign(role, path string, content []byte, p *patch.Patch) json.RawMessage {
	f.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.repo.AddArtifact(role, path, content)
	raw, err := json.Marshal(map[string]any{"patchkeep": p})
	f.must(err)
	custom := json.RawMessage(raw)
	f.repo.Targets[role].Signed.Targets[path].Custom = &custom
	return custom
}

func (f *fixture) enrollment() agent.EnrollOptions {
	return agent.EnrollOptions{
		Dir: f.dir, Servers: []string{f.srv.URL}, Root: f.repo.Published["root"][0], Ring: "users",
		MachineID: "machine-1", InstallRoot: f.root, Now: f.opts.Now, Fetch: f.opts.Fetch,
	}
}

func (f *fixture) enroll() {
	f.Helper()
	_, err := agent.Enroll(f.Context(), f.enrollment())
	f.must(err)
}

func (f *fixture) agent() *agent.Agent {
	f.Helper()
	a, err := agent.Open(f.opts)
	f.must(err)
	return a
}

// check publishes, checks and returns the only item.
func (f *fixture) check() (agent.Item, error) {
	f.Helper()
	rep, err := f.agent().Check(f.Context())
	if rep == nil || len(rep.Patches) == 0 {
		return agent.Item{}, err
	}
	return rep.Patches[len(rep.Patches)-1], err
}

// apply applies and returns what was done, as "product version step", and the
// error.
func (f *fixture) apply(o agent.ApplyOptions) (string, *agent.Result, error) {
	f.Helper()
	res, err := f.agent().Apply(f.Context(), o)
	var done []string
	for _, d := range res.Done {
		done = append(done, fmt.Sprintf("%s %s", d.ID(), d.Step))
	}
	return strings.Join(done, ", "), res, err
}

func (f *fixture) wantApply(want string, target error) *agent.Result {
	f.Helper()
	got, res, err := f.apply(agent.ApplyOptions{})
	if got != want || target == nil && err != nil || target != nil && !errors.Is(err, target) {
		f.Fatalf("Apply = %q, %v; want %q, %v\n%+v", got, err, want, target, res)
	}
	return res
}

func (f *fixture) read(path ...string) string {
	f.Helper()
	data, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		return "!" + err.Error()
	}
	return string(data)
}

// program is an archive whose bin/hello says its version.
func program(version string) []byte {
	var b bytes.Buffer
	writeTar(&b, "bin/hello", "#!/bin/sh\necho "+version+"\n")
	return b.Bytes()
}

// counted is a command that appends its version to a file; verified by a file
// that says what is installed.
func counted(dir string) func(*patch.Patch) {
	return func(p *patch.Patch) {
		p.Kind = patch.KindCommand
		p.Install = &patch.Recipe{Argv: []string{"sh", "-c", `echo $1 >>"$2/runs"; echo $1 >"$2/now"`, "sh", "{version}", dir}}
		p.Detect = &patch.Recipe{Argv: []string{"cat", dir + "/now"}}
	}
}
