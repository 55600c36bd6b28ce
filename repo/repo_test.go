package repo_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/mirror/upstream"
	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
	"github.com/patchkeep/patchkeep/repo/store"
	"github.com/patchkeep/patchkeep/repo/store/dirstore"
	"github.com/patchkeep/patchkeep/repo/store/storetest/s3server"
	"github.com/patchkeep/patchkeep/repo/store/storeurl"
)

// testKeys is one ed25519 key a role, and whatever else is put in.
type testKeys struct {
	mu   sync.Mutex
	byID map[string]*testKey
	role map[string]*testKey
}

type testKey struct {
	id   string
	priv ed25519.PrivateKey
}

func (k *testKey) KeyID() string            { return k.id }
func (k *testKey) Public() crypto.PublicKey { return k.priv.Public() }
func (k *testKey) Sign(_ context.Context, payload []byte) ([]byte, error) {
	return ed25519.Sign(k.priv, payload), nil
}

func newTestKey(t testing.TB) *testKey {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := metadata.KeyFromPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	id, err := key.ID()
	if err != nil {
		t.Fatal(err)
	}
	return &testKey{id, priv}
}

func (k *testKeys) add(t testing.TB, role string) *testKey {
	key := newTestKey(t)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.byID[key.id] = key
	k.role[role] = key
	return key
}

func (k *testKeys) find(_ context.Context, id string) (repo.Signer, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if key := k.byID[id]; key != nil {
		return key, nil
	}
	return nil, fmt.Errorf("key %.8s: %w", id, fs.ErrNotExist)
}

// without is the keyring less the key of a role.
func (k *testKeys) without(role string) repo.Keys {
	return func(ctx context.Context, id string) (repo.Signer, error) {
		if id == k.role[role].id {
			return nil, fmt.Errorf("key %.8s: %w", id, fs.ErrNotExist)
		}
		return k.find(ctx, id)
	}
}

func initConfig(t testing.TB, keys *testKeys, products ...string) repo.InitConfig {
	cfg := repo.InitConfig{Roles: make(map[string]repo.RoleConfig), Products: products}
	for _, role := range repo.Roles(rollout.DefaultRings, products) {
		cfg.Roles[role] = repo.RoleConfig{Keys: []crypto.PublicKey{keys.add(t, role).Public()}}
	}
	return cfg
}

// fixture is a repository with the product hello.
type fixture struct {
	ref   string // as --repo takes it
	dir   string // of one in a directory
	store store.Store
	keys  *testKeys
	repo  *repo.Repository
}

// onEachStore runs a test on a directory and on a real S3 service.
func onEachStore(t *testing.T, test func(t *testing.T, f *fixture)) {
	t.Run("directory", func(t *testing.T) { test(t, newFixture(t)) })
	t.Run("s3", func(t *testing.T) { test(t, newFixtureIn(t, s3server.Start(t).Ref("some/prefix"))) })
}

func newKeys() *testKeys {
	return &testKeys{byID: make(map[string]*testKey), role: make(map[string]*testKey)}
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	return newFixtureIn(t, t.TempDir())
}

func newFixtureIn(t testing.TB, ref string) *fixture {
	t.Helper()
	f := emptyFixture(t, ref)
	if _, err := f.repo.Init(t.Context(), initConfig(t, f.keys, "hello")); err != nil {
		t.Fatal(err)
	}
	return f
}

// emptyFixture is a place where Init has not been yet.
func emptyFixture(t testing.TB, ref string) *fixture {
	t.Helper()
	s, err := storeurl.Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{ref: ref, dir: ref, store: s, keys: newKeys()}
	f.repo = repo.Open(s, repo.Config{Keys: f.keys.find})
	return f
}

