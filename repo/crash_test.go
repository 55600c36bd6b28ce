package repo_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/store"
	"github.com/patchkeep/patchkeep/repo/store/storeurl"
)

// TestCrashAtEachWrite kills a publisher, a process of its own, right before
// and right after each of its writes. Whatever the moment: clients see a whole,
// valid state, which is the old or the new one; the next publish works; and
// what was published before is there.
func TestCrashAtEachWrite(t *testing.T) { onEachStore(t, crashAtEachWrite) }

func crashAtEachWrite(t *testing.T, f *fixture) {
	first := f.add(t, "1.0", []byte("one"))
	killed := 0
	for n := 1; ; n++ {
		version := fmt.Sprintf("2.%d", n)
		if !crash(t, f, "add", version, n) {
			break
		}
		killed++
		report := f.mustVerify(t)
		if report.Patches < 1 {
			t.Fatalf("killed at moment %d: %d patches left", n, report.Patches)
		}
		f.add(t, fmt.Sprintf("3.%d", n), []byte("after the crash"))
		f.mustVerify(t)
	}
	if killed < 8 { // staged, named, list, role, snapshot, timestamp: before or after
		t.Errorf("the publisher was killed at %d moments only", killed)
	}
	list, err := f.repo.Patches(t.Context(), "hello")
	if err != nil || list[0].SHA256 != first.SHA256 {
		t.Errorf("the first patch is gone: %+v, %v", list, err)
	}
}

// TestCrashedInitIsFinished does the same to Init.
func TestCrashedInitIsFinished(t *testing.T) {
	for n := 1; ; n++ {
		f := emptyFixture(t, t.TempDir())
		initConfig(t, f.keys, "hello")
		died := crash(t, f, "init", "", n)
		cfg := repo.InitConfig{Roles: make(map[string]repo.RoleConfig), Products: []string{"hello"}}
		for role, key := range f.keys.role {
			cfg.Roles[role] = repo.RoleConfig{Keys: keysOf(key)}
		}
		_, err := f.repo.Init(t.Context(), cfg)
		if _, serr := f.store.Stat(t.Context(), "metadata/timestamp.json"); serr != nil {
			t.Fatalf("killed at moment %d: %v, and no timestamp", n, err)
		}
		f.mustVerify(t)
		f.add(t, "1.0", []byte("one"))
		f.mustVerify(t)
		if !died {
			if n < 20 {
				t.Errorf("init was killed at %d moments only", n-1)
			}
			return
		}
	}
}

