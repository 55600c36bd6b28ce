package tuf_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// An attack changes a repository that a client has refreshed from, at version
// 2 of everything. The client must refuse it and go on with what it had.
func TestAttacks(t *testing.T) {
	thief := func(r *tuftest.Repo, role string) { r.Signers[role] = []*tuftest.Key{tuftest.NewKey(tuftest.Ed25519)} }
	past := time.Now().UTC().Truncate(time.Second).AddDate(0, 0, -1)
	tests := []struct {
		name   string
		attack func(r *tuftest.Repo)
		want   error
		text   string // in the error
		after  string // versions, if not all 2
	}{
		{
			"rollback of the timestamp", func(r *tuftest.Repo) { r.SetLatest("timestamp", r.Published["timestamp"][0]) },
			tuf.ErrNotTrusted, "version 1 is older than version 2", "",
		},
		{"rollback of the snapshot", func(r *tuftest.Repo) {
			r.Timestamp.Signed.Meta["snapshot.json"].Version = 1
			r.Publish("timestamp")
		}, tuf.ErrNotTrusted, "snapshot version 1, older than version 2", ""},
		{"rollback of the targets", func(r *tuftest.Repo) {
			r.Snapshot.Signed.Meta["targets.json"].Version = 1
			r.Publish("snapshot", "timestamp")
		}, tuf.ErrNotTrusted, `version 1 of "targets.json", older than version 2`, ""},
		{"removal of a role", func(r *tuftest.Repo) {
			delete(r.Snapshot.Signed.Meta, "product.json")
			r.Publish("snapshot", "timestamp")
		}, tuf.ErrNotTrusted, `no longer lists "product.json"`, ""},
		{"freeze: expired timestamp", func(r *tuftest.Repo) {
			r.Timestamp.Signed.Expires = past
			r.Publish("timestamp")
		}, tuf.ErrExpired, "timestamp expired at " + past.Format(time.RFC3339), ""},
		{"freeze: expired snapshot", func(r *tuftest.Repo) {
			r.Snapshot.Signed.Expires = past
			r.Publish("snapshot", "timestamp")
		}, tuf.ErrExpired, "snapshot expired", ""},
		{"freeze: expired targets", func(r *tuftest.Repo) {
			r.Targets["targets"].Signed.Expires = past
			r.Publish("targets", "snapshot", "timestamp")
		}, tuf.ErrExpired, "targets expired", ""},
		{"mix and match: an older targets under a newer name", func(r *tuftest.Repo) {
			old := r.Published["targets"][0]
			r.Publish("targets", "snapshot", "timestamp")
			r.SetLatest("targets", old)
		}, tuf.ErrNotTrusted, "version 1, but the snapshot lists version 3", ""},
		{"mix and match: a snapshot that the timestamp does not hash", func(r *tuftest.Repo) {
			r.HashMeta = true
			r.Publish("targets", "snapshot", "timestamp")
			r.SetLatest("snapshot", append(r.Latest("snapshot")[:len(r.Latest("snapshot"))-1], "  }"...)[:len(r.Latest("snapshot"))])
		}, tuf.ErrNotTrusted, "not the file that is listed", ""},
		{
			"arbitrary metadata: timestamp", func(r *tuftest.Repo) { thief(r, "timestamp"); r.Publish("timestamp") },
			tuf.ErrNotTrusted, "signed by 0 trusted keys, 1 are needed", "",
		},
		{
			"arbitrary metadata: targets", func(r *tuftest.Repo) { thief(r, "targets"); r.Publish("targets", "snapshot", "timestamp") },
			tuf.ErrNotTrusted, "targets: signed by 0 trusted keys", "",
		},
		{
			"arbitrary metadata: root", func(r *tuftest.Repo) { r.RotateKeys("root"); r.Publish("root") },
			tuf.ErrNotTrusted, "by the keys of version 2", "",
		},
		{"root not signed by its own keys", func(r *tuftest.Repo) {
			r.Root.Signed.Roles["root"].KeyIDs = nil
			r.Trust("root", tuftest.NewKey(tuftest.Ed25519))
			r.Publish("root")
		}, tuf.ErrNotTrusted, "by its own keys", ""},
		{
			"root of a later version in its place", func(r *tuftest.Repo) { r.SetVersion("root", 4); r.Republish("root") },
			tuf.ErrNotTrusted, "version 4 in the place of version 3", "",
		},
		{"snapshot of another version in its place", func(r *tuftest.Repo) {
			r.Publish("snapshot", "timestamp")
			r.SetVersion("snapshot", 4)
			r.SetLatest("snapshot", r.Sign("snapshot"))
		}, tuf.ErrNotTrusted, "version 4, but the timestamp lists version 3", ""},
		{"one key of two", func(r *tuftest.Repo) {
			r.AddKey("targets", tuftest.NewKey(tuftest.Ed25519))
			r.Root.Signed.Roles["targets"].Threshold = 2
			r.Signers["targets"] = r.Signers["targets"][:1]
			r.Publish("root", "targets", "snapshot", "timestamp")
		}, tuf.ErrNotTrusted, "targets: signed by 1 trusted keys, 2 are needed", "product 1, root 3, snapshot 2, targets 2, timestamp 2"},
		{"a changed byte", func(r *tuftest.Repo) {
			r.Publish("timestamp")
			r.SetLatest("timestamp", bytes.Replace(r.Latest("timestamp"), []byte(`"version":3`), []byte(`"version":9`), 1))
		}, tuf.ErrNotTrusted, "signed by 0 trusted keys", ""},
		{
			"a snapshot as timestamp", func(r *tuftest.Repo) { r.SetLatest("timestamp", r.Latest("snapshot")) },
			tuf.ErrNotTrusted, "timestamp", "",
		},
		{
			"login page", func(r *tuftest.Repo) { r.SetLatest("timestamp", []byte("<!DOCTYPE html><title>Hotel</title>")) },
			tuf.ErrNotTrusted, `not TUF metadata: no JSON object; it begins with "<!DOCTYPE html>`, "",
		},
		{"endless timestamp", func(r *tuftest.Repo) { r.SetLatest("timestamp", make([]byte, 1<<20)) }, tuf.ErrTooLarge, "timestamp", ""},
		{"endless root", func(r *tuftest.Repo) { r.Publish("root"); r.SetLatest("root", make([]byte, 1<<20)) }, tuf.ErrTooLarge, "root", ""},
		{"longer than listed", func(r *tuftest.Repo) {
			r.HashMeta = true
			r.Publish("targets", "snapshot", "timestamp")
			r.SetLatest("targets", append(r.Latest("targets"), ' '))
		}, tuf.ErrTooLarge, "targets", ""},
		{"removed file", func(r *tuftest.Repo) {
			r.Publish("targets", "snapshot", "timestamp")
			r.Published["targets"] = r.Published["targets"][:2]
		}, tuf.ErrOffline, "targets version 3", ""},
		{"another major version of the specification", func(r *tuftest.Repo) {
			r.Timestamp.Signed.SpecVersion = "2.0.0"
			r.Publish("timestamp")
		}, tuf.ErrNotTrusted, "specification", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := tuftest.New()
			r.Delegate("targets", tuftest.Delegation{Role: "product"})
			r.AddArtifact("product", "file", []byte("content"))
			r.Publish("product", "root", "targets", "snapshot", "timestamp")
			dir := t.TempDir()
			c := open(t, tuf.Config{Dir: dir, Root: r.Published["root"][0], Fetcher: r})
			refresh(t, c)
			if _, err := c.Target(t.Context(), "file"); err != nil {
				t.Fatal(err)
			}
			want := "product 1, root 2, snapshot 2, targets 2, timestamp 2"
			wantVersions(t, c, want)
			tt.attack(r)
			err := c.Refresh(t.Context())
			wantErr(t, err, tt.want)
			if !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %q does not say %q", err, tt.text)
			}
			if tt.after != "" {
				return
			}
			wantVersions(t, c, want)
			if _, err := c.Target(t.Context(), "file"); err != nil {
				t.Errorf("the last good view is gone: %v", err)
			}
		})
	}
}

