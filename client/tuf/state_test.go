package tuf_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
)

func writeFiles(t *testing.T, files map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Whatever mixture of old, new, missing and damaged files a crash or a disk
// leaves beside a whole root, the next refresh repairs it.
func TestStateIsRepaired(t *testing.T) {
	repo := tuftest.New()
	repo.Delegate("targets", tuftest.Delegation{Role: "A"})
	repo.AddArtifact("A", "file", []byte("old"))
	repo.Publish("A", "targets", "snapshot", "timestamp")
	dir := t.TempDir()
	c := open(t, tuf.Config{Dir: dir, Root: repo.Latest("root"), Fetcher: repo})
	look := func(c *tuf.Client) error {
		if err := c.Refresh(t.Context()); err != nil {
			return err
		}
		target, err := c.Target(t.Context(), "file")
		if err == nil && target.Length != 7 {
			err = fmt.Errorf("target of length %d", target.Length)
		}
		return err
	}
	refresh(t, c)
	if _, err := c.Target(t.Context(), "file"); err != nil {
		t.Fatal(err)
	}
	before := snapshotDir(t, dir)
	repo.RotateKeys("snapshot") // old and new snapshots have other signers
	repo.AddArtifact("A", "file", []byte("the new"))
	repo.Publish("root", "A", "targets", "snapshot", "timestamp")
	if err := look(c); err != nil {
		t.Fatal(err)
	}
	after := snapshotDir(t, dir)

	names := []string{"timestamp.json", "snapshot.json", "targets.json", "A.json"}
	for _, root := range []string{before["root.json"], after["root.json"]} {
		for mix := range 3 * 3 * 3 * 3 {
			files := map[string]string{"root.json": root, ".new-123": "half a f"}
			for i, rest := 0, mix; i < len(names); i, rest = i+1, rest/3 {
				name := names[i]
				switch {
				case rest%3 == 0:
					files[name] = before[name]
				case rest%3 == 1:
					files[name] = after[name]
				case mix%2 == 0: // else it is missing
					files[name] = after[name][:len(after[name])/2]
				}
			}
			// Repair in memory is the same code without the disk's time.
			c := open(t, tuf.Config{Dir: writeFiles(t, files), Fetcher: repo, ReadOnly: mix%23 != 0})
			if err := look(c); err != nil {
				t.Fatalf("root %d bytes, mixture %d: %v", len(root), mix, err)
			}
			wantVersions(t, c, "A 2, root 2, snapshot 3, targets 3, timestamp 3")
			c.Close()
		}
	}
}

// At each moment of a refresh the files on disk are a state from which another
// process goes on, and no moment forgets what was trusted.
func TestKilledBetweenWrites(t *testing.T) {
	repo := tuftest.New()
	dir := t.TempDir()
	c := open(t, tuf.Config{Dir: dir, Root: repo.Latest("root"), Fetcher: repo})
	refresh(t, c)
	c.Close()
	repo.Publish("root", "root", "targets", "snapshot", "timestamp")
	var states []map[string]string
	c = open(t, tuf.Config{Dir: dir, Fetcher: fetcher(func(ctx context.Context, name string, max int64) ([]byte, error) {
		states = append(states, snapshotDir(t, dir))
		return repo.FetchMetadata(ctx, name, max)
	})})
	refresh(t, c)
	states = append(states, snapshotDir(t, dir))
	if len(states) != 7 {
		t.Fatalf("%d states", len(states))
	}
	for i, files := range states {
		d := writeFiles(t, files)
		next := open(t, tuf.Config{Dir: d, Fetcher: repo})
		refresh(t, next)
		wantVersions(t, next, "root 3, snapshot 2, targets 2, timestamp 2")
		next.Close()
		// From the fifth on the new timestamp is trusted, so the old one is not.
		if i < 4 {
			continue
		}
		d = writeFiles(t, files)
		latest := repo.Latest("timestamp")
		repo.SetLatest("timestamp", repo.Published["timestamp"][0])
		next = open(t, tuf.Config{Dir: d, Fetcher: repo})
		wantErr(t, next.Refresh(t.Context()), tuf.ErrNotTrusted)
		next.Close()
		repo.SetLatest("timestamp", latest)
	}
}

// A role's file is verified against the delegator in use whenever it is read.
func TestPlantedFilesAreNotTrusted(t *testing.T) {
	repo := tuftest.New()
	repo.Delegate("targets", tuftest.Delegation{Role: "A"})
	repo.AddArtifact("A", "file", []byte("content"))
	repo.PublishAll()
	thief := tuftest.New()
	thief.Delegate("targets", tuftest.Delegation{Role: "A"})
	thief.AddArtifact("A", "file", []byte("planted"))
	thief.PublishAll()
	files := map[string]string{"root.json": string(repo.Latest("root"))}
	for _, role := range []string{"timestamp", "snapshot", "targets", "A"} {
		files[role+".json"] = string(thief.Latest(role))
	}
	files["clock"] = "never"
	c := open(t, tuf.Config{Dir: writeFiles(t, files), Fetcher: repo})
	wantVersions(t, c, "root 1")
	target, err := c.Target(t.Context(), "file")
	if err != nil || target.SHA256 != fmt.Sprintf("%x", tuftest.Hash("sha256", []byte("content"))) {
		t.Errorf("target %+v, %v", target, err)
	}
}

func TestDamagedRoot(t *testing.T) {
	repo := tuftest.New()
	for name, data := range map[string]string{"half": string(repo.Latest("root")[:100]), "empty": "", "page": "<html>", "huge": strings.Repeat(" ", 1<<20)} {
		t.Run(name, func(t *testing.T) {
			dir := writeFiles(t, map[string]string{"root.json": data})
			_, err := tuf.Open(tuf.Config{Dir: dir, Fetcher: repo})
			want := tuf.ErrNotTrusted
			if name == "huge" {
				want = tuf.ErrTooLarge
			}
			wantErr(t, err, want)
			// The failed Open holds no lock, and a configured root repairs it.
			c := open(t, tuf.Config{Dir: dir, Root: repo.Latest("root"), Fetcher: repo})
			refresh(t, c)
			c.Close()
			refresh(t, open(t, tuf.Config{Dir: dir, Fetcher: repo}))
		})
	}
	_, err := tuf.Open(tuf.Config{Dir: t.TempDir(), Fetcher: repo})
	wantErr(t, err, tuf.ErrNotTrusted)
	_, err = tuf.Open(tuf.Config{Dir: t.TempDir(), Root: []byte("nonsense"), Fetcher: repo})
	wantErr(t, err, tuf.ErrNotTrusted)
	_, err = tuf.Open(tuf.Config{})
	wantErr(t, err, tuf.ErrNotTrusted)
}

func TestConfiguredRootAndState(t *testing.T) {
	repo := tuftest.New()
	repo.Publish("root", "root")
	begin := func(t *testing.T, version int) string {
		dir := t.TempDir()
		c := open(t, tuf.Config{Dir: dir, Root: repo.Published["root"][version-1]})
		c.Close()
		return dir
	}
	root := func(c *tuf.Client) int64 { return c.RootMetadata().Signed.Version }
	t.Run("the state is newer", func(t *testing.T) {
		c := open(t, tuf.Config{Dir: begin(t, 3), Root: repo.Published["root"][0], Fetcher: repo})
		if root(c) != 3 {
			t.Errorf("root version %d", root(c))
		}
	})
	t.Run("the configured one is newer", func(t *testing.T) {
		dir := begin(t, 1)
		c := open(t, tuf.Config{Dir: dir, Root: repo.Published["root"][2], Fetcher: repo})
		if root(c) != 3 {
			t.Errorf("root version %d", root(c))
		}
		c.Close()
		if c = open(t, tuf.Config{Dir: dir, Fetcher: repo}); root(c) != 3 {
			t.Errorf("saved root version %d", root(c))
		}
	})
	t.Run("the configured one broke with the chain", func(t *testing.T) {
		// All keys are new, and versions begin again: installing the new root
		// must leave no timestamp of the old time in the way.
		dir := t.TempDir()
		old := tuftest.New()
		for range 5 {
			old.Publish("timestamp")
		}
		signAt(old, time.Now().AddDate(0, 0, 7)) // and no time
		c := open(t, tuf.Config{Dir: dir, Root: old.Latest("root"), Fetcher: old})
		wantErr(t, c.Refresh(t.Context()), tuf.ErrClock)
		c.Close()
		fresh := tuftest.New()
		fresh.Publish("root")
		c = open(t, tuf.Config{Dir: dir, Root: fresh.Latest("root"), Fetcher: fresh})
		refresh(t, c)
		wantVersions(t, c, "root 2, snapshot 1, targets 1, timestamp 1")
	})
	t.Run("another repository of the same version", func(t *testing.T) {
		_, err := tuf.Open(tuf.Config{Dir: begin(t, 1), Root: tuftest.New().Latest("root"), Fetcher: repo})
		wantErr(t, err, tuf.ErrNotTrusted)
	})
	t.Run("another repository of an older version", func(t *testing.T) {
		dir := t.TempDir()
		c := open(t, tuf.Config{Dir: dir, Root: repo.Published["root"][0], Fetcher: repo})
		refresh(t, c)
		c.Close()
		_, err := tuf.Open(tuf.Config{Dir: dir, Root: tuftest.New().Latest("root"), Fetcher: repo})
		wantErr(t, err, tuf.ErrNotTrusted)
		for _, configured := range repo.Published["root"] {
			c = open(t, tuf.Config{Dir: dir, Root: configured, Fetcher: repo})
			if root(c) != 3 {
				t.Errorf("root version %d", root(c))
			}
			c.Close()
		}
	})
	t.Run("the same, signed anew", func(t *testing.T) {
		dir := begin(t, 3)
		open(t, tuf.Config{Dir: dir, Root: append(repo.Latest("root"), '\n'), Fetcher: repo})
	})
}

func TestOneProcessAtATime(t *testing.T) {
	repo := tuftest.New()
	dir := t.TempDir()
	c := open(t, tuf.Config{Dir: dir, Root: repo.Latest("root"), Fetcher: repo})
	_, err := tuf.Open(tuf.Config{Dir: dir, Fetcher: repo})
	wantErr(t, err, tuf.ErrLocked)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, tuf.Config{Dir: dir, Fetcher: repo})
}

