package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

func TestFirstRefresh(t *testing.T) {
	w := start(t)
	w.requested()
	w.refresh(0)
	w.requested(first...)
	for _, role := range []string{"root", "timestamp", "snapshot", "targets"} {
		w.keeps(role)
	}
	w.refresh(0)
	w.requested("2.root.json", "timestamp.json") // a poll with nothing new
}

func TestDownloadRefreshesFirst(t *testing.T) {
	w := start(t)
	w.download(1, "nonexistent artifact")
	w.requested(first...)
	w.trusts("root 1", "timestamp 1", "snapshot 1", "targets 1")
	w.downloaded()
}

func TestFlagsMayFollowTheCommand(t *testing.T) {
	w := start(t)
	w.repo.AddArtifact("targets", "a", []byte("content"))
	w.repo.Publish(topLevel...)
	w.run(0, nil, "refresh", "--metadata-dir", w.metadata, "--metadata-url", w.url+"/metadata/")
	w.run(0, nil, "download", "--metadata-dir="+w.metadata, "--metadata-url="+w.url+"/metadata", "--target-name=a",
		"--target-dir="+w.targets, "--target-base-url="+w.url+"/targets")
	w.downloaded("content")
	for _, args := range [][]string{
		{"refresh"},
		{"--metadata-dir", w.metadata, "refresh"},
		{"nonsense"},
		{"--metadata-dir", w.metadata, "init"},
		{"--metadata-dir", w.metadata, "--metadata-url", w.url, "download"},
	} {
		w.run(1, nil, args...)
	}
}

func TestInitialRootIsVerified(t *testing.T) {
	for name, change := range map[string]func(md map[string]any){
		"no version": func(md map[string]any) { delete(md["signed"].(map[string]any), "version") },
		"bad signature": func(md map[string]any) {
			md["signatures"].([]any)[0].(map[string]any)["sig"] = strings.Repeat("ab", 64)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.initWith(1, tuftest.Edit(w.repo.Latest("root"), change))
			w.refresh(1)
			w.requested()
		})
	}
}

// Each top-level role without enough signatures stops the refresh there, and
// what was verified before it stays.
func TestUnsignedRole(t *testing.T) {
	for role, trusted := range map[string][]string{
		"root":      {"root 1"},
		"timestamp": {"root 2"},
		"snapshot":  {"root 2", "timestamp 2"},
		"targets":   {"root 2", "timestamp 2", "snapshot 2"},
	} {
		t.Run(role, func(t *testing.T) {
			w := newWorld(t)
			w.repo.Signers[role] = nil
			w.repo.Publish("root", "targets", "snapshot", "timestamp")
			w.init(0)
			w.refresh(1)
			w.trusts(trusted...)
		})
	}
}

// The version in the file has to be the one in its name.
func TestVersionDiffersFromName(t *testing.T) {
	for role, trusted := range map[string][]string{
		"root":     {"root 1"},
		"snapshot": {"root 2", "timestamp 2"},
		"targets":  {"root 2", "timestamp 2", "snapshot 2"},
	} {
		t.Run(role, func(t *testing.T) {
			w := newWorld(t)
			for _, r := range []string{"root", "targets", "snapshot", "timestamp"} {
				if r == role {
					w.repo.SetVersion(r, 3)
					w.repo.Republish(r)
				} else {
					w.repo.Publish(r)
				}
				if r == role && r == "targets" {
					w.repo.Snapshot.Signed.Meta["targets.json"].Version = 2
				}
				if r == role && r == "snapshot" {
					w.repo.Timestamp.Signed.Meta["snapshot.json"].Version = 2
				}
			}
			w.init(0)
			w.refresh(1)
			w.trusts(trusted...)
		})
	}
}

func TestTimestampOfEqualVersionIsDiscarded(t *testing.T) {
	w := start(t)
	w.refresh(0)
	kept := w.repo.Latest("timestamp")
	w.repo.Timestamp.Signed.Meta["snapshot.json"].Version = 100
	w.repo.Published["timestamp"] = nil
	w.repo.Republish("timestamp")
	w.refresh(0)
	w.lastRequest("timestamp.json")
	data, err := os.ReadFile(filepath.Join(w.metadata, "timestamp.json"))
	if err != nil || string(data) != string(kept) {
		t.Fatalf("timestamp was replaced (%v)", err)
	}
}