func TestEndlessFetcherIsCut(t *testing.T) {
	repo := tuftest.New()
	c := open(t, tuf.Config{Root: repo.Latest("root"), Fetcher: fetcher(func(_ context.Context, _ string, max int64) ([]byte, error) {
		return make([]byte, max+1), nil // a Fetcher that breaks its contract
	})})
	wantErr(t, c.Refresh(t.Context()), tuf.ErrTooLarge)
}

func TestRootRotationsAreBounded(t *testing.T) {
	repo := tuftest.New()
	for range 9 {
		repo.Publish("root")
	}
	c := open(t, tuf.Config{Root: repo.Published["root"][0], Fetcher: repo, Limits: tuf.Limits{MaxRootRotations: 4}})
	for _, want := range []int64{5, 9, 10} {
		refresh(t, c)
		if got := c.RootMetadata().Signed.Version; got != want {
			t.Errorf("root version %d, want %d", got, want)
		}
	}
}

func TestDelegationsAreBounded(t *testing.T) {
	repo := tuftest.New()
	from := "targets"
	for i := range 6 { // a chain of six, then the file
		role := fmt.Sprintf("r%d", i)
		repo.Delegate(from, tuftest.Delegation{Role: role})
		from = role
	}
	repo.AddArtifact(from, "file", []byte("x"))
	repo.PublishAll()
	for limit, ok := range map[int]bool{5: false, 6: true, 0: true} {
		c := open(t, tuf.Config{Root: repo.Latest("root"), Fetcher: repo, Limits: tuf.Limits{MaxDelegations: limit}})
		_, err := c.Target(t.Context(), "file")
		if ok && err != nil {
			t.Errorf("limit %d: %v", limit, err)
		} else if !ok {
			wantErr(t, err, tuf.ErrNotTrusted)
		}
	}
}

