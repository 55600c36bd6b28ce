package client_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

func TestDownloadUsesTheBlockList(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(s *server)
		used   bool
	}{
		{"as published", func(*server) {}, true},
		{"none", func(s *server) {
			delete(s.Targets["product-hello"].Signed.Targets, layout.BlocksPath(patchPath))
		}, false},
		{"of wrong length", func(s *server) {
			s.AddArtifact("product-hello", layout.BlocksPath(patchPath), []byte("short"))
		}, false},
		{"not to be had", func(s *server) { delete(s.Artifacts, layout.BlocksPath(patchPath)) }, false},
		{"signed by another role", func(s *server) {
			list := s.Artifacts[layout.BlocksPath(patchPath)]
			delete(s.Targets["product-hello"].Signed.Targets, layout.BlocksPath(patchPath))
			s.AddArtifact("targets", layout.BlocksPath(patchPath), list)
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t)
			data := hello(s, '1')
			c.change(s)
			s.PublishAll()
			bad := false // one block of the first mirror is bad: what follows tells who knows
			s.setEvil(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, ".hello.bin") || bad {
					return false
				}
				bad = true
				wrong := bytes.Clone(data)
				wrong[2<<20] ^= 1
				w.Write(wrong)
				return true
			})
			honest := serveHonest(t, &server{Repo: s.Repo})
			cl := open(t, client.Config{Root: s.root, Mirrors: []string{s.url, honest}})
			dest := filepath.Join(t.TempDir(), "f")
			_, res, err := cl.Download(t.Context(), patchPath, dest, client.DownloadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := os.ReadFile(dest); !bytes.Equal(got, data) {
				t.Fatal("wrong file")
			}
			if used := len(res.From()) == 2; used != c.used {
				t.Errorf("block list used: %t, want %t (%+v)", used, c.used, res)
			}
		})
	}
}

func TestNamesInURLs(t *testing.T) {
	s := newServer(t)
	names := []string{"a b.deb", "100%.bin", "naïve ✓.msi", "a+b&c=d?e#f.exe", "dir/sub dir/x;y.rpm", "empty"}
	for _, n := range names {
		s.AddArtifact("targets", n, []byte(strings.Repeat(n, 3)))
	}
	s.AddArtifact("targets", "empty", nil)
	s.PublishAll()
	for _, consistent := range []bool{true, false} {
		s.Root.Signed.ConsistentSnapshot = consistent
		s.Publish("root")
		s.PublishAll()
		c := open(t, client.Config{Root: s.Latest("root"), Mirrors: []string{s.url + "/"}})
		for i, n := range names {
			dest := filepath.Join(t.TempDir(), fmt.Sprint(i))
			if _, _, err := c.Download(t.Context(), n, dest, client.DownloadOptions{}); err != nil {
				t.Errorf("%s: %v", n, err)
			} else if got, _ := os.ReadFile(dest); !bytes.Equal(got, s.Artifacts[n]) {
				t.Errorf("%s: wrong file", n)
			}
		}
	}
}

// A poll with nothing new is two requests and hardly a byte, also in a new
// process and with plan and halts read.
func TestPollIsSmall(t *testing.T) {
	s := newServer(t)
	publishRollout(t, s, nil)
	dir := t.TempDir()
	poll := func(c *client.Client) {
		t.Helper()
		if err := c.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if plan, err := c.Plan(t.Context(), "users"); err != nil || plan == nil {
			t.Fatal(plan, err)
		}
		if halts, err := c.Halts(t.Context()); err != nil || len(halts) != 1 {
			t.Fatal(halts, err)
		}
	}
	for process := range 2 {
		c, err := client.Open(client.Config{Dir: dir, Root: s.root, Mirrors: []string{s.url}, Fetch: quick})
		if err != nil {
			t.Fatal(err)
		}
		for n := range 2 {
			s.requests.Store(0)
			s.bytes.Store(0)
			poll(c)
			if r, b := s.requests.Load(), s.bytes.Load(); (process > 0 || n > 0) && (r > 2 || b > 1000) {
				t.Errorf("process %d, poll %d: %d requests, %d bytes of bodies", process, n, r, b)
			}
		}
		c.Close()
	}
}

