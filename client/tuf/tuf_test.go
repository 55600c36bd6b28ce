package tuf_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
)

var sentinels = []error{
	tuf.ErrNotTrusted, tuf.ErrExpired, tuf.ErrOffline, tuf.ErrClock, tuf.ErrLocked,
	tuf.ErrTooLarge, fs.ErrNotExist, context.Canceled, context.DeadlineExceeded,
}

// wantErr checks that err wraps want and no other sentinel.
func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
	for _, s := range sentinels {
		if s != want && errors.Is(err, s) {
			t.Errorf("error %q wraps %v beside %v", err, s, want)
		}
	}
}

func open(t testing.TB, cfg tuf.Config) *tuf.Client {
	t.Helper()
	c, err := tuf.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// inMemory is a client without a directory.
func inMemory(t testing.TB, repo *tuftest.Repo) *tuf.Client {
	t.Helper()
	return open(t, tuf.Config{Root: repo.Published["root"][0], Fetcher: repo})
}

func refresh(t *testing.T, c *tuf.Client) {
	t.Helper()
	if err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func versions(c *tuf.Client) string {
	st := c.Status()
	var out []string
	for _, role := range slices.Sorted(maps.Keys(st.Roles)) {
		out = append(out, fmt.Sprintf("%s %d", role, st.Roles[role].Version))
	}
	return strings.Join(out, ", ")
}

func wantVersions(t *testing.T, c *tuf.Client, want string) {
	t.Helper()
	if got := versions(c); got != want {
		t.Fatalf("versions %q, want %q", got, want)
	}
}

// fetcher is a Fetcher made of a function.
type fetcher func(ctx context.Context, name string, max int64) ([]byte, error)

func (f fetcher) FetchMetadata(ctx context.Context, name string, max int64) ([]byte, error) {
	return f(ctx, name, max)
}

// clock is a clock that a test sets.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) set(t time.Time) {
	c.mu.Lock()
	c.at = t
	c.mu.Unlock()
}

func TestRefreshAgainAndAgain(t *testing.T) {
	repo := tuftest.New()
	c := open(t, tuf.Config{Dir: t.TempDir(), Root: repo.Latest("root"), Fetcher: repo})
	refresh(t, c)
	for i := range 3 {
		repo.RotateKeys("timestamp")
		repo.Publish("root", "targets", "snapshot", "timestamp")
		refresh(t, c)
		v := i + 2
		wantVersions(t, c, fmt.Sprintf("root %d, snapshot %d, targets %d, timestamp %d", v, v, v, v))
	}
	repo.ResetRequests()
	refresh(t, c)
	if got := repo.Requests(); !slices.Equal(got, []string{"5.root.json", "timestamp.json"}) {
		t.Errorf("a poll with nothing new made the requests %q", got)
	}
}

func TestTarget(t *testing.T) {
	repo := tuftest.New()
	repo.Delegate("targets", tuftest.Delegation{Role: "product", Paths: []string{"patches/*"}})
	repo.AddArtifact("product", "patches/x", []byte("content"), "sha256", "sha512")
	repo.AddArtifact("product", "patches/y", []byte("content"), "sha512")
	custom := json.RawMessage(`{"patchkeep":{"id":"x"}}`)
	repo.Targets["product"].Signed.Targets["patches/x"].Custom = &custom
	repo.PublishAll()
	c := inMemory(t, repo)
	x, err := c.Target(t.Context(), "patches/x") // refreshes by itself
	if err != nil {
		t.Fatal(err)
	}
	sum := fmt.Sprintf("%x", tuftest.Hash("sha256", []byte("content")))
	if x.Path != "patches/x" || x.Length != 7 || x.SHA256 != sum || len(x.Hashes) != 2 || x.Role != "product" ||
		x.RoleVersion != 1 || string(x.Custom) != string(custom) {
		t.Errorf("target %+v", x)
	}
	y, err := c.Target(t.Context(), "patches/y")
	if err != nil || y.SHA256 != "" || y.Hashes["sha512"] == "" || y.Custom != nil {
		t.Errorf("target %+v, %v", y, err)
	}
	_, err = c.Target(t.Context(), "patches/z")
	wantErr(t, err, fs.ErrNotExist)
	wantVersions(t, c, "product 1, root 1, snapshot 2, targets 2, timestamp 2")
	if string(c.Bytes("product")) != string(repo.Latest("product")) || c.Bytes("stranger") != nil {
		t.Error("Bytes differ from what was published")
	}
	st := c.Status().Roles["product"]
	if st.Threshold != 1 || !slices.Equal(st.KeyIDs, []string{repo.Signers["product"][0].ID}) || !st.SignedAt.IsZero() {
		t.Errorf("status %+v", st)
	}
}

func TestWalk(t *testing.T) {
	repo := tuftest.New()
	shared := tuftest.NewKey(tuftest.Ed25519)
	repo.Delegate("targets", tuftest.Delegation{Role: "A"})
	repo.Delegate("targets", tuftest.Delegation{Role: "B", Terminating: true})
	repo.Delegate("A", tuftest.Delegation{Role: "C", Keys: []*tuftest.Key{shared}})
	repo.Delegate("B", tuftest.Delegation{Role: "C", Keys: []*tuftest.Key{shared}})
	repo.Delegate("C", tuftest.Delegation{Role: "A", Keys: repo.Signers["A"]}) // a cycle
	bins := repo.DelegateBins("B", 4, "unused")                                // replaces B's delegations
	repo.PublishAll()
	c := inMemory(t, repo)
	var got []string
	walk := func() error {
		got = nil
		return c.Walk(t.Context(), func(r *tuf.Role) error {
			got = append(got, r.Delegator+">"+r.Name)
			if string(r.Bytes) != string(repo.Latest(r.Name)) || r.Version != 2 && r.Version != 1 || r.Expires.IsZero() {
				t.Errorf("role %s is not as published", r.Name)
			}
			if _, err := c.Target(t.Context(), "x/y"); !errors.Is(err, fs.ErrNotExist) { // fn may use the client
				t.Error(err)
			}
			return nil
		})
	}
	if err := walk(); err != nil {
		t.Fatal(err)
	}
	want := []string{"root>targets", "targets>A", "targets>B", "A>C"}
	for _, b := range bins {
		want = append(want, "B>"+b)
	}
	if !slices.Equal(got, want) {
		t.Errorf("walked %q, want %q", got, want)
	}
	repo.ResetRequests()
	if err := walk(); err != nil || len(repo.Requests()) != 0 {
		t.Errorf("second walk: %v, requests %q", err, repo.Requests())
	}
	stop := errors.New("stop")
	if err := c.Walk(t.Context(), func(*tuf.Role) error { return stop }); err != stop {
		t.Errorf("error of fn became %v", err)
	}
	// A bin that the snapshot does not list is a fault of the repository.
	delete(repo.Snapshot.Signed.Meta, bins[3]+".json")
	repo.Publish("snapshot", "timestamp")
	fresh := inMemory(t, repo)
	wantErr(t, fresh.Walk(t.Context(), func(*tuf.Role) error { return nil }), tuf.ErrNotTrusted)
	// And so is a role whose second delegator does not trust it.
	repo.Targets["targets"].Signed.Delegations.Roles = nil
	repo.Delegate("targets", tuftest.Delegation{Role: "A", Keys: repo.Signers["A"]})
	repo.Delegate("targets", tuftest.Delegation{Role: "C", Keys: []*tuftest.Key{tuftest.NewKey(tuftest.Ed25519)}})
	repo.Signers["C"] = []*tuftest.Key{shared}
	repo.PublishAll()
	fresh = inMemory(t, repo)
	wantErr(t, fresh.Walk(t.Context(), func(*tuf.Role) error { return nil }), tuf.ErrNotTrusted)
}

func TestWalkIsBoundedWithHugeBins(t *testing.T) {
	repo := tuftest.New()
	repo.DelegateBins("targets", 2, "bin")
	repo.Targets["targets"].Signed.Delegations.SuccinctRoles.BitLength = 32
	repo.PublishAll()
	c := inMemory(t, repo)
	wantErr(t, c.Walk(t.Context(), func(*tuf.Role) error { return nil }), tuf.ErrNotTrusted)
}

// A failed refresh leaves the last view in use; a root that takes its keys
// away ends it.
func TestViewAfterAFailedRefresh(t *testing.T) {
	repo := tuftest.New()
	repo.AddArtifact("targets", "old", []byte("old"))
	repo.Publish("targets", "snapshot", "timestamp")
	dir := t.TempDir()
	c := open(t, tuf.Config{Dir: dir, Root: repo.Latest("root"), Fetcher: repo})
	refresh(t, c)
	good := repo.Published["targets"]
	repo.AddArtifact("targets", "new", []byte("new"))
	repo.Publish("targets", "snapshot", "timestamp")
	repo.Published["targets"] = good
	wantErr(t, c.Refresh(t.Context()), tuf.ErrOffline)
	if _, err := c.Target(t.Context(), "old"); err != nil {
		t.Errorf("the last view is not in use: %v", err)
	}
	_, err := c.Target(t.Context(), "new")
	wantErr(t, err, fs.ErrNotExist)
	repo.RotateKeys("targets")
	repo.Publish("root")
	wantErr(t, c.Refresh(t.Context()), tuf.ErrOffline)
	_, err = c.Target(t.Context(), "old")
	wantErr(t, err, tuf.ErrOffline) // it tries to refresh, for there is nothing to answer from
	if v := c.RootMetadata().Signed.Version; v != 2 {
		t.Errorf("root version %d", v)
	}
}

// A machine without a network answers from its state until that expires.
func TestOffline(t *testing.T) {
	repo := tuftest.New()
	repo.Delegate("targets", tuftest.Delegation{Role: "A"})
	repo.AddArtifact("A", "file", []byte("content"))
	repo.PublishAll()
	dir := t.TempDir()
	c := open(t, tuf.Config{Dir: dir, Root: repo.Latest("root"), Fetcher: repo})
	if _, err := c.Target(t.Context(), "file"); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	at := &clock{at: time.Now()}
	down := fetcher(func(context.Context, string, int64) ([]byte, error) { return nil, errors.New("no route") })
	for _, readOnly := range []bool{false, true} {
		at.set(time.Now())
		c := open(t, tuf.Config{Dir: dir, Fetcher: down, Now: at.now, ReadOnly: readOnly})
		wantErr(t, c.Refresh(t.Context()), tuf.ErrOffline)
		if _, err := c.Target(t.Context(), "file"); err != nil {
			t.Errorf("offline: %v", err)
		}
		at.set(time.Now().AddDate(0, 0, 31))
		_, err := c.Target(t.Context(), "file")
		wantErr(t, err, tuf.ErrExpired)
		if !strings.Contains(err.Error(), "root expired at ") {
			t.Errorf("error %q does not say what expired when", err)
		}
		c.Close()
	}
	// Half of a state is no state.
	if err := os.Remove(filepath.Join(dir, "targets.json")); err != nil {
		t.Fatal(err)
	}
	c = open(t, tuf.Config{Dir: dir, Fetcher: down})
	_, err := c.Target(t.Context(), "file")
	wantErr(t, err, tuf.ErrOffline)
	if c.TimestampMetadata() != nil || c.SnapshotMetadata() != nil || c.Bytes("timestamp") != nil {
		t.Error("half a state is shown")
	}
}

func TestReadOnlyWritesNothing(t *testing.T) {
	repo := tuftest.New()
	dir := t.TempDir()
	c := open(t, tuf.Config{Dir: dir, Root: repo.Latest("root"), Fetcher: repo})
	reader := open(t, tuf.Config{Dir: dir, Fetcher: repo, ReadOnly: true}) // beside the lock's holder
	repo.Publish("root", "targets", "snapshot", "timestamp")
	before := snapshotDir(t, dir)
	refresh(t, reader)
	wantVersions(t, reader, "root 2, snapshot 2, targets 2, timestamp 2")
	if after := snapshotDir(t, dir); !maps.Equal(before, after) {
		t.Errorf("state changed from %v to %v", slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after)))
	}
	wantVersions(t, c, "root 1")
}