// What go-tuf would panic on, or hang on, unsigned.
func TestMalformedMetadata(t *testing.T) {
	edit := func(change func(signed map[string]any)) func([]byte) []byte {
		return func(data []byte) []byte {
			return tuftest.Edit(data, func(md map[string]any) { change(md["signed"].(map[string]any)) })
		}
	}
	tests := []struct {
		name, role string
		change     func([]byte) []byte
	}{
		{"null target", "targets", edit(func(s map[string]any) { s["targets"] = map[string]any{"a": nil} })},
		{"null snapshot entry", "snapshot", edit(func(s map[string]any) { s["meta"] = map[string]any{"targets.json": nil} })},
		{"no snapshot entries", "snapshot", edit(func(s map[string]any) { delete(s, "meta") })},
		{"null timestamp entry", "timestamp", edit(func(s map[string]any) { s["meta"] = map[string]any{"snapshot.json": nil} })},
		{"no timestamp entry", "timestamp", edit(func(s map[string]any) { s["meta"] = map[string]any{} })},
		{"negative length", "timestamp", edit(func(s map[string]any) {
			s["meta"] = map[string]any{"snapshot.json": map[string]any{"version": 1, "length": -1}}
		})},
		{"version 0", "timestamp", edit(func(s map[string]any) { s["version"] = 0 })},
		{"null roles", "root", edit(func(s map[string]any) { s["roles"] = nil })},
		{"null role", "root", edit(func(s map[string]any) { s["roles"].(map[string]any)["timestamp"] = nil })},
		{"null keys", "root", edit(func(s map[string]any) { s["keys"] = nil })},
		{"null key", "root", edit(func(s map[string]any) {
			for id := range s["keys"].(map[string]any) {
				s["keys"].(map[string]any)[id] = nil
			}
		})},
		{"short ed25519 key", "root", edit(func(s map[string]any) {
			for _, k := range s["keys"].(map[string]any) {
				k.(map[string]any)["keyval"].(map[string]any)["public"] = "abcd"
			}
		})},
		{"bins of no bits", "targets", edit(func(s map[string]any) {
			s["delegations"] = map[string]any{"keys": map[string]any{}, "succinct_roles": map[string]any{"bit_length": -4}}
		})},
		{"no signed", "timestamp", func([]byte) []byte { return []byte(`{"signatures":[]}`) }},
		{"signed is null", "timestamp", func([]byte) []byte { return []byte(`{"signed":null,"signatures":[]}`) }},
		{"signed twice", "timestamp", func(b []byte) []byte { return append([]byte(`{"Signed":{},`), b[1:]...) }},
		{"many signatures", "timestamp", func(b []byte) []byte {
			return tuftest.Edit(b, func(md map[string]any) {
				sigs := []any{}
				for i := range 1000 {
					sigs = append(sigs, map[string]any{"keyid": fmt.Sprint(i), "sig": "00"})
				}
				md["signatures"] = sigs
			})
		}},
		{"half a file", "timestamp", func(b []byte) []byte { return b[:len(b)/2] }},
		{"two documents", "timestamp", func(b []byte) []byte { return append(slices.Clone(b), b...) }},
		{"empty", "timestamp", func([]byte) []byte { return []byte{} }},
		{"a list", "timestamp", func([]byte) []byte { return []byte(`[1,2,3]`) }},
		{"null", "timestamp", func([]byte) []byte { return []byte(`null`) }},
		{"deep", "timestamp", func([]byte) []byte {
			return []byte(`{"signed":` + strings.Repeat(`[`, 20000) + strings.Repeat(`]`, 20000) + `,"signatures":[]}`)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			repo := tuftest.New()
			c := inMemory(t, repo)
			if tt.role == "root" {
				repo.Publish("root")
			}
			repo.SetLatest(tt.role, tt.change(repo.Latest(tt.role)))
			wantErr(t, c.Refresh(t.Context()), tuf.ErrNotTrusted)
			if tt.role == "root" {
				_, err := tuf.Open(tuf.Config{Root: repo.Latest("root")})
				wantErr(t, err, tuf.ErrNotTrusted)
			}
		})
	}
}