func TestMetadataHashes(t *testing.T) {
	w := start(t)
	w.repo.HashMeta = true
	w.repo.Publish(topLevel...)
	w.refresh(0)
	w.repo.Publish("targets")
	w.repo.Snapshot.Signed.Meta["targets.json"].Hashes["sha256"] = tuftest.Hash("sha256", []byte("something else"))
	w.repo.Publish("snapshot", "timestamp")
	w.refresh(1)
	w.trusts("root 1", "timestamp 3", "snapshot 3", "targets 2")
	w.repo.HashMeta = false // the hashes are optional
	w.repo.Publish(topLevel...)
	w.refresh(0)
	w.trusts("root 1", "timestamp 4", "snapshot 4", "targets 4")
}

func TestBytesAreKeptAsServed(t *testing.T) {
	w := start(t)
	w.repo.SetLatest("timestamp", append(w.repo.Latest("timestamp"), ' '))
	w.refresh(0)
	w.keeps("timestamp")
}

func TestUnknownFieldsAreSigned(t *testing.T) {
	w := start(t)
	w.refresh(0)
	k := tuftest.NewKey(tuftest.ECDSA256)
	k.Public.UnrecognizedFields = map[string]any{"extra-field": map[string]any{"a": 1, "b": 2}}
	k.Recompute()
	w.repo.AddKey("root", k)
	w.repo.Root.Signed.UnrecognizedFields = map[string]any{"custom-field": "value"}
	w.repo.Root.Signed.Roles["root"].UnrecognizedFields = map[string]any{"another-field": "value"}
	w.repo.Publish("root")
	w.refresh(0)
	w.trusts("root 2", "timestamp 1", "snapshot 1", "targets 1")
}

func TestDeprecatedKeyFieldIsIgnored(t *testing.T) {
	w := start(t)
	w.repo.Root.Signed.Roles["snapshot"].KeyIDs, w.repo.Signers["snapshot"] = nil, nil
	k := tuftest.NewKey(tuftest.ECDSA256)
	k.Public.UnrecognizedFields = map[string]any{"keyid_hash_algorithms": "md5"}
	k.Recompute()
	w.repo.AddKey("snapshot", k)
	w.repo.Publish("root", "snapshot", "timestamp")
	w.refresh(0)
	w.trusts("root 2", "timestamp 2", "snapshot 2", "targets 1")
}

// A file that the metadata names but the repository does not serve.
func TestMissingFile(t *testing.T) {
	t.Run("timestamp", func(t *testing.T) {
		w := start(t)
		w.refresh(0)
		w.repo.Published["timestamp"] = nil
		w.refresh(1)
		w.lastRequest("timestamp.json")
	})
	t.Run("snapshot", func(t *testing.T) {
		w := start(t)
		w.refresh(0)
		w.repo.Timestamp.Signed.Meta["snapshot.json"].Version++
		w.repo.Publish("timestamp")
		w.refresh(1)
		w.lastRequest("2.snapshot.json")
		w.trusts("root 1", "timestamp 2", "snapshot 1", "targets 1")
	})
	t.Run("targets", func(t *testing.T) {
		w := start(t)
		w.refresh(0)
		w.repo.Snapshot.Signed.Meta["targets.json"].Version++
		w.repo.Publish("snapshot", "timestamp")
		w.refresh(1)
		w.lastRequest("2.targets.json")
		w.trusts("root 1", "timestamp 2", "snapshot 2", "targets 1")
	})
}

