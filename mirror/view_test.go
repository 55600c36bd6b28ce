package mirror_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/mirror/upstream"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// addPatch publishes one more file.
func addPatch(n int) func(r *tuftest.Repo) {
	return func(r *tuftest.Repo) {
		r.AddArtifact("product-app", fmt.Sprintf("patches/app/2.%d/any/f", n), content(fmt.Sprint(n), 100+n))
	}
}

// TestClientsNeverSeeAMixture: clients walk the whole repository again and again
// while it changes under them; not one walk may fail.
func TestClientsNeverSeeAMixture(t *testing.T) {
	noLeak(t)
	s := newSite(t)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for walks := 0; ctx.Err() == nil || walks == 0; walks++ {
				c := s.client()
				err := c.Refresh(t.Context())
				if err == nil {
					err = c.Walk(t.Context(), func(*tuf.Role) error { return nil })
				}
				if err == nil {
					_, err = c.Target(t.Context(), patchA)
				}
				c.Close()
				if err != nil {
					t.Errorf("walk %d: %v", walks, err)
					return
				}
			}
		})
	}
	for n := range 25 {
		s.publish(addPatch(n))
		must(t, s.m.Refresh(t.Context()))
		if n%8 == 7 {
			s.repo.Publish("root") // shown with the next one
		}
	}
	stop()
	wg.Wait()
	if v := s.timestamp(); v != 27 {
		t.Errorf("timestamp version %d, want 27", v)
	}
}

// TestOlderViewsStay: what a client that began with an older timestamp needs
// is there for three more views, or a minute, and gone then.
func TestOlderViewsStay(t *testing.T) {
	s := newSite(t)
	later := func(d time.Duration) {
		now := s.cfg.Now().Add(d)
		s.now.Store(&now)
	}
	later(0)
	old := content("0", 100)
	oldURL := urlOf("patches/app/2.0/any/f", old)
	s.publish(addPatch(0)) // snapshot 3
	must(t, s.m.Refresh(t.Context()))
	for n := 1; n <= 8; n++ {
		later(9 * time.Second)
		s.publish(func(r *tuftest.Repo) {
			delete(r.Targets["product-app"].Signed.Targets, "patches/app/2.0/any/f")
			addPatch(n)(r)
		})
		must(t, s.m.Refresh(t.Context()))
		for range 5 { // renewals of the timestamp alone push nothing out
			s.repo.Publish("timestamp")
			export(t, s.repo, s.dir)
			must(t, s.m.Refresh(t.Context()))
		}
		want := 200
		if n == 8 {
			want = 404 // 63 seconds
		}
		for _, path := range []string{"/metadata/3.snapshot.json", "/metadata/2.product-app.json", "/metadata/3.targets.json", oldURL} {
			if resp, _ := s.get(path); resp.StatusCode != want {
				t.Errorf("%d views later, %s: status %d, want %d", n, path, resp.StatusCode, want)
			}
		}
	}
	for n := 9; n <= 12; n++ { // however long it takes, three views stay
		later(time.Hour)
		s.publish(addPatch(n))
		must(t, s.m.Refresh(t.Context()))
		want := 200
		if n == 12 {
			want = 404
		}
		if resp, _ := s.get("/metadata/11.snapshot.json"); resp.StatusCode != want { // of the eighth
			t.Errorf("after %d views, hours apart: status %d, want %d", n, resp.StatusCode, want)
		}
	}
	if files := s.files("metadata"); len(files) != 5 { // root, timestamp, snapshot, targets, product-app
		t.Errorf("metadata on the disk: %v", files)
	}
}

// TestNotYetInTheView: a client that knows more than the mirror gets a 404,
// and the upstream hears nothing of it.
func TestNotYetInTheView(t *testing.T) {
	s := newSite(t)
	s.publish(addPatch(1))
	asked := s.up.fetches.Load()
	for _, path := range []string{"/metadata/3.snapshot.json", urlOf("patches/app/2.1/any/f", content("1", 101))} {
		if resp, _ := s.get(path); resp.StatusCode != 404 {
			t.Errorf("%s: status %d", path, resp.StatusCode)
		}
	}
	if s.up.fetches.Load() != asked || s.up.transfers.Load() != 0 {
		t.Error("the upstream was asked")
	}
	must(t, s.m.Refresh(t.Context()))
	s.want("patches/app/2.1/any/f", content("1", 101))
}

