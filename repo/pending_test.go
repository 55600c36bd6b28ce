package repo_test

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
	"github.com/patchkeep/patchkeep/repo/store"
	"github.com/patchkeep/patchkeep/repo/store/storetest/s3server"
)

// council is a repository whose ring of servers takes two of three officers.
type council struct {
	*fixture
	officers []*testKey // anna, ben, carl
}

func newCouncil(t testing.TB, ref string) *council {
	t.Helper()
	f := emptyFixture(t, ref)
	cfg := initConfig(t, f.keys, "hello")
	c := &council{fixture: f}
	ring := repo.RoleConfig{Threshold: 2}
	for _, name := range []string{"anna", "ben", "carl"} {
		key := f.keys.add(t, name)
		c.officers = append(c.officers, key)
		ring.Keys = append(ring.Keys, key.Public())
	}
	cfg.Roles["ring-servers"] = ring
	if _, err := f.repo.Init(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	f.add(t, "1.0", []byte("one"))
	return c
}

// as is the repository as someone opens it who has these keys only.
func (c *council) as(keys ...*testKey) *repo.Repository { return c.waiting(repo.WaitIfNeeded, keys...) }

func (c *council) waiting(w repo.Waiting, keys ...*testKey) *repo.Repository {
	return repo.Open(c.store, repo.Config{Pending: w, By: "someone", Keys: only(keys...)})
}

func only(keys ...*testKey) repo.Keys {
	return func(_ context.Context, id string) (repo.Signer, error) {
		for _, k := range keys {
			if k.id == id {
				return k, nil
			}
		}
		return nil, fmt.Errorf("key %.8s: %w", id, fs.ErrNotExist)
	}
}

// online is who has the keys of snapshot and timestamp.
func (c *council) online() *repo.Repository {
	return c.as(c.keys.role["snapshot"], c.keys.role["timestamp"])
}

// start has a key holder approve a version for the servers.
func (c *council) start(t testing.TB, version string, keys ...*testKey) *repo.Pending {
	t.Helper()
	change, err := c.as(keys...).StartRollout(t.Context(), repo.Rollout{Product: "hello", Version: version, Ring: "servers"}, false)
	if err != nil {
		t.Fatal(err)
	}
	if change.Pending == nil || change.Timestamp != 0 {
		t.Fatalf("StartRollout did not wait: %+v", change)
	}
	return change.Pending
}

func (c *council) sign(t testing.TB, id string, key *testKey) {
	t.Helper()
	r := c.as(key)
	p, err := r.Pending(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if added, err := r.SignPending(t.Context(), p); err != nil || len(added) != 1 || added[0].KeyID != key.id {
		t.Fatalf("SignPending = %+v, %v", added, err)
	}
}

func (c *council) get(t testing.TB, id string) *repo.Pending {
	t.Helper()
	p, err := c.as().Pending(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (c *council) approved(t testing.TB, version string) bool {
	t.Helper()
	list, err := c.repo.PatchVersion(t.Context(), "hello", version)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Contains(list[0].Rings, "servers")
}

func readStore(t testing.TB, s store.Store, name string) ([]byte, error) {
	t.Helper()
	rc, _, err := s.Open(t.Context(), name, 0)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

func onEachCouncil(t *testing.T, test func(t *testing.T, c *council)) {
	t.Run("directory", func(t *testing.T) { test(t, newCouncil(t, t.TempDir())) })
	t.Run("s3", func(t *testing.T) { test(t, newCouncil(t, s3server.Start(t).Ref("some/prefix"))) })
}

func TestChangeWaitsForSignatures(t *testing.T) { onEachCouncil(t, changeWaits) }

func changeWaits(t *testing.T, c *council) {
	before := c.files(t)
	p := c.start(t, "1.0", c.officers[0])
	if p.State != repo.PendingWaiting || p.Roles[0].Missing != 1 || !slices.Equal(p.Roles[0].Signed, []string{c.officers[0].id}) {
		t.Errorf("staged: %+v", p)
	}
	for name := range c.files(t) {
		if _, had := before[name]; !had && !strings.HasPrefix(name, "pending/") && !strings.HasPrefix(name, "targets/rings/servers/") {
			t.Errorf("staging wrote %s", name)
		}
	}
	c.mustVerify(t)
	if _, err := c.online().PublishPending(t.Context(), p.ID, false); !errors.Is(err, repo.ErrKeys) {
		t.Errorf("PublishPending with one signature = %v, want ErrKeys", err)
	}
	c.sign(t, p.ID, c.officers[2])
	if got := c.get(t, p.ID); got.State != repo.PendingReady || !got.Complete() {
		t.Errorf("after the second signature: %+v", got)
	}
	if _, err := c.as(c.officers...).PublishPending(t.Context(), p.ID, false); !errors.Is(err, repo.ErrKeys) {
		t.Errorf("PublishPending without online keys = %v, want ErrKeys", err)
	}
	if c.approved(t, "1.0") {
		t.Fatal("it is published already")
	}
	change, err := c.online().PublishPending(t.Context(), p.ID, false)
	if err != nil || change.Timestamp == 0 {
		t.Fatalf("PublishPending = %+v, %v", change, err)
	}
	if !c.approved(t, "1.0") {
		t.Error("it is not published")
	}
	c.mustVerify(t)
	if got := c.get(t, p.ID); got.State != repo.PendingPublished || got.Closed == nil || got.Closed.Outcome != "published" {
		t.Errorf("after the publish: %+v", got)
	}
	if _, err := c.online().PublishPending(t.Context(), p.ID, false); !errors.Is(err, repo.ErrExists) {
		t.Errorf("PublishPending again = %v, want ErrExists", err)
	}
	// Others go on on top of it.
	c.add(t, "1.1", []byte("two"))
	if got := c.get(t, p.ID); got.State != repo.PendingPublished {
		t.Errorf("later: %+v", got)
	}
}

// TestWhatWaits is about which changes wait, and which are refused as ever.
func TestWhatWaits(t *testing.T) {
	c := newCouncil(t, t.TempDir())
	ctx := t.Context()
	start := func(r *repo.Repository) (*repo.Change, error) {
		return r.StartRollout(ctx, repo.Rollout{Product: "hello", Version: "1.0", Ring: "servers"}, false)
	}
	everyone := append(slices.Clone(c.officers), c.keys.role["snapshot"], c.keys.role["timestamp"])
	wrong := errors.New("wrong password")
	before := c.files(t)
	for name, r := range map[string]*repo.Repository{
		"one of two, and no wish to wait":          c.waiting(repo.WaitNever, c.officers[0]),
		"none of the role's keys":                  c.online(),
		"no keys at all":                           c.as(),
		"the role's keys, but not the online ones": c.as(c.officers...),
	} {
		if change, err := start(r); !errors.Is(err, repo.ErrKeys) {
			t.Errorf("%s: %+v, %v; want ErrKeys", name, change, err)
		}
	}
	broken := repo.Open(c.store, repo.Config{Pending: repo.WaitIfNeeded, Keys: func(context.Context, string) (repo.Signer, error) { return nil, wrong }})
	if _, err := start(broken); !errors.Is(err, wrong) {
		t.Errorf("a wrong password: %v", err)
	}
	for name := range c.files(t) {
		if _, had := before[name]; !had && strings.HasPrefix(name, "pending/") {
			t.Errorf("a refusal left %s", name)
		}
	}
	if change, err := c.waiting(repo.WaitAlways, everyone...).StartRollout(ctx, repo.Rollout{Product: "hello", Version: "1.0", Ring: "users"}, true); err != nil || change.Pending != nil {
		t.Errorf("a dry run: %+v, %v", change, err)
	}
	change, err := start(c.waiting(repo.WaitAlways, everyone...))
	if err != nil || change.Pending == nil || change.Pending.State != repo.PendingReady {
		t.Errorf("all keys, and the wish to wait: %+v, %v", change, err)
	}
	change, err = c.waiting(repo.WaitAlways).StartRollout(ctx, repo.Rollout{Product: "hello", Version: "1.0", Ring: "users"}, false)
	if err != nil || change.Pending == nil || change.Pending.Roles[0].Missing != 1 {
		t.Errorf("no keys, and the wish to wait: %+v, %v", change, err)
	}
	// A patch is uploaded before the change waits; a new product's role is
	// signed by its own keys, as the waiting targets names them.
	p := newPatch("1.0")
	p.Product, p.ID = "tool", "tool@1.0/any"
	own := newTestKey(t)
	_, change, err = c.waiting(repo.WaitAlways, own).AddPatch(ctx, p, "tool.bin", strings.NewReader("tool"), 4, repo.AddOptions{
		NewProduct: func(string) (repo.RoleConfig, error) { return repo.RoleConfig{Keys: keysOf(own)}, nil },
	})
	if err != nil || change.Pending == nil || len(change.Pending.Roles) != 2 {
		t.Fatalf("a new product: %+v, %v", change, err)
	}
	c.sign(t, change.Pending.ID, c.keys.role["targets"])
	if _, err := c.online().PublishPending(ctx, change.Pending.ID, false); err != nil {
		t.Fatal(err)
	}
	if list, err := c.repo.Patches(ctx, "tool"); err != nil || len(list) != 1 {
		t.Errorf("Patches = %+v, %v", list, err)
	}
	c.mustVerify(t)
	if change, err := c.repo.Renew(ctx, nil, false); err != nil || change.Pending != nil {
		t.Errorf("Renew of the online roles: %+v, %v", change, err)
	}
}

// TestRefusedSignatures puts signatures into the store that must not count.
func TestRefusedSignatures(t *testing.T) {
	c := newCouncil(t, t.TempDir())
	c.add(t, "1.1", []byte("two"))
	p, other := c.start(t, "1.0", c.officers[0]), c.start(t, "1.1", c.officers[1])
	anna, ben := c.officers[0], c.officers[1]
	stranger, halt := newTestKey(t), c.keys.role["halt"]
	object := func(id string, key *testKey) string { return layout.PendingSignature(id, "ring-servers", key.id) }
	read := func(name string) []byte {
		data, err := readStore(t, c.store, name)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	file := func(key *testKey, sig []byte) []byte {
		data, err := json.Marshal(map[string]any{"format": 1, "keyid": key.id, "sig": fmt.Sprintf("%x", sig)})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	signature := func(key *testKey, payload string) []byte {
		sig, _ := key.Sign(t.Context(), []byte(payload))
		return sig
	}
	tests := []struct {
		name string
		at   string
		data []byte
	}{
		{"over other bytes", object(p.ID, ben), read(object(other.ID, ben))},
		{"the first one again, under another name", object(p.ID, ben), read(object(p.ID, anna))},
		{"by a stranger", object(p.ID, stranger), file(stranger, signature(stranger, "x"))},
		{"by a key of another role", object(p.ID, halt), file(halt, signature(halt, "x"))},
		{"empty", object(p.ID, ben), nil},
		{"no signature in it", object(p.ID, ben), file(ben, nil)},
		{"no JSON", object(p.ID, ben), []byte("<html>")},
		{"huge", object(p.ID, ben), append(file(ben, signature(ben, "x")), bytes.Repeat([]byte(" "), 1<<20)...)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := c.store.Create(t.Context(), tt.at, bytes.NewReader(tt.data), int64(len(tt.data)), store.Options{}); err != nil {
				t.Fatal(err)
			}
			defer c.store.Delete(context.WithoutCancel(t.Context()), tt.at)
			got := c.get(t, p.ID)
			if got.State != repo.PendingWaiting || !slices.Equal(got.Roles[0].Signed, []string{anna.id}) {
				t.Errorf("it counts: %+v", got)
			}
			if _, err := c.online().PublishPending(t.Context(), p.ID, false); !errors.Is(err, repo.ErrKeys) {
				t.Errorf("PublishPending = %v, want ErrKeys", err)
			}
		})
	}
	before := c.files(t)
	for name, tt := range map[string]struct {
		key  *testKey
		want error
	}{
		"a stranger":                        {stranger, repo.ErrKeys},
		"a key of another role":             {halt, repo.ErrKeys},
		"one who has signed":                {anna, repo.ErrExists},
		"a key that signs with another one": {&testKey{ben.id, stranger.priv}, repo.ErrNotTrusted},
	} {
		if _, err := c.as(tt.key).SignPending(t.Context(), c.get(t, p.ID)); !errors.Is(err, tt.want) {
			t.Errorf("%s signs: %v, want %v", name, err, tt.want)
		}
	}
	if !maps.Equal(before, c.files(t)) {
		t.Error("a refusal changed the store")
	}
}

// TestTamperedChange changes what waits behind the signers' backs.
func TestTamperedChange(t *testing.T) {
	for _, tt := range []struct {
		name   string
		tamper func(t *testing.T, c *council, id string)
	}{
		{"another sha256 in the plan's entry", func(t *testing.T, c *council, id string) {
			replaceIn(t, c.fixture, layout.PendingRole(id, "ring-servers"), `"sha256":"`, `"sha256":"0`)
		}},
		{"metadata with a member more", func(t *testing.T, c *council, id string) {
			replaceIn(t, c.fixture, layout.PendingRole(id, "ring-servers"), `{`, `{"x":1,`)
		}},
		{"metadata with white space", func(t *testing.T, c *council, id string) {
			replaceIn(t, c.fixture, layout.PendingRole(id, "ring-servers"), `{`, `{ `)
		}},
		{"a target that is null", func(t *testing.T, c *council, id string) {
			replaceIn(t, c.fixture, layout.PendingRole(id, "ring-servers"), `"targets":{`, `"targets":{"a":null,`)
		}},
		{"another threshold", func(t *testing.T, c *council, id string) {
			replaceIn(t, c.fixture, layout.PendingChange(id), `"threshold":2`, `"threshold":1`)
		}},
		{"another role", func(t *testing.T, c *council, id string) {
			replaceIn(t, c.fixture, layout.PendingChange(id), `ring-servers`, `ring-users`)
		}},
		{"a role out of its place", func(t *testing.T, c *council, id string) {
			replaceIn(t, c.fixture, layout.PendingChange(id), `ring-servers`, `../../x`)
		}},
		{"no JSON", func(t *testing.T, c *council, id string) {
			replaceIn(t, c.fixture, layout.PendingChange(id), `{`, `[`)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCouncil(t, t.TempDir())
			p := c.start(t, "1.0", c.officers[0])
			tt.tamper(t, c, p.ID)
			if _, err := c.as().Pending(t.Context(), p.ID); !errors.Is(err, repo.ErrBadPending) {
				t.Errorf("Pending = %v, want ErrBadPending", err)
			}
			if list, err := c.as().Pendings(t.Context(), false); err != nil || len(list) != 1 || list[0].State != repo.PendingBad {
				t.Errorf("Pendings = %+v, %v; want one that is bad", list, err)
			}
			// Who has read it before signs what was read, and nothing else.
			if _, err := c.as(c.officers[1]).SignPending(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			if _, err := c.online().PublishPending(t.Context(), p.ID, false); !errors.Is(err, repo.ErrBadPending) {
				t.Errorf("PublishPending = %v, want ErrBadPending", err)
			}
			if _, err := c.as().AbandonPending(t.Context(), p.ID, "tampered with"); err != nil {
				t.Errorf("AbandonPending = %v", err)
			}
			c.mustVerify(t)
		})
	}
}

// TestHostileChange is about changes that are well formed, made by someone who
// wants them signed unread.
func TestHostileChange(t *testing.T) {
	const plan = "rings/servers/plan.json"
	for _, tt := range []struct {
		name  string
		alter func(s *metadata.TargetsType)
		says  string // "": it is refused
	}{
		{"far version", func(s *metadata.TargetsType) { s.Version += 5000 }, ""},
		{"far expiry", func(s *metadata.TargetsType) { s.Expires = s.Expires.AddDate(50, 0, 0) }, "ATTENTION: role ring-servers would be valid until 207"},
		{"hidden field of a target", func(s *metadata.TargetsType) {
			s.Targets[plan].UnrecognizedFields = map[string]any{"x": "y"}
		}, `entry of rings/servers/plan.json
    x = "y"`},
		{"hidden field of the role", func(s *metadata.TargetsType) { s.UnrecognizedFields["x"] = map[string]any{"y": 1} }, "ring-servers: field x.y = 1"},
		{"other specification", func(s *metadata.TargetsType) { s.SpecVersion = "1.99" }, `ring-servers: field spec_version = "1.99"`},
		{"delegation of its own", func(s *metadata.TargetsType) {
			s.Delegations = &metadata.Delegations{Keys: map[string]*metadata.Key{}, Roles: []metadata.DelegatedRole{{Name: "evil", Threshold: 1, Paths: []string{"*"}}}}
		}, "ring-servers: new role evil: 1 of 0 signatures, speaks for *"},
		{"key under the name of another", func(s *metadata.TargetsType) {
			key, err := metadata.KeyFromPublicKey(newTestKey(t).Public())
			if err != nil {
				t.Fatal(err)
			}
			s.Delegations = &metadata.Delegations{Keys: map[string]*metadata.Key{strings.Repeat("ab", 32): key}}
		}, "ATTENTION: ring-servers declares under the name abab abab"},
		{"key of no role", func(s *metadata.TargetsType) {
			own := newTestKey(t)
			key, err := metadata.KeyFromPublicKey(own.Public())
			if err != nil {
				t.Fatal(err)
			}
			s.Delegations = &metadata.Delegations{Keys: map[string]*metadata.Key{own.id: key}}
		}, "which signs for no role"},
		{"document that is nowhere", func(s *metadata.TargetsType) {
			s.Targets["rings/servers/changes/x.json"] = &metadata.TargetFiles{Length: 7, Hashes: metadata.Hashes{"sha256": make([]byte, 32)}}
		}, ""},
		{"plan that is nowhere", func(s *metadata.TargetsType) { s.Targets[plan].Hashes["sha256"][0] ^= 1 }, ""},
		{"plan taken away", func(s *metadata.TargetsType) { delete(s.Targets, plan) }, "ring servers: REMOVES rings/servers/plan.json"},
		{"large file", func(s *metadata.TargetsType) {
			s.Targets["rings/servers/big"] = &metadata.TargetFiles{Length: 5 << 20, Hashes: metadata.Hashes{"sha256": make([]byte, 32)}}
		}, "ring-servers: adds rings/servers/big, 5242880 bytes, sha256 0000"},
		{"path that steers the terminal", func(s *metadata.TargetsType) {
			s.Targets["rings/servers/a\u202eb"] = &metadata.TargetFiles{Length: 5 << 20, Hashes: metadata.Hashes{"sha256": make([]byte, 32)}}
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCouncil(t, t.TempDir())
			id, err := c.as().StageAltered(t.Context(), c.start(t, "1.0", c.officers[0]).ID, tt.alter)
			if err != nil {
				t.Fatal(err)
			}
			p, err := c.as().Pending(t.Context(), id)
			if tt.says == "" {
				if !errors.Is(err, repo.ErrBadPending) {
					t.Errorf("Pending = %v, want ErrBadPending", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if words := strings.Join(append(p.Roles[0].Words, p.Notes...), "\n"); !strings.Contains(words, tt.says) {
				t.Errorf("it does not say %q:\n%s", tt.says, words)
			}
			c.mustVerify(t)
		})
	}
}

func TestTwoSignersAtOnce(t *testing.T) { onEachCouncil(t, twoSignersAtOnce) }

func twoSignersAtOnce(t *testing.T, c *council) {
	change, err := c.waiting(repo.WaitAlways).StartRollout(t.Context(), repo.Rollout{Product: "hello", Version: "1.0", Ring: "servers"}, false)
	if err != nil {
		t.Fatal(err)
	}
	id := change.Pending.ID
	signers := append(slices.Clone(c.officers), c.officers[0]) // and one twice
	pages := make([]*repo.Pending, len(signers))
	for i := range pages {
		pages[i] = c.get(t, id)
	}
	var wg sync.WaitGroup
	for i, key := range signers {
		p := pages[i]
		wg.Go(func() {
			if _, err := c.as(key).SignPending(context.Background(), p); err != nil {
				t.Errorf("key %.8s: %v", key.id, err)
			}
		})
	}
	wg.Wait()
	if p := c.get(t, id); len(p.Roles[0].Signed) != 3 || p.State != repo.PendingReady {
		t.Fatalf("after three at once: %+v", p.Roles)
	}
	// And two who publish at once: one does, the other finds it done.
	var done, found int
	var mu sync.Mutex // guards done and found
	for range 2 {
		wg.Go(func() {
			_, err := c.online().PublishPending(context.Background(), id, false)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				done++
			case errors.Is(err, repo.ErrExists):
				found++
			default:
				t.Errorf("PublishPending: %v", err)
			}
		})
	}
	wg.Wait()
	if done != 1 || found != 1 || !c.approved(t, "1.0") {
		t.Errorf("%d published, %d found it published", done, found)
	}
	c.mustVerify(t)
}

// TestPublishOnTopOfOthers publishes a waiting change after others have
// published other roles, and while they do.
func TestPublishOnTopOfOthers(t *testing.T) {
	c := newCouncil(t, t.TempDir())
	p := c.start(t, "1.0", c.officers[0])
	c.add(t, "1.1", []byte("two"))
	if _, err := c.repo.StartRollout(t.Context(), repo.Rollout{Product: "hello", Version: "1.1", Ring: "users"}, false); err != nil {
		t.Fatal(err)
	}
	c.sign(t, p.ID, c.officers[1])
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 5 {
			if _, _, err := c.repo.AddPatch(context.Background(), newPatch(fmt.Sprintf("2.%d", i)), "hello.bin", strings.NewReader("x"), 1, repo.AddOptions{}); err != nil {
				t.Error(err)
			}
		}
	})
	if _, err := c.online().PublishPending(t.Context(), p.ID, false); err != nil {
		t.Error(err)
	}
	wg.Wait()
	list, err := c.repo.Patches(t.Context(), "hello")
	if err != nil || len(list) != 7 || !c.approved(t, "1.0") {
		t.Errorf("Patches = %d, %v", len(list), err)
	}
	c.mustVerify(t)
}

func TestStaleChange(t *testing.T) {
	c := newCouncil(t, t.TempDir())
	c.add(t, "1.1", []byte("two"))
	p, other := c.start(t, "1.0", c.officers[0]), c.start(t, "1.1", c.officers[1])
	c.sign(t, p.ID, c.officers[1])
	c.sign(t, other.ID, c.officers[2])
	if _, err := c.online().PublishPending(t.Context(), other.ID, false); err != nil {
		t.Fatal(err)
	}
	got := c.get(t, p.ID)
	if got.State != repo.PendingStale || len(got.Why) != 1 || !strings.Contains(got.Why[0], "was published in version 2 meanwhile") {
		t.Errorf("after another change of the role: %+v", got)
	}
	before := c.files(t)
	if _, err := c.online().PublishPending(t.Context(), p.ID, false); !errors.Is(err, repo.ErrStale) {
		t.Errorf("PublishPending = %v, want ErrStale", err)
	}
	if _, err := c.as(c.officers[2]).SignPending(t.Context(), got); !errors.Is(err, repo.ErrStale) {
		t.Errorf("SignPending = %v, want ErrStale", err)
	}
	if !maps.Equal(before, c.files(t)) {
		t.Error("a refusal changed the store")
	}
}

func TestAbandon(t *testing.T) {
	c := newCouncil(t, t.TempDir())
	p := c.start(t, "1.0", c.officers[0])
	if _, err := c.as().AbandonPending(t.Context(), p.ID, "not now"); err != nil {
		t.Fatal(err)
	}
	got := c.get(t, p.ID)
	if got.State != repo.PendingAbandoned || !strings.Contains(got.Why[0], "someone: not now") {
		t.Errorf("Pending = %+v", got)
	}
	if list, err := c.as().Pendings(t.Context(), false); err != nil || len(list) != 0 {
		t.Errorf("Pendings = %+v, %v", list, err)
	}
	if list, err := c.as().Pendings(t.Context(), true); err != nil || len(list) != 1 {
		t.Errorf("all Pendings = %+v, %v", list, err)
	}
	for what, do := range map[string]func() error{
		"sign":    func() error { _, err := c.as(c.officers[1]).SignPending(t.Context(), got); return err },
		"publish": func() error { _, err := c.online().PublishPending(t.Context(), p.ID, false); return err },
		"abandon": func() error { _, err := c.as().AbandonPending(t.Context(), p.ID, ""); return err },
	} {
		if err := do(); !errors.Is(err, repo.ErrClosed) {
			t.Errorf("%s = %v, want ErrClosed", what, err)
		}
	}
}

// TestWords is about what a signer is told.
func TestWords(t *testing.T) {
	c := newCouncil(t, t.TempDir())
	steps, err := rollout.ParseSteps("10%@0h,100%@24h")
	if err != nil {
		t.Fatal(err)
	}
	r := c.waiting(repo.WaitAlways)
	halts, _, err := c.repo.AddHalt(t.Context(), repo.HaltScope{Product: "hello"}, "it bites", "anna", false)
	if err != nil {
		t.Fatal(err)
	}
	own := newTestKey(t)
	for _, tt := range []struct {
		name string
		do   func() (*repo.Change, error)
		want []string
	}{
		{"rollout", func() (*repo.Change, error) {
			return r.StartRollout(t.Context(), repo.Rollout{Product: "hello", Version: "1.0", Ring: "servers", Steps: steps}, false)
		}, []string{"ring servers: approves hello@1.0/any (hello.bin)", "10 % after 0s, 100 % after 24h0m0s", "product hello signed it: 3 bytes, kind file"}},
		{"lift", func() (*repo.Change, error) {
			return r.LiftHalts(t.Context(), []string{halts[0].ID}, []string{"servers"}, false)
		}, []string{"ring servers: goes on in spite of halt " + halts[0].ID}},
		{"halt", func() (*repo.Change, error) {
			_, change, err := r.AddHalt(t.Context(), repo.HaltScope{}, "all\x1b[2J of it\u202e", "ben", false)
			return change, err
		}, []string{"stops everything, since", "by ben: all\ufffd[2J of it\ufffd"}},
		{"patch", func() (*repo.Change, error) {
			p := newPatch("9")
			p.Kind = "script"
			p.Install = &patch.Recipe{Argv: []string{"sh", "{file}", "--now"}}
			_, change, err := r.AddPatch(t.Context(), p, "hello.sh", strings.NewReader("exit 0"), 6, repo.AddOptions{})
			return change, err
		}, []string{"product-hello: adds patch hello@9/any (hello.sh), 6 bytes, sha256 ", `custom.patchkeep.install.argv = ["sh","{file}","--now"]`}},
		{"withdraw", func() (*repo.Change, error) {
			return r.WithdrawPatch(t.Context(), "hello", "1.0", false)
		}, []string{"product-hello: removes patch hello@1.0/any (hello.bin), 3 bytes"}},
		{"product", func() (*repo.Change, error) {
			return r.AddProduct(t.Context(), "tool", repo.RoleConfig{Keys: []crypto.PublicKey{own.Public()}}, false)
		}, []string{"targets: new role product-tool: 1 of 1 signatures, speaks for patches/tool/*/*/*", "key " + own.id[:4] + " " + own.id[4:8]}},
		{"renewal", func() (*repo.Change, error) { return r.Renew(t.Context(), []string{"ring-users"}, false) }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			change, err := tt.do()
			if err != nil {
				t.Fatal(err)
			}
			var all []string
			for _, role := range change.Pending.Roles {
				all = append(all, role.Words...)
			}
			words := strings.Join(all, "\n")
			for _, want := range tt.want {
				if !strings.Contains(words, want) {
					t.Errorf("it does not say %q:\n%s", want, words)
				}
			}
			if tt.want == nil && len(all) > 0 {
				t.Errorf("it says %q", all)
			}
			if exact, err := change.Pending.Exact(); err != nil || len(exact) != len(change.Pending.Roles) {
				t.Errorf("Exact = %v, %v", exact, err)
			}
		})
	}
}