// A role signed by enough good keys stands although others of its keys are
// broken in ways that go-tuf stumbles over.
func TestBrokenKeysBesideGoodOnes(t *testing.T) {
	for name, spoil := range map[string]func(k *metadata.Key){
		"unknown type":   func(k *metadata.Key) { k.Type = "future" },
		"unknown scheme": func(k *metadata.Key) { k.Scheme = "future" },
		"no hex":         func(k *metadata.Key) { k.Value.PublicKey = "xyz" },
		"short":          func(k *metadata.Key) { k.Value.PublicKey = "abcd" },
		"no PEM":         func(k *metadata.Key) { k.Type, k.Scheme = "ecdsa", "ecdsa-sha2-nistp256" },
	} {
		t.Run(name, func(t *testing.T) {
			repo := tuftest.New()
			bad := tuftest.NewKey(tuftest.Ed25519)
			spoil(bad.Public)
			keys := []*tuftest.Key{bad, tuftest.NewKey(tuftest.Ed25519), tuftest.NewKey(tuftest.ECDSA384)}
			repo.Delegate("targets", tuftest.Delegation{Role: "A", Keys: keys, Threshold: 2})
			repo.AddArtifact("A", "file", []byte("x"))
			repo.PublishAll()
			if _, err := inMemory(t, repo).Target(t.Context(), "file"); err != nil {
				t.Error(err)
			}
			repo.Signers["A"] = keys[:2]
			repo.PublishAll()
			_, err := inMemory(t, repo).Target(t.Context(), "file")
			wantErr(t, err, tuf.ErrNotTrusted)
		})
	}
}

// Revoked keys lose their power even where nothing else changed.
func TestRevokedTargetsKey(t *testing.T) {
	repo := tuftest.New()
	c := inMemory(t, repo)
	refresh(t, c)
	repo.RotateKeys("targets")
	repo.Publish("root")
	wantErr(t, c.Refresh(t.Context()), tuf.ErrNotTrusted)
	_, err := c.Target(t.Context(), "file")
	wantErr(t, err, tuf.ErrNotTrusted)
}