func TestMirrorsFailOver(t *testing.T) {
	s := newServer(t)
	hello(s, '1')
	stale, expired := newServer(t), newServer(t)
	expired.Repo = s.Repo
	expired.setEvil(func(w http.ResponseWriter, r *http.Request) bool {
		w.Write([]byte("<html>"))
		return true
	})
	stale.setEvil(func(w http.ResponseWriter, r *http.Request) bool {
		http.Error(w, "down", http.StatusBadGateway)
		return true
	})
	c := open(t, client.Config{Root: s.root, Mirrors: []string{"http://127.0.0.1:1", expired.url, stale.url, s.url}})
	for range 2 {
		if err := c.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := c.Download(t.Context(), patchPath, filepath.Join(t.TempDir(), "f"), client.DownloadOptions{}); err != nil {
		t.Fatal(err)
	}
	down := open(t, client.Config{Root: s.root, Mirrors: []string{"http://127.0.0.1:1", stale.url}})
	if err := down.Refresh(t.Context()); !errors.Is(err, tuf.ErrOffline) {
		t.Errorf("error %v", err)
	}
}

// publishRollout publishes a patch, its ring's plan and a halt; change edits
// what each document is signed by before that.
func publishRollout(t *testing.T, s *server, change func(roles map[string]string)) {
	t.Helper()
	p := patch.Patch{
		Format: 1, ID: "hello@1.1/any", Product: "hello", Version: "1.1", Platform: "any",
		Kind: patch.KindFile, Released: time.Now().UTC().Truncate(time.Second),
	}
	custom, err := p.ToCustom()
	if err != nil {
		t.Fatal(err)
	}
	plan := rollout.Plan{Format: rollout.Format, Ring: "users", Entries: []rollout.Entry{}}
	planJSON, err := plan.Encode()
	if err != nil {
		t.Fatal(err)
	}
	halts := rollout.Halts{Format: rollout.Format, Halts: []rollout.Halt{
		{ID: "h1", All: true, Since: time.Now().UTC().Truncate(time.Second), Reason: "a fault", By: "ann"},
	}}
	haltsJSON, err := halts.Encode()
	if err != nil {
		t.Fatal(err)
	}
	roles := map[string]string{ // by path: who signs
		patchPath: "product-hello", layout.PlanPath("users"): "ring-users", layout.HaltsPath: "halt",
	}
	if change != nil {
		change(roles)
	}
	patterns := map[string][]string{
		"product-hello": layout.ProductPatterns("hello"), "ring-users": layout.RingPatterns("users"),
		"ring-servers": layout.RingPatterns("servers"), "halt": layout.HaltPatterns(),
	}
	for role, paths := range patterns {
		for path, signer := range roles {
			if signer == role {
				paths = append(paths, path)
			}
		}
		s.Delegate("targets", tuftest.Delegation{Role: role, Paths: paths, Keys: []*tuftest.Key{tuftest.NewKey(tuftest.Ed25519)}})
	}
	s.AddArtifact(roles[patchPath], patchPath, []byte("hello"))
	raw := custom
	s.Targets[roles[patchPath]].Signed.Targets[patchPath].Custom = &raw
	s.AddArtifact(roles[layout.PlanPath("users")], layout.PlanPath("users"), planJSON)
	s.AddArtifact(roles[layout.HaltsPath], layout.HaltsPath, haltsJSON)
	s.PublishAll()
}

// A document of the right form and name from the wrong role is not believed.
func TestWhoMaySayWhat(t *testing.T) {
	read := map[string]func(c *client.Client) error{
		patchPath: func(c *client.Client) error {
			p, tg, err := c.Patch(t.Context(), patchPath)
			if err == nil && (p.Product != "hello" || tg.Length != 5) {
				return fmt.Errorf("%+v %+v", p, tg)
			}
			return err
		},
		layout.PlanPath("users"): func(c *client.Client) error {
			plan, err := c.Plan(t.Context(), "users")
			if err == nil && plan == nil {
				return errors.New("no plan")
			}
			return err
		},
		layout.HaltsPath: func(c *client.Client) error {
			halts, err := c.Halts(t.Context())
			if err == nil && len(halts) != 1 {
				return errors.New("no halts")
			}
			return err
		},
	}
	for path, f := range read {
		for _, signer := range []string{"", "product-hello", "ring-users", "ring-servers", "halt", "targets"} {
			s := newServer(t)
			var want error = tuf.ErrNotTrusted
			publishRollout(t, s, func(roles map[string]string) {
				if signer == "" || roles[path] == signer {
					want = nil
					return
				}
				roles[path] = signer
			})
			c := open(t, client.Config{Root: s.root, Mirrors: []string{s.url}})
			if err := f(c); !errors.Is(err, want) || want == nil && err != nil {
				t.Errorf("%s signed by %q: %v, want %v", path, signer, err, want)
			}
		}
	}
}

func TestNothingPublished(t *testing.T) {
	s := newServer(t)
	c := open(t, client.Config{Root: s.root, Mirrors: []string{s.url}})
	if plan, err := c.Plan(t.Context(), "users"); plan != nil || err != nil {
		t.Errorf("plan %v, %v", plan, err)
	}
	if halts, err := c.Halts(t.Context()); halts != nil || err != nil {
		t.Errorf("halts %v, %v", halts, err)
	}
	if _, err := c.Plan(t.Context(), "../x"); !errors.Is(err, layout.ErrBadName) {
		t.Errorf("bad ring: %v", err)
	}
	if _, _, err := c.Patch(t.Context(), "rings/x"); !errors.Is(err, layout.ErrBadName) {
		t.Errorf("bad patch: %v", err)
	}
}

// A halt that is signed and withheld is not a halt that was lifted.
func TestWithheldHalts(t *testing.T) {
	s := newServer(t)
	publishRollout(t, s, nil)
	s.setEvil(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/targets/halts/") {
			http.NotFound(w, r)
			return true
		}
		return false
	})
	c := open(t, client.Config{Root: s.root, Mirrors: []string{s.url}})
	if halts, err := c.Halts(t.Context()); !errors.Is(err, tuf.ErrOffline) {
		t.Errorf("halts %v, %v", halts, err)
	}
}