// TestPollOfNothingNew: two requests, no new view.
func TestPollOfNothingNew(t *testing.T) {
	s := newSite(t)
	asked, since := s.up.fetches.Load(), s.m.Status().View.Since
	must(t, s.m.Refresh(t.Context()))
	if n := s.up.fetches.Load() - asked; n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
	if !s.m.Status().View.Since.Equal(since) {
		t.Error("a new view of the same")
	}
}

// TestRoots: a mirror serves all roots that it can vouch for, also those before
// the pinned one, and none that somebody else signed.
func TestRoots(t *testing.T) {
	build := func(s *site) {
		for range 4 {
			before := s.repo.Signers["root"] // each root is signed by the keys of the one before, too
			s.repo.RotateKeys("root")
			s.repo.Signers["root"] = append(s.repo.Signers["root"], before...)
			s.repo.Publish("root")
		}
		s.root = s.repo.Published["root"][2]
		s.cfg.Root = s.root
		export(t, s.repo, s.dir)
	}
	s := newSite(t, build)
	for n := 1; n <= 6; n++ {
		want := 200
		if n == 6 {
			want = 404
		}
		if resp, _ := s.get(fmt.Sprintf("/metadata/%d.root.json", n)); resp.StatusCode != want {
			t.Errorf("root %d: status %d, want %d", n, resp.StatusCode, want)
		}
	}
	first, err := tuf.Open(tuf.Config{Root: s.repo.Published["root"][0], Fetcher: httpOf(t, s.srv.URL)})
	must(t, err)
	must(t, first.Refresh(t.Context()))

	forged := newSite(t, build, func(s *site) {
		other := tuftest.New()
		other.Publish("root")
		name := filepath.Join(s.dir, "metadata", "2.root.json")
		must(t, os.WriteFile(name, other.Published["root"][1], 0o644))
	})
	for n, want := range []int{1: 404, 2: 404, 3: 200, 4: 200, 5: 200} {
		if n == 0 {
			continue
		}
		if resp, _ := forged.get(fmt.Sprintf("/metadata/%d.root.json", n)); resp.StatusCode != want {
			t.Errorf("forged chain, root %d: status %d, want %d", n, resp.StatusCode, want)
		}
	}
}

func httpOf(t *testing.T, base string) upstream.Upstream {
	t.Helper()
	u, err := upstream.NewHTTP(base)
	must(t, err)
	return u
}

// TestRestartWithoutUpstream: the last view is verified again and served, for
// good; past its expiry it says so.
func TestRestartWithoutUpstream(t *testing.T) {
	s := newSite(t)
	s.publish(addPatch(1))
	must(t, s.m.Refresh(t.Context()))
	s.want(patchA, bytesA)
	s.stop()
	s.up.down.Store(true)
	for name, after := range map[string]time.Duration{"soon": 0, "after a week": 7 * 24 * time.Hour, "past expiry": 400 * 24 * time.Hour} {
		now := time.Now().Add(after)
		s.now.Store(&now)
		s.start()
		if err := s.m.Refresh(t.Context()); !errors.Is(err, tuf.ErrOffline) && !errors.Is(err, tuf.ErrExpired) {
			t.Errorf("%s: refresh: %v", name, err)
		}
		s.want(patchA, bytesA)
		if resp, body := s.get("/metadata/timestamp.json"); resp.StatusCode != 200 || !bytes.Equal(body, s.repo.Latest("timestamp")) {
			t.Errorf("%s: timestamp: status %d", name, resp.StatusCode)
		}
		for _, path := range []string{"/metadata/3.snapshot.json", "/metadata/1.root.json", "/metadata/2.product-app.json"} {
			if resp, _ := s.get(path); resp.StatusCode != 200 {
				t.Errorf("%s: %s: status %d", name, path, resp.StatusCode)
			}
		}
		resp, body := s.get("/readyz")
		var st mirror.Status
		must(t, json.Unmarshal(body, &st))
		if want := name != "past expiry"; st.Ready != want || (resp.StatusCode == 200) != want {
			t.Errorf("%s: readyz %d: %s", name, resp.StatusCode, body)
		}
		if len(st.Warnings) == 0 {
			t.Errorf("%s: no word about the line being down", name)
		}
		s.stop()
	}
	s.now.Store(nil)
	s.up.down.Store(false)
	s.start()
	s.publish(addPatch(2))
	must(t, s.m.Refresh(t.Context()))
	if s.timestamp() != 4 || !s.m.Status().Ready {
		t.Errorf("after the line is back: %+v", s.m.Status())
	}
}