func TestZeroThreshold(t *testing.T) {
	repo := tuftest.New()
	repo.Delegate("targets", tuftest.Delegation{Role: "A"})
	repo.Targets["targets"].Signed.Delegations.Roles[0].Threshold = 0
	repo.Signers["A"] = nil
	repo.PublishAll()
	_, err := inMemory(t, repo).Target(t.Context(), "file")
	wantErr(t, err, tuf.ErrNotTrusted)
}

func TestDelegationToATopLevelName(t *testing.T) {
	for _, role := range []string{"root", "snapshot", "Timestamp", ""} {
		repo := tuftest.New()
		repo.Delegate("targets", tuftest.Delegation{Role: "A"})
		repo.Targets["targets"].Signed.Delegations.Roles[0].Name = role
		repo.PublishAll()
		repo.Snapshot.Signed.Meta[role+".json"] = &metadata.MetaFiles{Version: 1}
		repo.Publish("snapshot", "timestamp")
		_, err := inMemory(t, repo).Target(t.Context(), "file")
		wantErr(t, err, tuf.ErrNotTrusted)
		if err != nil && !strings.Contains(err.Error(), "top-level") {
			t.Errorf("error %q", err)
		}
	}
}

// A cycle is walked once, and no reason to give up.
func TestCycle(t *testing.T) {
	repo := tuftest.New()
	repo.Delegate("targets", tuftest.Delegation{Role: "A"})
	repo.Delegate("A", tuftest.Delegation{Role: "B"})
	repo.Delegate("B", tuftest.Delegation{Role: "A", Keys: repo.Signers["A"]})
	repo.Delegate("B", tuftest.Delegation{Role: "targets"})
	repo.PublishAll()
	_, err := inMemory(t, repo).Target(t.Context(), "file")
	wantErr(t, err, fs.ErrNotExist)
}

// A terminating role ends the search for what it covers.
func TestTerminating(t *testing.T) {
	repo := tuftest.New()
	repo.Delegate("targets", tuftest.Delegation{Role: "A", Terminating: true, Paths: []string{"a/*"}})
	repo.Delegate("targets", tuftest.Delegation{Role: "B", Paths: []string{"*/*"}})
	repo.AddArtifact("B", "a/file", []byte("x"))
	repo.AddArtifact("B", "b/file", []byte("x"))
	repo.PublishAll()
	c := inMemory(t, repo)
	if _, err := c.Target(t.Context(), "b/file"); err != nil {
		t.Error(err)
	}
	_, err := c.Target(t.Context(), "a/file")
	wantErr(t, err, fs.ErrNotExist)
}

func signAt(repo *tuftest.Repo, at time.Time) {
	repo.Timestamp.Signed.UnrecognizedFields = map[string]any{tuf.SignedAtField: at.UTC().Format(time.RFC3339)}
	repo.Publish("timestamp")
}

// A clock set back would make expired metadata fresh again.
func TestTrustedTime(t *testing.T) {
	repo := tuftest.New()
	base := time.Now().UTC().Truncate(time.Second)
	at := &clock{at: base}
	dir := t.TempDir()
	cfg := tuf.Config{Dir: dir, Root: repo.Latest("root"), Fetcher: repo, Now: at.now}
	c := open(t, cfg)
	signAt(repo, base)
	refresh(t, c)
	if st := c.Status(); !st.TrustedTime.Equal(base) || !st.Roles["timestamp"].SignedAt.Equal(base) || !st.Refreshed.Equal(base) {
		t.Errorf("status %+v", st)
	}
	at.set(base.Add(-4 * time.Minute)) // close enough
	refresh(t, c)
	// What expired before the newest trusted moment has expired, whatever the
	// clock says.
	repo.Targets["targets"].Signed.Expires = base.Add(-time.Minute)
	repo.Publish("targets", "snapshot", "timestamp")
	wantErr(t, c.Refresh(t.Context()), tuf.ErrExpired)
	repo.Targets["targets"].Signed.Expires = base.AddDate(0, 0, 7)
	repo.Publish("targets", "snapshot", "timestamp")
	refresh(t, c)
	at.set(base.Add(-time.Hour))
	err := c.Refresh(t.Context())
	wantErr(t, err, tuf.ErrClock)
	for _, want := range []string{base.Format(time.RFC3339), base.Add(-time.Hour).Format(time.RFC3339)} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %s", err, want)
		}
	}
	_, err = c.Target(t.Context(), "file")
	wantErr(t, err, tuf.ErrClock)
	c.Close()
	c = open(t, cfg) // the floor outlives the process
	wantErr(t, c.Refresh(t.Context()), tuf.ErrClock)

	at.set(base)
	refresh(t, c)
	// A thief of the timestamp's key signs a time far ahead: clients stop…
	signAt(repo, base.AddDate(10, 0, 0))
	wantErr(t, c.Refresh(t.Context()), tuf.ErrClock)
	signAt(repo, base)
	wantErr(t, c.Refresh(t.Context()), tuf.ErrClock)
	// … until the key is taken away, which takes the time away too.
	repo.RotateKeys("timestamp")
	repo.Publish("root")
	signAt(repo, base)
	refresh(t, c)
	if st := c.Status(); !st.TrustedTime.Equal(base) {
		t.Errorf("trusted time %v, want %v", st.TrustedTime, base)
	}
}