func TestDocumentsAreBoundedAndVerifiedAgain(t *testing.T) {
	s := newServer(t)
	s.AddArtifact("targets", "doc", []byte("document"))
	s.PublishAll()
	dir := t.TempDir()
	c := open(t, client.Config{Dir: dir, Root: s.root, Mirrors: []string{s.url}})
	if _, _, err := c.ReadTarget(t.Context(), "doc", 7); !errors.Is(err, tuf.ErrTooLarge) {
		t.Errorf("error %v", err)
	}
	for range 2 {
		if got, _, err := c.ReadTarget(t.Context(), "doc", 8); err != nil || string(got) != "document" {
			t.Errorf("%q, %v", got, err)
		}
		kept, err := filepath.Glob(filepath.Join(dir, "documents", strings.Repeat("?", 64)))
		if err != nil || len(kept) != 1 {
			t.Fatalf("kept %q, %v", kept, err)
		}
		if err := os.WriteFile(kept[0], []byte("d0cument"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenRefusesOddMirrors(t *testing.T) {
	s := newServer(t)
	for _, m := range []string{"", "ftp://host", "host/path", "file:///x", "http://"} {
		if c, err := client.Open(client.Config{Root: s.root, Mirrors: []string{m}}); err == nil {
			c.Close()
			t.Errorf("mirror %q is accepted", m)
		}
	}
}