// TestRestartWithDamagedView: what the disk has is not believed.
func TestRestartWithDamagedView(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"flipped": func(dir string) error {
			p := filepath.Join(dir, "1.product-app.json")
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			return os.WriteFile(p, bytes.Replace(data, []byte("patches"), []byte("latches"), 1), 0o644)
		},
		"missing": func(dir string) error { return os.Remove(filepath.Join(dir, "2.snapshot.json")) },
		"empty":   func(dir string) error { return os.WriteFile(filepath.Join(dir, "timestamp.json"), nil, 0o644) },
		"other clock": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "timestamp.json"), []byte(`{"signed":{"expires":"1980-01-01T00:00:00Z"}}`), 0o644)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.stop()
			must(t, damage(filepath.Join(s.cfg.Dir, "metadata")))
			s.up.down.Store(true)
			s.start()
			if resp, _ := s.get("/metadata/timestamp.json"); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
				t.Errorf("status %d", resp.StatusCode)
			}
			if resp, _ := s.get("/readyz"); resp.StatusCode != 503 {
				t.Errorf("readyz %d", resp.StatusCode)
			}
			s.up.down.Store(false)
			must(t, s.m.Refresh(t.Context()))
			s.want(patchA, bytesA)
			s.stop() // and the disk is whole again
			s.up.down.Store(true)
			s.start()
			s.want(patchA, bytesA)
		})
	}
}

// TestForgottenRole: one delegated role that nobody renewed is said, and does
// not keep the mirror from following the repository.
func TestForgottenRole(t *testing.T) {
	s := newSite(t)
	s.publish(func(r *tuftest.Repo) {
		r.Delegate("targets", tuftest.Delegation{Role: "mirrors", Paths: []string{"mirrors/*"}})
		r.Targets["mirrors"].Signed.Expires = time.Now().UTC().Add(-time.Hour).Truncate(time.Second)
		addPatch(1)(r)
	})
	must(t, s.m.Refresh(t.Context()))
	s.want("patches/app/2.1/any/f", content("1", 101))
	if st := s.m.Status(); !st.Ready || !contains(st.Warnings, "role mirrors expired") {
		t.Errorf("status: ready %v, warnings %q", st.Ready, st.Warnings)
	}
	s.up.down.Store(true)
	s.stop()
	s.start()
	s.want("patches/app/2.1/any/f", content("1", 101))
}

