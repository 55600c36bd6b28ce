package agent_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// exampleRepository serves a repository in which ring users has approved one
// patch: hello 1.1, a file to be delivered. It returns an enrolled machine's
// options, and the machine's install root.
func exampleRepository() (opts agent.Options, installRoot string, stop func()) {
	must := func(err error) {
		if err != nil {
			log.Fatal(err)
		}
	}
	long := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p := &patch.Patch{
		Format: patch.Format, ID: patch.MakeID("hello", "1.1", "any"), Product: "hello", Version: "1.1", Platform: "any",
		Kind: patch.KindFile, Released: long,
	}
	content := []byte("hello, world\n")
	path, err := layout.PatchPath(p.Product, p.Version, p.Platform, "hello.txt")
	must(err)
	custom, err := p.ToCustom()
	must(err)
	digest, err := patch.Digest(custom)
	must(err)
	sum := sha256.Sum256(content)
	plan := &rollout.Plan{Format: rollout.Format, Ring: "users", Entries: []rollout.Entry{
		{Patch: path, SHA256: hex.EncodeToString(sum[:]), Custom: digest, NotBefore: long},
	}}
	planJSON, err := plan.Encode()
	must(err)

	r := tuftest.New()
	product, ring := layout.ProductRole("hello"), layout.RingRole("users")
	r.Delegate(layout.RoleTargets, tuftest.Delegation{Role: product, Terminating: true, Paths: layout.ProductPatterns("hello")})
	r.Delegate(layout.RoleTargets, tuftest.Delegation{Role: ring, Terminating: true, Paths: layout.RingPatterns("users")})
	r.AddArtifact(product, path, content)
	r.Targets[product].Signed.Targets[path].Custom = &custom
	r.AddArtifact(ring, layout.PlanPath("users"), planJSON)
	r.PublishAll()
	ts := httptest.NewServer(r)

	dir, err := os.MkdirTemp("", "example")
	must(err)
	installRoot = filepath.Join(dir, "programs")
	opts = agent.Options{Dir: filepath.Join(dir, "state")}
	_, err = agent.Enroll(context.Background(), agent.EnrollOptions{
		Dir: opts.Dir, Servers: []string{ts.URL}, Root: r.Published[layout.RoleRoot][0], Ring: "users",
		MachineID: "machine-1", InstallRoot: installRoot,
	})
	must(err)
	return opts, installRoot, func() {
		ts.Close()
		_ = os.RemoveAll(dir)
	}
}

// Check tells what there is for this machine, and why.
func ExampleAgent_Check() {
	opts, _, stop := exampleRepository()
	defer stop()

	a, err := agent.Open(opts)
	if err != nil {
		log.Fatal(err)
	}
	report, err := a.Check(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	for _, it := range report.Patches {
		fmt.Printf("%s: %s: %s\n", it.ID(), it.State, it.Why)
	}
	// Output: hello 1.1: offered: all conditions hold
}

// Apply installs what is offered. Progress is told of downloads.
func ExampleAgent_Apply() {
	opts, installRoot, stop := exampleRepository()
	defer stop()

	opts.Progress = func(p agent.Progress) { fmt.Printf("%s: %d of %d bytes\n", p.What, p.Done, p.Total) }
	a, err := agent.Open(opts)
	if err != nil {
		log.Fatal(err)
	}
	result, err := a.Apply(context.Background(), agent.ApplyOptions{})
	if err != nil {
		log.Fatal(err)
	}
	for _, d := range result.Done {
		fmt.Println(d.ID(), d.Step)
	}
	text, err := os.ReadFile(filepath.Join(installRoot, "hello", "current", "hello.txt"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", text)
	// Output:
	// hello 1.1: 13 of 13 bytes
	// hello 1.1 committed
	// hello, world
}

// copier is an installer of the program's own: it puts the file of a patch to
// where the program keeps its data, and knows what lies there.
type copier struct{ dir string }

func (c copier) Install(_ context.Context, job install.Job) (install.Outcome, error) {
	data := make([]byte, job.Length)
	if _, err := job.File.ReadAt(data, 0); err != nil { // the open handle, which was hashed just now
		return install.Outcome{}, err
	}
	out := install.Outcome{Result: patch.Success}
	err := os.WriteFile(filepath.Join(c.dir, "text"), data, 0o600)
	if err = errors.Join(err, os.WriteFile(filepath.Join(c.dir, "version"), []byte(job.Patch.Version), 0o600)); err != nil {
		out = install.Outcome{Result: patch.Failure, Why: err.Error()} // it was begun
	}
	return out, nil
}

func (c copier) Detect(context.Context, *patch.Patch, install.Known) (string, error) {
	version, err := os.ReadFile(filepath.Join(c.dir, "version"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(version), err
}

// A program can install patches of a kind in its own way. All else stays: who
// must have signed what, halts, journal, history.
func ExampleOptions_installers() {
	opts, _, stop := exampleRepository()
	defer stop()
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	opts.Installers = map[patch.Kind]install.Runner{patch.KindFile: copier{dir}}
	a, err := agent.Open(opts)
	if err != nil {
		log.Fatal(err)
	}
	result, err := a.Apply(context.Background(), agent.ApplyOptions{})
	if err != nil {
		log.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "text"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %s: %s", result.Done[0].ID(), result.Done[0].Step, text)
	// Output: hello 1.1: committed: hello, world
}