func newPatch(version string) *patch.Patch {
	return &patch.Patch{
		Format: patch.Format, ID: patch.MakeID("hello", version, "any"), Product: "hello", Version: version, Platform: "any",
		Kind: patch.KindFile, Released: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

func (f *fixture) add(t testing.TB, version string, content []byte) *repo.Published {
	t.Helper()
	pub, _, err := f.repo.AddPatch(t.Context(), newPatch(version), "hello.bin", bytes.NewReader(content), int64(len(content)), repo.AddOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pub
}

func (f *fixture) verify(t testing.TB) *repo.Report {
	t.Helper()
	report, err := repo.Verify(t.Context(), upstream.FromStore(f.store, f.store.String()), repo.VerifyConfig{})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func (f *fixture) mustVerify(t testing.TB) *repo.Report {
	t.Helper()
	report := f.verify(t)
	if err := report.Err(); err != nil {
		t.Fatalf("%v: %+v", err, report.Faults)
	}
	return report
}

// snapshot of everything in the store, to see that nothing changed.
func (f *fixture) files(t testing.TB) map[string][32]byte {
	t.Helper()
	all := make(map[string][32]byte)
	err := f.store.List(t.Context(), "", func(i store.Info) error {
		rc, _, err := f.store.Open(t.Context(), i.Name, 0)
		if err != nil {
			return err
		}
		defer rc.Close()
		h := sha256.New()
		_, err = io.Copy(h, rc)
		all[i.Name] = [32]byte(h.Sum(nil))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestWholeWay(t *testing.T) { onEachStore(t, wholeWay) }

func wholeWay(t *testing.T, f *fixture) {
	big := make([]byte, 12<<20+77) // more than a part of an upload
	rand.Read(big)
	pub := f.add(t, "1.0", big)
	if !pub.Blocks || pub.Length != int64(len(big)) || pub.SHA256 != fmt.Sprintf("%x", sha256.Sum256(big)) {
		t.Errorf("AddPatch = %+v", pub)
	}
	f.add(t, "1.1", nil) // an empty file is a file
	if _, err := f.repo.StartRollout(t.Context(), repo.Rollout{Product: "hello", Version: "1.0", Ring: "users"}, false); err != nil {
		t.Fatal(err)
	}
	halts, _, err := f.repo.AddHalt(t.Context(), repo.HaltScope{Product: "hello", Version: "1.0"}, "it bites", "anna", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.repo.LiftHalts(t.Context(), []string{halts[0].ID}, []string{"users"}, false); err != nil {
		t.Fatal(err)
	}
	list, err := f.repo.Patches(t.Context(), "")
	if err != nil || len(list) != 2 || list[0].Patch.Version != "1.0" || !slices.Equal(list[0].Rings, []string{"users"}) || len(list[1].Rings) != 0 {
		t.Errorf("Patches = %+v, %v", list, err)
	}
	status, err := f.repo.Halts(t.Context())
	if err != nil || len(status) != 1 || !slices.Equal(status[0].Lifted, []string{"users"}) || !slices.Equal(status[0].Patches, []string{"hello@1.0/any"}) {
		t.Errorf("Halts = %+v, %v", status, err)
	}
	report := f.mustVerify(t)
	if report.Patches != 2 || report.Bytes < int64(len(big)) {
		t.Errorf("Verify = %+v", report)
	}
	if _, err := f.repo.WithdrawPatch(t.Context(), "hello", "1.0", false); err != nil {
		t.Fatal(err)
	}
	if report = f.mustVerify(t); report.Patches != 1 || len(report.Warnings) != 1 {
		t.Errorf("Verify after withdraw = %+v", report)
	}
	change, err := f.repo.Renew(t.Context(), []string{"targets", "ring-users"}, false)
	if err != nil || len(change.Roles) != 4 {
		t.Errorf("Renew = %+v, %v", change, err)
	}
	f.mustVerify(t)
}

func TestRefusalsChangeNothing(t *testing.T) { onEachStore(t, refusalsChangeNothing) }

func refusalsChangeNothing(t *testing.T, f *fixture) {
	f.add(t, "1.0", []byte("one"))
	ctx := t.Context()
	with := func(keys repo.Keys) *repo.Repository { return repo.Open(f.store, repo.Config{Keys: keys}) }
	wrong := errors.New("wrong password")
	before := f.files(t)
	tests := []struct {
		name string
		do   func() error
		want error
	}{
		{"version exists", func() error {
			_, _, err := f.repo.AddPatch(ctx, newPatch("1.0"), "hello.bin", strings.NewReader("two"), 3, repo.AddOptions{})
			return err
		}, repo.ErrExists},
		{"version exists under another name", func() error {
			_, _, err := f.repo.AddPatch(ctx, newPatch("1.0"), "other.bin", strings.NewReader("two"), 3, repo.AddOptions{})
			return err
		}, repo.ErrExists},
		{"unknown product", func() error {
			p := newPatch("1.0")
			p.Product, p.ID = "none", "none@1.0/any"
			_, _, err := f.repo.AddPatch(ctx, p, "hello.bin", strings.NewReader("two"), 3, repo.AddOptions{})
			return err
		}, fs.ErrNotExist},
		{"path leaves its place", func() error {
			_, _, err := f.repo.AddPatch(ctx, newPatch("1.1"), "../hello.bin", strings.NewReader("two"), 3, repo.AddOptions{})
			return err
		}, layout.ErrBadName},
		{"bad patch", func() error {
			p := newPatch("1.1")
			p.Severity = "huge"
			_, _, err := f.repo.AddPatch(ctx, p, "hello.bin", strings.NewReader("two"), 3, repo.AddOptions{})
			return err
		}, patch.ErrBad},
		{"file breaks off", func() error {
			_, _, err := f.repo.AddPatch(ctx, newPatch("1.1"), "hello.bin", io.MultiReader(strings.NewReader("tw"), brokenReader{}), 3, repo.AddOptions{})
			return err
		}, errBroken},
		{"product key missing", func() error {
			_, _, err := with(f.keys.without("product-hello")).AddPatch(ctx, newPatch("1.1"), "hello.bin", strings.NewReader("two"), 3, repo.AddOptions{})
			return err
		}, repo.ErrKeys},
		{"timestamp key missing", func() error {
			_, _, err := with(f.keys.without("timestamp")).AddPatch(ctx, newPatch("1.1"), "hello.bin", strings.NewReader("two"), 3, repo.AddOptions{})
			return err
		}, repo.ErrKeys},
		{"no keys", func() error {
			_, _, err := repo.Open(f.store, repo.Config{}).AddPatch(ctx, newPatch("1.1"), "hello.bin", strings.NewReader("two"), 3, repo.AddOptions{})
			return err
		}, repo.ErrKeys},
		{"wrong password", func() error {
			keys := func(context.Context, string) (repo.Signer, error) { return nil, wrong }
			_, _, err := with(keys).AddPatch(ctx, newPatch("1.1"), "hello.bin", strings.NewReader("two"), 3, repo.AddOptions{})
			return err
		}, wrong},
		{"unknown ring", func() error {
			_, err := f.repo.StartRollout(ctx, repo.Rollout{Product: "hello", Version: "1.0", Ring: "moon"}, false)
			return err
		}, repo.ErrUnknownRing},
		{"unknown version", func() error {
			_, err := f.repo.StartRollout(ctx, repo.Rollout{Product: "hello", Version: "9", Ring: "users"}, false)
			return err
		}, fs.ErrNotExist},
		{"withdraw unknown", func() error { _, err := f.repo.WithdrawPatch(ctx, "hello", "9", false); return err }, fs.ErrNotExist},
		{"halt unknown product", func() error {
			_, _, err := f.repo.AddHalt(ctx, repo.HaltScope{Product: "none"}, "", "", false)
			return err
		}, fs.ErrNotExist},
		{"lift unknown halt", func() error { _, err := f.repo.LiftHalts(ctx, []string{"h1"}, nil, false); return err }, fs.ErrNotExist},
		{"product exists", func() error {
			_, err := f.repo.AddProduct(ctx, "hello", repo.RoleConfig{Keys: []crypto.PublicKey{newTestKey(t).Public()}}, false)
			return err
		}, repo.ErrExists},
		{"product without keys", func() error { _, err := f.repo.AddProduct(ctx, "new", repo.RoleConfig{}, false); return err }, repo.ErrKeys},
		{"product with a bad name", func() error { _, err := f.repo.AddProduct(ctx, "a/*", repo.RoleConfig{}, false); return err }, layout.ErrBadName},
		{"renew unknown role", func() error { _, err := f.repo.Renew(ctx, []string{"moon"}, false); return err }, fs.ErrNotExist},
		{"init again", func() error { _, err := f.repo.Init(ctx, initConfig(t, newKeys())); return err }, repo.ErrExists},
		{"cancelled", func() error {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			_, err := f.repo.Renew(ctx, nil, false)
			return err
		}, context.Canceled},
	}
	for _, tt := range tests {
		if err := tt.do(); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if after := f.files(t); !maps.Equal(before, after) {
			t.Fatalf("%s: it changed the store", tt.name)
		}
	}
}

var errBroken = errors.New("broken")

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errBroken }

func TestDryRunSaysWhatPublishDoes(t *testing.T) {
	f := newFixture(t)
	before := f.files(t)
	add := func(dry bool) *repo.Change {
		pub, change, err := f.repo.AddPatch(t.Context(), newPatch("1.0"), "hello.bin", strings.NewReader("one"), 3, repo.AddOptions{DryRun: dry})
		if err != nil {
			t.Fatal(err)
		}
		if pub.SHA256 != fmt.Sprintf("%x", sha256.Sum256([]byte("one"))) {
			t.Errorf("AddPatch = %+v", pub)
		}
		return change
	}
	dry := add(true)
	if !maps.Equal(before, f.files(t)) {
		t.Error("a dry run changed the store")
	}
	done := add(false)
	if d, r := dry.Roles[0], done.Roles[0]; d.Role != r.Role || d.To != r.To || !slices.Equal(d.Targets, r.Targets) {
		t.Errorf("dry run said %+v, and the publish did %+v", d, r)
	}
}

func TestNoRepository(t *testing.T) {
	s, err := dirstore.New(filepath.Join(t.TempDir(), "none"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := repo.Open(s, repo.Config{}).Patches(t.Context(), ""); !errors.Is(err, repo.ErrNoRepository) {
		t.Errorf("Patches = %v, want ErrNoRepository", err)
	}
}

func TestThresholdNeedsDifferentKeys(t *testing.T) {
	s, err := dirstore.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	keys := newKeys()
	cfg := initConfig(t, keys)
	second, third := keys.add(t, "spare"), newTestKey(t)
	ring := cfg.Roles["ring-servers"]
	ring.Keys = append(ring.Keys, second.Public(), third.Public())
	ring.Threshold = 2
	cfg.Roles["ring-servers"] = ring
	if _, err := repo.Open(s, repo.Config{Keys: keys.find}).Init(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	// One council member alone, whose key stands there once, cannot.
	one := repo.Open(s, repo.Config{Keys: keys.without("spare")})
	if _, err := one.Renew(t.Context(), []string{"ring-servers"}, false); !errors.Is(err, repo.ErrKeys) {
		t.Errorf("Renew with one of two = %v, want ErrKeys", err)
	}
	if _, err := repo.Open(s, repo.Config{Keys: keys.find}).Renew(t.Context(), []string{"ring-servers"}, false); err != nil {
		t.Errorf("Renew with two of three: %v", err)
	}
	cfg.Roles["ring-servers"] = repo.RoleConfig{Keys: []crypto.PublicKey{second.Public(), second.Public()}, Threshold: 2}
	s2, err := dirstore.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := repo.Open(s2, repo.Config{Keys: keys.find}).Init(t.Context(), cfg); !errors.Is(err, repo.ErrKeys) {
		t.Errorf("Init with one key twice = %v, want ErrKeys", err)
	}
}

func TestPublishOntoWhatDoesNotVerify(t *testing.T) {
	tests := []struct {
		name   string
		tamper func(t *testing.T, f *fixture)
	}{
		{"product role changed", func(t *testing.T, f *fixture) {
			replaceIn(t, f, "metadata/2.product-hello.json", "hello.bin", "jello.bin")
		}},
		{"snapshot changed", func(t *testing.T, f *fixture) {
			replaceIn(t, f, "metadata/2.snapshot.json", `"version":2`, `"version":3`)
		}},
		{"timestamp changed", func(t *testing.T, f *fixture) {
			replaceIn(t, f, "metadata/timestamp.json", `"version":2`, `"version":9`)
		}},
		{"timestamp is not JSON", func(t *testing.T, f *fixture) { replaceIn(t, f, "metadata/timestamp.json", "{", "<html>") }},
		{"hostile timestamp", func(t *testing.T, f *fixture) {
			replaceIn(t, f, "metadata/timestamp.json", `"snapshot.json":{"version":2}`, `"snapshot.json":null`)
		}},
		{"root changed", func(t *testing.T, f *fixture) {
			replaceIn(t, f, "metadata/1.root.json", `"threshold":1`, `"threshold":0`)
		}},
		{"product role removed", func(t *testing.T, f *fixture) {
			if err := os.Remove(filepath.Join(f.dir, "metadata/2.product-hello.json")); err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			f.add(t, "1.0", []byte("one"))
			tt.tamper(t, f)
			before := f.files(t)
			_, _, err := f.repo.AddPatch(t.Context(), newPatch("1.1"), "hello.bin", strings.NewReader("two"), 3, repo.AddOptions{})
			if !errors.Is(err, repo.ErrNotTrusted) {
				t.Errorf("AddPatch = %v, want ErrNotTrusted", err)
			}
			if !maps.Equal(before, f.files(t)) {
				t.Error("it changed the store")
			}
			if report := f.verify(t); report.Err() == nil {
				t.Error("Verify found no fault")
			}
		})
	}
}

func replaceIn(t *testing.T, f *fixture, name, old, new string) {
	t.Helper()
	path := filepath.Join(f.dir, name)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Replace(data, []byte(old), []byte(new), 1)
	if bytes.Equal(changed, data) {
		t.Fatalf("%s does not hold %s: %s", name, old, data)
	}
	if err := os.WriteFile(path, changed, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyNamesEachFault(t *testing.T) {
	f := newFixture(t)
	big := bytes.Repeat([]byte("0123456789abcdef"), 400_000)
	one, two, three := f.add(t, "1.0", big), f.add(t, "1.1", []byte("two")), f.add(t, "1.2", []byte("three"))
	f.mustVerify(t)
	file := func(p *repo.Published) string { return filepath.Join(f.dir, layout.TargetObject(p.Path, p.SHA256)) }
	big[5] ^= 1
	if err := errors.Join(
		os.WriteFile(file(one), big, 0o644),
		os.Remove(file(two)),
		os.WriteFile(file(three), []byte("three!"), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	report := f.verify(t)
	if len(report.Faults) != 3 || !errors.Is(report.Err(), repo.ErrFaults) {
		t.Fatalf("Verify = %+v", report.Faults)
	}
	for i, want := range []string{"is not what", "missing", "has 6 bytes"} {
		if !strings.Contains(report.Faults[i].What, want) {
			t.Errorf("fault %d is %q, want %q", i, report.Faults[i].What, want)
		}
	}
}

func TestExpiredRepositoryIsRenewed(t *testing.T) {
	f := newFixture(t)
	later := time.Now().Add(40 * 24 * time.Hour) // timestamp and snapshot have expired
	r := repo.Open(f.store, repo.Config{Keys: f.keys.find, Now: func() time.Time { return later }})
	at := repo.VerifyConfig{Now: func() time.Time { return later }}
	report, err := repo.Verify(t.Context(), upstream.FromStore(f.store, f.store.String()), at)
	if err != nil || !errors.Is(report.Err(), repo.ErrExpired) {
		t.Fatalf("Verify = %v, %v; want ErrExpired", report.Err(), err)
	}
	if _, err := r.Renew(t.Context(), nil, false); err != nil {
		t.Fatal(err)
	}
	report, err = repo.Verify(t.Context(), upstream.FromStore(f.store, f.store.String()), at)
	if err != nil || report.Err() != nil {
		t.Fatalf("Verify after Renew = %v, %v", report.Err(), err)
	}
	// An offline role that has expired stops every publish but its own renewal.
	later = time.Now().Add(366 * 24 * time.Hour)
	if _, err := r.Renew(t.Context(), nil, false); !errors.Is(err, repo.ErrExpired) {
		t.Errorf("Renew with expired root = %v, want ErrExpired", err)
	}
}

func TestManyPublishers(t *testing.T) { onEachStore(t, manyPublishers) }

// manyPublishers has eight publish at once on one repository, each as a process
// of its own would: with a store and a Repository of its own.
func manyPublishers(t *testing.T, f *fixture) {
	const publishers, each = 8, 3
	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() {
			own, err := storeurl.Open(context.Background(), f.ref)
			if err != nil {
				t.Error(err)
				return
			}
			r := repo.Open(own, repo.Config{Keys: f.keys.find})
			for i := range each {
				content := fmt.Sprintf("publisher %d, patch %d", p, i)
				_, _, err := r.AddPatch(context.Background(), newPatch(fmt.Sprintf("%d.%d", p, i)), "hello.bin", strings.NewReader(content), int64(len(content)), repo.AddOptions{})
				if err != nil {
					t.Errorf("publisher %d: %v", p, err)
					return
				}
			}
		})
	}
	stop := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		versionsOnlyGrow(t, f, stop)
	}()
	wg.Wait()
	close(stop)
	<-watched
	list, err := f.repo.Patches(t.Context(), "hello")
	if err != nil || len(list) != publishers*each {
		t.Fatalf("%d patches are published, want %d (%v)", len(list), publishers*each, err)
	}
	f.mustVerify(t)
}

// versionsOnlyGrow is a client that refreshes all the time.
func versionsOnlyGrow(t *testing.T, f *fixture, stop chan struct{}) {
	root, err := f.repo.Root(t.Context())
	if err != nil {
		t.Error(err)
		return
	}
	c, err := tuf.Open(tuf.Config{Root: root, Fetcher: upstream.FromStore(f.store, "")})
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	last := int64(0)
	for {
		if err := c.Refresh(t.Context()); err != nil {
			t.Errorf("a client in between: %v", err)
			return
		}
		if v := c.Status().Roles["timestamp"].Version; v < last {
			t.Errorf("timestamp %d after %d", v, last)
		} else {
			last = v
		}
		select {
		case <-stop:
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func keysOf(key *testKey) []crypto.PublicKey { return []crypto.PublicKey{key.Public()} }

func TestApprovalCoversRecipes(t *testing.T) {
	f := newFixture(t)
	f.add(t, "1.0", []byte("one"))
	start := func() error {
		_, err := f.repo.StartRollout(t.Context(), repo.Rollout{Product: "hello", Version: "1.0", Ring: "users"}, false)
		return err
	}
	if err := start(); err != nil {
		t.Fatal(err)
	}
	if err := start(); !errors.Is(err, repo.ErrExists) {
		t.Errorf("StartRollout again = %v, want ErrExists", err)
	}
	// The same bytes with another recipe are another thing.
	if _, err := f.repo.WithdrawPatch(t.Context(), "hello", "1.0", false); err != nil {
		t.Fatal(err)
	}
	p := newPatch("1.0")
	p.Verify = &patch.Recipe{Argv: []string{"rm", "-rf", "{root}"}}
	if _, _, err := f.repo.AddPatch(t.Context(), p, "hello.bin", strings.NewReader("one"), 3, repo.AddOptions{}); err != nil {
		t.Fatal(err)
	}
	list, err := f.repo.Patches(t.Context(), "hello")
	if err != nil || len(list) != 1 || len(list[0].Rings) != 0 {
		t.Errorf("Patches = %+v, %v; want no ring to approve it", list, err)
	}
	if report := f.mustVerify(t); len(report.Warnings) != 1 || !strings.Contains(report.Warnings[0].What, "other recipes") {
		t.Errorf("Verify warns of %+v", report.Warnings)
	}
	if err := start(); err != nil {
		t.Errorf("StartRollout of the other recipe: %v", err)
	}
	f.mustVerify(t)
}