func TestFastForwardIsUndoneInOneClient(t *testing.T) {
	repo := tuftest.New()
	c := inMemory(t, repo)
	for range 50 {
		repo.Publish("targets", "snapshot", "timestamp")
	}
	refresh(t, c)
	for _, role := range []string{"targets", "snapshot", "timestamp"} {
		repo.Published[role] = nil
		repo.SetVersion(role, 1)
	}
	repo.Publish("targets", "snapshot", "timestamp")
	wantErr(t, c.Refresh(t.Context()), tuf.ErrNotTrusted)
	repo.RotateKeys("snapshot")
	repo.RotateKeys("timestamp")
	repo.Publish("root", "targets", "snapshot", "timestamp")
	refresh(t, c)
	wantVersions(t, c, "root 2, snapshot 2, targets 2, timestamp 2")
}

// A key that is added takes no protection away.
func TestAddedKeyKeepsRollbackProtection(t *testing.T) {
	repo := tuftest.New()
	c := inMemory(t, repo)
	old := repo.Latest("timestamp")
	repo.Publish("timestamp")
	refresh(t, c)
	repo.AddKey("timestamp", tuftest.NewKey(tuftest.Ed25519))
	repo.Publish("root")
	repo.SetLatest("timestamp", old)
	wantErr(t, c.Refresh(t.Context()), tuf.ErrNotTrusted)
}

// In one client, without a restart: a role fetched through A is not B's.
func TestRoleOfAnotherDelegator(t *testing.T) {
	repo := tuftest.New()
	repo.Delegate("targets", tuftest.Delegation{Role: "A", Paths: []string{"a/*"}})
	repo.Delegate("targets", tuftest.Delegation{Role: "B", Paths: []string{"b/*"}})
	repo.Delegate("A", tuftest.Delegation{Role: "C", Paths: []string{"a/*"}})
	own := repo.Signers["C"]
	repo.Delegate("B", tuftest.Delegation{Role: "C", Paths: []string{"b/*"}})
	repo.Signers["C"] = own
	repo.AddArtifact("C", "a/file", []byte("a"))
	repo.AddArtifact("C", "b/file", []byte("b"))
	repo.PublishAll()
	c := inMemory(t, repo)
	for range 2 {
		if _, err := c.Target(t.Context(), "a/file"); err != nil {
			t.Fatal(err)
		}
		_, err := c.Target(t.Context(), "b/file")
		wantErr(t, err, tuf.ErrNotTrusted)
		refresh(t, c)
	}
}

func TestNoFetcher(t *testing.T) {
	repo := tuftest.New()
	c := open(t, tuf.Config{Root: repo.Latest("root")})
	err := c.Refresh(t.Context())
	wantErr(t, err, tuf.ErrOffline)
	if errors.Unwrap(err) == nil {
		t.Error("not wrapped")
	}
}