// TestCrashWhileOthersSign kills whoever stages, signs or publishes a change that
// waits for signatures. Whatever the moment: clients see a whole, valid state, a
// change is there as a whole or not at all, and doing it again gets through.
func TestCrashWhileOthersSign(t *testing.T) {
	f := newFixture(t)
	staging := repo.Open(f.store, repo.Config{Keys: f.keys.without("product-hello"), Pending: repo.WaitAlways})
	stage := func(version string) string {
		t.Helper()
		_, change, err := staging.AddPatch(t.Context(), newPatch(version), "hello.bin", strings.NewReader("two"), 3, repo.AddOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return change.Pending.ID
	}
	for _, op := range []string{"stage", "sign", "publish"} {
		killed := 0
		for n := 1; ; n++ {
			version := fmt.Sprintf("%s.%d", op, n)
			job, id := version, ""
			if op != "stage" {
				id = stage(version)
				job = id
			}
			if op == "publish" {
				signPending(t, f.repo, id)
			}
			died := crash(t, f, op, job, n)
			f.mustVerify(t)
			list, err := f.repo.Pendings(t.Context(), false)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range list {
				if p.State == repo.PendingBad {
					t.Errorf("%s, killed at moment %d: %v", op, n, p.Why)
				}
			}
			if op == "stage" {
				id = stage(version)
			}
			if p, err := f.repo.Pending(t.Context(), id); err != nil {
				t.Fatal(err)
			} else if p.State == repo.PendingWaiting {
				signPending(t, f.repo, id)
			}
			if _, err := f.repo.PublishPending(t.Context(), id, false); err != nil && !errors.Is(err, repo.ErrExists) {
				t.Errorf("%s, killed at moment %d: %v", op, n, err)
			}
			if p, err := f.repo.Pending(t.Context(), id); err != nil || p.State != repo.PendingPublished || p.Closed == nil {
				t.Errorf("%s, killed at moment %d: %+v, %v", op, n, p, err)
			}
			if _, err := f.repo.PatchVersion(t.Context(), "hello", version); err != nil {
				t.Errorf("%s, killed at moment %d: %v", op, n, err)
			}
			if !died {
				break
			}
			killed++
		}
		if least := map[string]int{"stage": 6, "sign": 2, "publish": 8}[op]; killed < least {
			t.Errorf("%s was killed at %d moments only", op, killed)
		}
	}
	f.mustVerify(t)
}

// TestCrashedCeremonyIsFinished kills whoever publishes a new repository that
// has waited for signatures.
func TestCrashedCeremonyIsFinished(t *testing.T) {
	for n := 1; ; n += 2 { // before each write, which is after the one before it
		f := emptyFixture(t, t.TempDir())
		cfg := initConfig(t, f.keys, "hello")
		change, err := repo.Open(f.store, repo.Config{Keys: f.keys.find, Pending: repo.WaitAlways}).Init(t.Context(), cfg)
		if err != nil || change.Pending == nil || change.Pending.State != repo.PendingReady {
			t.Fatalf("Init = %+v, %v", change, err)
		}
		id := change.Pending.ID
		died := crash(t, f, "publish", id, n)
		if _, err := f.repo.PublishPending(t.Context(), id, false); err != nil && !errors.Is(err, repo.ErrExists) {
			t.Fatalf("killed at moment %d: %v", n, err)
		}
		f.mustVerify(t)
		if p, err := f.repo.Pending(t.Context(), id); err != nil || p.State != repo.PendingPublished || p.Closed == nil {
			t.Errorf("killed at moment %d: %+v, %v", n, p, err)
		}
		f.add(t, "1.0", []byte("one"))
		f.mustVerify(t)
		if !died {
			if n < 20 {
				t.Errorf("it was killed at %d moments only", n-1)
			}
			return
		}
	}
}

func signPending(t *testing.T, r *repo.Repository, id string) {
	t.Helper()
	p, err := r.Pending(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.SignPending(t.Context(), p); err != nil {
		t.Fatal(err)
	}
}

// crash runs an operation in a process that kills itself at the n-th moment. It
// reports whether it died, rather than got through.
func crash(t *testing.T, f *fixture, op, version string, n int) bool {
	t.Helper()
	keys := make(map[string][]byte)
	for role, key := range f.keys.role {
		keys[role] = key.priv
	}
	secret, err := json.Marshal(keys)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashChild$")
	cmd.Env = append(os.Environ(), "PATCHKEEP_TEST_CRASH="+strings.Join([]string{op, version, strconv.Itoa(n), f.ref}, "|"))
	cmd.Stdin = strings.NewReader(string(secret))
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("child: %v\n%s", err, out)
	}
	return true
}

// TestCrashChild is the process that crash kills; on its own it does nothing.
func TestCrashChild(t *testing.T) {
	job := strings.Split(os.Getenv("PATCHKEEP_TEST_CRASH"), "|")
	if len(job) != 4 {
		return
	}
	moment, err := strconv.Atoi(job[2])
	if err != nil {
		t.Fatal(err)
	}
	var secret map[string][]byte
	if err := json.NewDecoder(os.Stdin).Decode(&secret); err != nil {
		t.Fatal(err)
	}
	keys := newKeys()
	cfg := repo.InitConfig{Roles: make(map[string]repo.RoleConfig), Products: []string{"hello"}}
	for role, raw := range secret {
		priv := ed25519.PrivateKey(raw)
		key, err := metadata.KeyFromPublicKey(priv.Public())
		if err != nil {
			t.Fatal(err)
		}
		id, err := key.ID()
		if err != nil {
			t.Fatal(err)
		}
		keys.byID[id] = &testKey{id, priv}
		cfg.Roles[role] = repo.RoleConfig{Keys: keysOf(keys.byID[id])}
	}
	s, err := storeurl.Open(t.Context(), job[3])
	if err != nil {
		t.Fatal(err)
	}
	r := repo.Open(&mortal{Store: s, left: moment}, repo.Config{Keys: keys.find})
	switch job[0] {
	case "init":
		_, err = r.Init(t.Context(), cfg)
	case "add":
		_, _, err = r.AddPatch(t.Context(), newPatch(job[1]), "hello.bin", strings.NewReader("two"), 3, repo.AddOptions{})
	case "stage":
		waiting := repo.Open(&mortal{Store: s, left: moment}, repo.Config{Keys: keys.find, Pending: repo.WaitAlways})
		_, _, err = waiting.AddPatch(t.Context(), newPatch(job[1]), "hello.bin", strings.NewReader("two"), 3, repo.AddOptions{})
	case "sign":
		signPending(t, r, job[1])
	case "publish":
		_, err = r.PublishPending(t.Context(), job[1], false)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// mortal is a store whose process dies before or after one of its writes.
type mortal struct {
	store.Store
	left int
}

func (m *mortal) moment() {
	if m.left--; m.left == 0 {
		if p, err := os.FindProcess(os.Getpid()); err == nil {
			_ = p.Kill()
		}
		select {}
	}
}

func (m *mortal) Create(ctx context.Context, name string, r io.Reader, size int64, opt store.Options) (store.Info, error) {
	m.moment()
	defer m.moment()
	return m.Store.Create(ctx, name, r, size, opt)
}

func (m *mortal) Replace(ctx context.Context, name string, data []byte, etag string, opt store.Options) (store.Info, error) {
	m.moment()
	defer m.moment()
	return m.Store.Replace(ctx, name, data, etag, opt)
}

func (m *mortal) Stage(ctx context.Context, r io.Reader, size int64, opt store.Options) (store.Staged, error) {
	m.moment()
	st, err := m.Store.Stage(ctx, r, size, opt)
	return mortalStaged{st, m}, err
}

type mortalStaged struct {
	store.Staged
	m *mortal
}

func (s mortalStaged) Commit(ctx context.Context, name string) (store.Info, error) {
	s.m.moment()
	defer s.m.moment()
	return s.Staged.Commit(ctx, name)
}