// No two roles share a file, and none leaves the directory, whatever its name.
func TestFilesOfRoles(t *testing.T) {
	repo := tuftest.New()
	dir := filepath.Join(t.TempDir(), "a", "b")
	names := []string{"../up", "..", ".", "a/b", "a:b", "a%2Fb", "CON", "x.json", strings.Repeat("long", 100), strings.Repeat("é", 90)}
	for _, name := range names {
		repo.Delegate("targets", tuftest.Delegation{Role: name})
	}
	repo.PublishAll()
	c := open(t, tuf.Config{Dir: dir, Root: repo.Latest("root"), Fetcher: repo})
	if err := c.Walk(t.Context(), func(*tuf.Role) error { return nil }); err != nil {
		t.Fatal(err)
	}
	count := 0
	err := filepath.WalkDir(filepath.Dir(filepath.Dir(dir)), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			count++
			if filepath.Dir(path) != dir {
				t.Errorf("%s lies outside", path)
			}
			if info, err := d.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s is open to others (%v)", path, err)
			}
		}
		return err
	})
	if err != nil || count != len(names)+4+2 { // top-level roles, lock and roots
		t.Errorf("%d files, %v", count, err)
	}
	c.Close()
	repo.ResetRequests()
	c = open(t, tuf.Config{Dir: dir, Fetcher: repo})
	if err := c.Walk(t.Context(), func(*tuf.Role) error { return nil }); err != nil || len(repo.Requests()) != 0 {
		t.Errorf("second walk: %v, requests %q", err, repo.Requests())
	}
}

func TestUnwritableState(t *testing.T) {
	repo := tuftest.New()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tuf.Open(tuf.Config{Dir: filepath.Join(file, "state"), Root: repo.Latest("root")}); err == nil {
		t.Error("opened a state below a file")
	}
	// A directory where a file belongs: the refresh says so, and nothing is used half.
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "snapshot.json", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	c := open(t, tuf.Config{Dir: dir, Root: repo.Latest("root"), Fetcher: repo, Now: time.Now})
	err := c.Refresh(t.Context())
	if err == nil || !strings.Contains(err.Error(), "write state") {
		t.Errorf("error %v", err)
	}
	wantVersions(t, c, "root 1")
}