// TestAttacks: whatever an upstream makes of the metadata, the view stays what
// it was, or becomes what the repository's keys have signed.
func TestAttacks(t *testing.T) {
	on := func(match string, with func() []byte) func(string, []byte, error) ([]byte, error) {
		return func(name string, data []byte, err error) ([]byte, error) {
			if strings.HasSuffix(name, match) {
				return with(), nil
			}
			return data, err
		}
	}
	for _, a := range []struct {
		name   string
		attack func(s *site)
		want   error
	}{
		{"arbitrary metadata", func(s *site) {
			evil := newRepo()
			evil.PublishAll()
			export(t, evil, s.dir)
		}, tuf.ErrNotTrusted},
		{"arbitrary product role", func(s *site) {
			evil := newRepo()
			s.publish(addPatch(1))
			s.up.onMetadata(on("3.product-app.json", func() []byte { return evil.Latest("product-app") }))
		}, tuf.ErrNotTrusted},
		{"edited without a signature", func(s *site) {
			s.publish(addPatch(1))
			edited := tuftest.Edit(s.repo.Latest("product-app"), func(md map[string]any) { md["signed"].(map[string]any)["targets"] = map[string]any{} })
			s.up.onMetadata(on("3.product-app.json", func() []byte { return edited }))
		}, tuf.ErrNotTrusted},
		{"rollback of the timestamp", func(s *site) {
			must(t, os.WriteFile(filepath.Join(s.dir, "metadata", "timestamp.json"), s.repo.Published["timestamp"][0], 0o644))
		}, tuf.ErrNotTrusted},
		{"rollback of a product", func(s *site) { // by a thief of the online keys
			s.repo.Snapshot.Signed.Meta["product-app.json"].Version = 1
			s.repo.Publish("snapshot", "timestamp")
			export(t, s.repo, s.dir)
		}, tuf.ErrNotTrusted},
		{"mix and match", func(s *site) {
			s.publish(addPatch(1))
			s.up.onMetadata(on("4.snapshot.json", func() []byte { return s.repo.Published["snapshot"][1] }))
		}, tuf.ErrNotTrusted},
		{"freeze", func(s *site) {
			now := time.Now().AddDate(0, 0, 31)
			s.now.Store(&now)
		}, tuf.ErrExpired},
		{"endless metadata", func(s *site) {
			s.up.onMetadata(on("timestamp.json", func() []byte { return make([]byte, 10<<20) }))
		}, tuf.ErrTooLarge},
		{"web page for metadata", func(s *site) {
			s.up.onMetadata(on(".json", func() []byte { return []byte("<html>") }))
		}, tuf.ErrNotTrusted},
		{"forged root", func(s *site) {
			evil := newRepo()
			evil.Publish("root")
			s.up.onMetadata(on("2.root.json", func() []byte { return evil.Latest("root") }))
		}, tuf.ErrNotTrusted},
		{"missing role", func(s *site) {
			s.publish(addPatch(1))
			must(t, os.Remove(filepath.Join(s.dir, "metadata", "3.product-app.json")))
		}, tuf.ErrOffline},
		{"down", func(s *site) { s.up.down.Store(true) }, tuf.ErrOffline},
	} {
		t.Run(a.name, func(t *testing.T) {
			s := newSite(t)
			s.publish(addPatch(0))
			must(t, s.m.Refresh(t.Context()))
			_, before := s.get("/metadata/timestamp.json")
			a.attack(s)
			err := s.m.Refresh(t.Context())
			if !errors.Is(err, a.want) {
				t.Errorf("refresh: %v, want %v", err, a.want)
			}
			if _, body := s.get("/metadata/timestamp.json"); !bytes.Equal(body, before) {
				t.Error("another timestamp is served")
			}
			s.up.onMetadata(nil)
			s.up.down.Store(false)
			s.want(patchA, bytesA)
			if a.want == tuf.ErrNotTrusted && len(s.m.Status().Warnings) == 0 {
				t.Error("no word about it in the status")
			}
		})
	}
}

// TestRollbackOfTheStateToo: even when the TUF client's memory is lost, a mirror
// does not go behind what it serves.
func TestRollbackOfTheStateToo(t *testing.T) {
	s := newSite(t)
	s.stop()
	must(t, os.RemoveAll(filepath.Join(s.cfg.Dir, "tuf")))
	must(t, os.WriteFile(filepath.Join(s.dir, "metadata", "timestamp.json"), s.repo.Published["timestamp"][0], 0o644))
	s.start()
	if err := s.m.Refresh(t.Context()); !errors.Is(err, tuf.ErrNotTrusted) {
		t.Errorf("refresh: %v", err)
	}
	if v := s.timestamp(); v != 2 {
		t.Errorf("timestamp version %d", v)
	}
}

