//go:build unix

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net"
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
	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// site is a repository behind a server, and a machine in ring users.
type site struct {
	*testing.T
	repo    *tuftest.Repo
	srv     *httptest.Server
	plan    *rollout.Plan
	halts   *rollout.Halts
	state   string
	root    string // install root
	options func(*agent.Options)

	mu     sync.Mutex                                                   // held while the repository is changed and while requests read it; guards the rest
	handle func(w http.ResponseWriter, r *http.Request, h http.Handler) // nil: h alone
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{
		T: t, repo: tuftest.New(), state: filepath.Join(t.TempDir(), "state"), root: filepath.Join(t.TempDir(), "root"),
		plan: &rollout.Plan{Format: 1, Ring: "users", Entries: []rollout.Entry{}}, halts: &rollout.Halts{Format: 1, Halts: []rollout.Halt{}},
		options: func(*agent.Options) {},
	}
	for _, d := range []tuftest.Delegation{
		{Role: "product-hello", Terminating: true, Paths: layout.ProductPatterns("hello")},
		{Role: "product-data", Terminating: true, Paths: layout.ProductPatterns("data")},
		{Role: "product-tools", Terminating: true, Paths: layout.ProductPatterns("tools")},
		{Role: "ring-users", Terminating: true, Paths: layout.RingPatterns("users")},
		{Role: "ring-servers", Terminating: true, Paths: layout.RingPatterns("servers")},
		{Role: "halt", Terminating: true, Paths: layout.HaltPatterns()},
	} {
		s.repo.Delegate(metadata.TARGETS, d)
	}
	inner := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.repo.ServeHTTP(w, r)
	})
	s.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		handle := s.handle
		s.mu.Unlock()
		if handle != nil {
			handle(w, r, inner)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	s.srv.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetWriteBuffer(64 << 10) // what was written has nearly arrived
		}
		return ctx
	}
	s.srv.Start()
	t.Cleanup(s.srv.Close)
	return s
}

func (s *site) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// add puts a patch under its product's role, with a block list if it is large,
// and approves it for ring users.
func (s *site) add(product, version, file string, content []byte, change ...func(*patch.Patch)) *rollout.Entry {
	s.Helper()
	p := &patch.Patch{
		Format: 1, ID: patch.MakeID(product, version, "any"), Product: product, Version: version, Platform: "any",
		Kind: patch.KindOf(file), Released: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	for _, c := range change {
		c(p)
	}
	path, err := layout.PatchPath(product, version, "any", file)
	s.must(err)
	raw, err := json.Marshal(map[string]any{"patchkeep": p})
	s.must(err)
	custom := json.RawMessage(raw)
	role := layout.ProductRole(product)
	s.mu.Lock()
	s.repo.AddArtifact(role, path, content)
	s.repo.Targets[role].Signed.Targets[path].Custom = &custom
	if layout.BlockListLen(int64(len(content))) > 0 {
		var list []byte
		for rest := content; len(rest) > 0; {
			n := min(len(rest), layout.BlockSize)
			sum := sha256.Sum256(rest[:n])
			list, rest = append(list, sum[:]...), rest[n:]
		}
		s.repo.AddArtifact(role, layout.BlocksPath(path), list)
	}
	s.mu.Unlock()
	digest, err := patch.Digest(custom)
	s.must(err)
	sum := sha256.Sum256(content)
	s.plan.Entries = append(s.plan.Entries, rollout.Entry{
		Patch: path, SHA256: hex.EncodeToString(sum[:]), Custom: digest, NotBefore: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC),
	})
	return &s.plan.Entries[len(s.plan.Entries)-1]
}

// publish signs the plan and the halts with everything else.
func (s *site) publish() {
	s.Helper()
	plan, err := s.plan.Encode()
	s.must(err)
	halts, err := s.halts.Encode()
	s.must(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.repo.AddArtifact("ring-users", layout.PlanPath("users"), plan)
	s.repo.AddArtifact("halt", layout.HaltsPath, halts)
	s.repo.PublishAll()
}

func (s *site) enroll() {
	s.Helper()
	pinned := filepath.Join(s.TempDir(), "root.json")
	s.must(os.WriteFile(pinned, s.repo.Published["root"][0], 0o600))
	if code, out := s.run("enroll", "--server", s.srv.URL, "--root", pinned, "--ring", "users", "--machine-id", "m1", "--install-root", s.root); code != 0 {
		s.Fatalf("enroll: %d\n%s", code, out)
	}
}

// run runs a command line, and returns its exit code and all that it printed.
func (s *site) run(args ...string) (int, string) {
	s.Helper()
	root := newRoot()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	cfg := config()
	cfg.Args = append([]string{"--state", s.state}, args...)
	ctx := context.WithValue(s.Context(), optionsKey{}, func(o *agent.Options) {
		o.Fetch = fetch.Options{Attempts: 2, BackoffMin: time.Millisecond, BackoffMax: time.Millisecond}
		s.options(o)
	})
	code := cli.Execute(ctx, root, cfg)
	return code, out.String()
}

// want runs a command line and wants its exit code, and these words in what it
// prints.
func (s *site) want(code int, args []string, words ...string) string {
	s.Helper()
	got, out := s.run(args...)
	if got != code {
		s.Errorf("%q ended with %d, want %d\n%s", args, got, code, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			s.Errorf("%q does not say %q:\n%s", args, w, out)
		}
	}
	return out
}

func read(path ...string) string {
	data, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		return "!" + err.Error()
	}
	return string(data)
}

// archive is a tar file of one file.
func archive(t *testing.T, name string, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))})
	if err == nil {
		_, err = w.Write(content)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