// snapshotDir reads all files of a directory.
func snapshotDir(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(data)
	}
	return out
}

func TestConcurrentUse(t *testing.T) {
	repo := tuftest.New()
	for i := range 6 {
		repo.Delegate("targets", tuftest.Delegation{Role: fmt.Sprintf("r%d", i), Paths: []string{fmt.Sprintf("d%d/*", i)}})
		repo.AddArtifact(fmt.Sprintf("r%d", i), fmt.Sprintf("d%d/file", i), []byte("x"))
	}
	repo.PublishAll()
	c := open(t, tuf.Config{Dir: t.TempDir(), Root: repo.Latest("root"), Fetcher: repo})
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			if err := c.Refresh(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := c.Target(t.Context(), fmt.Sprintf("d%d/file", i%6)); err != nil {
				t.Error(err)
			}
			if err := c.Walk(t.Context(), func(*tuf.Role) error { return nil }); err != nil {
				t.Error(err)
			}
			c.Status()
			c.Bytes("r1")
		})
	}
	wg.Wait()
}

func TestContext(t *testing.T) {
	repo := tuftest.New()
	c := inMemory(t, repo)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantErr(t, c.Refresh(ctx), context.Canceled)
	_, err := c.Target(ctx, "file")
	wantErr(t, err, context.Canceled)
	// Cancelled while a request runs; the fetcher calls that what it likes.
	ctx, cancel = context.WithCancel(t.Context())
	c = open(t, tuf.Config{Root: repo.Latest("root"), Fetcher: fetcher(func(ctx context.Context, _ string, _ int64) ([]byte, error) {
		cancel()
		return nil, fmt.Errorf("%w: %w", tuf.ErrOffline, ctx.Err())
	})})
	wantErr(t, c.Refresh(ctx), context.Canceled)
}