// A snapshot that also passes for a timestamp but for its type.
func TestTypeIsChecked(t *testing.T) {
	w := start(t)
	w.repo.AddKey("snapshot", w.repo.Signers["timestamp"][0])
	w.repo.Snapshot.Signed.Meta = map[string]*metadata.MetaFiles{"snapshot.json": {Version: 1}}
	w.repo.Publish("root", "snapshot")
	w.repo.Published["timestamp"] = append(w.repo.Published["timestamp"], w.repo.Latest("snapshot"))
	w.refresh(1)
	w.trusts("root 2")
}

const day = 24 * time.Hour

func TestFaketimeIsHonoured(t *testing.T) {
	w := start(t)
	w.repo.Root.Signed.Expires = time.Now().UTC().Truncate(time.Second).Add(7 * day)
	w.repo.Publish("root")
	w.refresh(0)
	w.refreshAt(1, 8*day)
	if !strings.Contains(w.stderr, "root expired") {
		t.Errorf("error %q does not say what expired", w.stderr)
	}
}

func past(days int) time.Time {
	return time.Now().UTC().Truncate(time.Second).AddDate(0, 0, -days)
}

func TestExpiry(t *testing.T) {
	all := []string{"root 1", "timestamp 1", "snapshot 1", "targets 1"}
	t.Run("root", func(t *testing.T) { // kept, but nothing after it
		w := start(t)
		w.refresh(0)
		w.repo.Publish("root")
		w.refresh(0)
		w.repo.Root.Signed.Expires = past(1)
		w.repo.Publish("root", "timestamp")
		w.refresh(1)
		w.trusts("root 3", "timestamp 1", "snapshot 1", "targets 1")
	})
	t.Run("intermediate root", func(t *testing.T) {
		w := start(t)
		good := w.repo.Root.Signed.Expires
		w.repo.Root.Signed.Expires = past(1)
		w.repo.Publish("root")
		w.repo.Root.Signed.Expires = good
		w.repo.Publish("root")
		w.refresh(0)
		w.trusts("root 3", "timestamp 1", "snapshot 1", "targets 1")
	})
	t.Run("timestamp", func(t *testing.T) {
		w := start(t)
		w.refresh(0)
		w.repo.Timestamp.Signed.Expires = past(5)
		w.repo.Publish("timestamp")
		w.refresh(1)
		w.trusts(all...)
	})
	t.Run("snapshot", func(t *testing.T) {
		w := start(t)
		w.refresh(0)
		w.repo.Snapshot.Signed.Expires = past(5)
		w.repo.Publish("snapshot", "timestamp")
		w.refresh(1)
		w.trusts("root 1", "timestamp 2", "snapshot 1", "targets 1")
	})
	t.Run("targets", func(t *testing.T) {
		w := start(t)
		w.refresh(0)
		w.repo.Targets["targets"].Signed.Expires = past(5)
		w.repo.Publish(topLevel...)
		w.refresh(1)
		w.trusts("root 1", "timestamp 2", "snapshot 2", "targets 1")
	})
	t.Run("local", func(t *testing.T) {
		// Expired local files still serve to update from.
		w := start(t)
		now := time.Now().UTC().Truncate(time.Second)
		w.repo.Timestamp.Signed.Expires = now.Add(7 * day)
		w.repo.Publish("timestamp")
		w.refresh(0)
		w.repo.Publish("targets", "snapshot")
		w.repo.Timestamp.Signed.Expires = now.Add(21 * day)
		w.repo.Publish("timestamp")
		w.refreshAt(0, 18*day)
		w.trusts("root 1", "timestamp 3", "snapshot 2", "targets 2")
	})
	t.Run("local rollback", func(t *testing.T) {
		// An expired local timestamp still protects from older ones.
		w := start(t)
		now := time.Now().UTC().Truncate(time.Second)
		w.repo.Timestamp.Signed.Expires = now.Add(7 * day)
		w.repo.Publish("timestamp", "timestamp")
		w.refresh(0)
		w.repo.SetVersion("timestamp", 1)
		w.repo.Timestamp.Signed.Expires = now.Add(21 * day)
		w.repo.Republish("timestamp")
		w.refreshAt(1, 18*day)
		w.trusts("root 1", "timestamp 3", "snapshot 1", "targets 1")
	})
}