// TestNewestUpstreamCounts: one upstream lags, or lies; the other one is current.
func TestNewestUpstreamCounts(t *testing.T) {
	for _, laggingFirst := range []bool{true, false} {
		var behind *faults
		s := newSite(t, func(s *site) {
			dir := t.TempDir()
			export(t, s.repo, dir)
			behind = overDir(t, dir)
			behind.name = "behind"
			if laggingFirst {
				s.cfg.Upstreams = []upstream.Upstream{behind, s.up}
			} else {
				s.cfg.Upstreams = append(s.cfg.Upstreams, behind)
			}
		})
		for n := range 3 {
			s.publish(addPatch(n))
			must(t, s.m.Refresh(t.Context()))
			if v := s.timestamp(); v != int64(3+n) {
				t.Errorf("timestamp version %d", v)
			}
			s.want(fmt.Sprintf("patches/app/2.%d/any/f", n), content(fmt.Sprint(n), 100+n))
		}
	}
}

// TestFastForwardRecovery: after a thief of the online keys has published a
// version far ahead, a new root with new keys leads back.
func TestFastForwardRecovery(t *testing.T) {
	s := newSite(t)
	s.repo.Timestamp.Signed.Version = 1 << 40
	must(t, os.WriteFile(filepath.Join(s.dir, "metadata", "timestamp.json"), s.repo.Sign("timestamp"), 0o644))
	must(t, s.m.Refresh(t.Context()))
	if v := s.timestamp(); v != 1<<40 {
		t.Fatalf("timestamp version %d", v)
	}
	s.repo.Timestamp.Signed.Version = 2
	for _, role := range []string{metadata.TIMESTAMP, metadata.SNAPSHOT} {
		s.repo.RotateKeys(role)
	}
	s.repo.Publish("root")
	s.publish(addPatch(1))
	must(t, s.m.Refresh(t.Context()))
	if v := s.timestamp(); v != 3 {
		t.Errorf("timestamp version %d, want 3", v)
	}
}

// TestWrongRoot: a directory that belongs to another repository is refused
// rather than mixed.
func TestWrongRoot(t *testing.T) {
	s := newSite(t)
	s.stop()
	cfg := s.cfg
	cfg.Root = newRepo().Published[layout.RoleRoot][0]
	if m, err := mirror.New(t.Context(), cfg); !errors.Is(err, tuf.ErrNotTrusted) {
		if err == nil {
			m.Close()
		}
		t.Errorf("New: %v", err)
	}
	cfg.Root = []byte("{}")
	if _, err := mirror.New(t.Context(), cfg); !errors.Is(err, tuf.ErrNotTrusted) {
		t.Errorf("New: %v", err)
	}
	s.start()
	s.want(patchA, bytesA)
}

// TestMirrorOfMirror: an origin over a directory, a mirror over HTTP, a client.
func TestMirrorOfMirror(t *testing.T) {
	noLeak(t)
	origin := newSite(t)
	branch := newSite(t, func(s *site) {
		s.repo, s.root, s.cfg.Root = origin.repo, origin.root, origin.root
		u := httpOf(t, origin.srv.URL)
		s.cfg.Upstreams = []upstream.Upstream{upstream.Guard(u, upstream.Limits{})}
	})
	for path, data := range map[string][]byte{patchA: bytesA, patchB: bytesB, empty: nil} {
		branch.want(path, data)
	}
	origin.publish(addPatch(1))
	must(t, origin.m.Refresh(t.Context()))
	must(t, branch.m.Refresh(t.Context()))
	c := branch.client()
	must(t, c.Refresh(t.Context()))
	target, err := c.Target(t.Context(), "patches/app/2.1/any/f")
	must(t, err)
	branch.want(target.Path, content("1", 101))
	origin.stop()
	branch.want(patchA, bytesA)
	if err := branch.m.Refresh(t.Context()); !errors.Is(err, tuf.ErrOffline) {
		t.Errorf("refresh with the origin gone: %v", err)
	}
}

// TestRun polls by itself.
func TestRun(t *testing.T) {
	noLeak(t)
	s := newSite(t, func(s *site) { s.cfg.Poll = time.Millisecond })
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { s.m.Run(ctx) })
	s.publish(addPatch(1))
	until(t, "the new view", func() bool { return s.timestamp() == 3 })
	stop()
	wg.Wait()
}
