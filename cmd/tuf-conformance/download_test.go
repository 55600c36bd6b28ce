package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
)

func TestDownload(t *testing.T) {
	for _, path := range []string{"target_file.txt", "path/to/a/target_file.txt"} {
		t.Run(path, func(t *testing.T) {
			w := start(t)
			w.repo.AddArtifact("targets", path, []byte("target file contents"))
			w.repo.Publish(topLevel...)
			w.refresh(0)
			w.downloaded()
			w.download(0, path)
			w.downloaded("target file contents")
		})
	}
}

func TestDownloadRefusesSubstitutes(t *testing.T) {
	for name, bad := range map[string]string{
		"other": "malicious data - should not download", "shorter": "x", "longer": "target file contents and more",
		"as long": "tarGet file contents", "empty": "",
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t)
			w.repo.AddArtifact("targets", "one", []byte("target file contents"))
			w.repo.AddArtifact("targets", "two", []byte("target file content2"))
			w.repo.Publish(topLevel...)
			w.download(0, "one")
			w.repo.Artifacts["one"], w.repo.Artifacts["two"] = []byte(bad), []byte(bad)
			w.repo.ResetRequests()
			w.download(0, "one") // it is there
			w.requested("2.root.json", "timestamp.json")
			w.downloaded("target file contents")
			w.download(1, "two")
			w.downloaded("target file contents")
		})
	}
}

func TestDownloadFollowsChanges(t *testing.T) {
	w := start(t)
	last := "contents"
	w.repo.AddArtifact("targets", "file", []byte(last))
	w.repo.Publish(topLevel...)
	w.download(0, "file")
	have := []string{}
	for i := range 11 {
		next := fmt.Sprintf("modified contents %d", i)
		w.repo.AddArtifact("targets", "file", []byte(next))
		added := fmt.Sprintf("new contents %d", i)
		w.repo.AddArtifact("targets", fmt.Sprintf("new-%d", i), []byte(added))
		w.repo.Publish(topLevel...)
		if i%5 != 0 {
			continue
		}
		w.download(0, "file")
		w.download(0, fmt.Sprintf("new-%d", i))
		have = append(have, added)
		w.downloaded(append([]string{next}, have...)...)
		w.repo.Artifacts["file"] = []byte("malicious")
		w.repo.Publish(topLevel...)
		w.download(0, "file")
		w.downloaded(append([]string{next}, have...)...)
	}
}

func TestHashAlgorithms(t *testing.T) {
	for _, algorithms := range [][]string{{"sha256"}, {"sha512"}, {"sha256", "sha512"}} {
		t.Run(strings.Join(algorithms, " "), func(t *testing.T) {
			w := start(t)
			w.repo.AddArtifact("targets", "file", []byte("content"), algorithms...)
			w.repo.Publish(topLevel...)
			w.download(0, "file")
			sum := tuftest.Hash(algorithms[0], []byte("content"))
			w.lastRequest(fmt.Sprintf("targets/%x.file", sum))
			w.downloaded("content")
		})
	}
	t.Run("one of two is wrong", func(t *testing.T) {
		w := start(t)
		w.repo.AddArtifact("targets", "file", []byte("content"), "sha256", "sha512")
		w.repo.Targets["targets"].Signed.Targets["file"].Hashes["sha512"] = tuftest.Hash("sha512", []byte("x"))
		w.repo.Publish(topLevel...)
		w.download(1, "file")
		w.downloaded()
	})
	t.Run("unknown", func(t *testing.T) {
		w := start(t)
		w.repo.AddArtifact("targets", "file", []byte("content"), "unknown-hash")
		w.repo.Publish(topLevel...)
		w.download(1, "file")
		w.downloaded()
	})
}

func TestInconsistentSnapshots(t *testing.T) {
	w := newWorld(t)
	w.repo.Root.Signed.ConsistentSnapshot = false
	w.repo.Delegate("targets", tuftest.Delegation{Role: "a/b", Paths: []string{"d/*"}})
	w.repo.AddArtifact("a/b", "d/file", []byte("content"))
	w.repo.Published["root"] = nil
	w.repo.Publish("root")
	w.repo.PublishAll()
	w.init(0)
	w.download(0, "d/file")
	w.requested("2.root.json", "timestamp.json", "snapshot.json", "targets.json", "a%2Fb.json", "targets/d/file")
	w.downloaded("content")
}

// The whole of a rollover from the old naming to the new.
func TestConsistentSnapshotsLater(t *testing.T) {
	w := newWorld(t)
	w.repo.Root.Signed.ConsistentSnapshot = false
	w.repo.Published["root"] = nil
	w.repo.Publish("root")
	w.init(0)
	w.refresh(0)
	w.requested("2.root.json", "timestamp.json", "snapshot.json", "targets.json")
	w.repo.Root.Signed.ConsistentSnapshot = true
	w.repo.Publish("root", "targets", "snapshot", "timestamp")
	w.refresh(0)
	w.requested("2.root.json", "3.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json")
}

func TestSeveralTargetsStopAtTheFirstFailure(t *testing.T) {
	w := start(t)
	for _, name := range []string{"a", "b", "c"} {
		w.repo.AddArtifact("targets", name, []byte(name))
	}
	w.repo.Publish(topLevel...)
	w.download(0, "b", "a")
	w.downloaded("a", "b")
	w.download(1, "a", "missing", "c")
	w.downloaded("a", "b")
	w.download(0, "a", "b", "c")
	w.downloaded("a", "b", "c")
}

func TestForbiddenRootMeansNoNewerRoot(t *testing.T) {
	w := start(t)
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		if strings.HasSuffix(req.URL.Path, "2.root.json") {
			http.Error(rw, "AccessDenied", http.StatusForbidden) // as an S3 bucket without list permission does
			return
		}
		w.repo.ServeHTTP(rw, req)
	}))
	defer server.Close()
	w.url = server.URL
	w.refresh(0)
}

func TestServerErrors(t *testing.T) {
	pages := map[string]http.HandlerFunc{
		"500": func(rw http.ResponseWriter, _ *http.Request) { http.Error(rw, "no", http.StatusInternalServerError) },
		"captive portal": func(rw http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(rw, "<!DOCTYPE html><html>Please log in</html>")
		},
		"empty": func(http.ResponseWriter, *http.Request) {},
		"cut": func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Length", "1000")
			fmt.Fprint(rw, `{"signed":`)
		},
		"endless": func(rw http.ResponseWriter, req *http.Request) {
			page := make([]byte, 64<<10)
			for req.Context().Err() == nil {
				if _, err := rw.Write(page); err != nil {
					return
				}
			}
		},
	}
	for name, page := range pages {
		for _, file := range []string{"2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json", "targets/"} {
			t.Run(name+" "+file, func(t *testing.T) {
				w := start(t)
				w.repo.AddArtifact("targets", "a", []byte("content"))
				w.repo.SetLatest("targets", w.repo.Sign("targets"))
				server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
					if strings.Contains(req.URL.Path, file) {
						page(rw, req)
						return
					}
					w.repo.ServeHTTP(rw, req)
				}))
				defer server.Close()
				w.url = server.URL
				w.download(1, "a")
				w.downloaded()
				if name == "captive portal" && file == "timestamp.json" && !strings.Contains(w.stderr, "a web page instead") {
					t.Errorf("error %q does not say what is wrong", w.stderr)
				}
			})
		}
	}
}

func TestDelegatedExpiry(t *testing.T) {
	delegated := func(w *world, expires time.Time) {
		w.repo.Delegate("targets", tuftest.Delegation{Role: "delegated", Paths: []string{"d/*"}})
		w.repo.Targets["delegated"].Signed.Expires = expires
		w.repo.AddArtifact("delegated", "d/first", []byte("first"))
		w.repo.AddArtifact("delegated", "d/second", []byte("second"))
		w.repo.Publish("delegated", "targets", "snapshot", "timestamp")
	}
	in := func(days int) time.Time { return time.Now().UTC().Truncate(time.Second).AddDate(0, 0, days) }
	t.Run("when first seen", func(t *testing.T) {
		w := start(t)
		delegated(w, past(1))
		w.refresh(0)
		w.download(1, "d/first")
		w.downloaded()
		w.trusts("root 1", "timestamp 2", "snapshot 2", "targets 2")
	})
	t.Run("later", func(t *testing.T) {
		w := start(t)
		delegated(w, in(7))
		w.download(0, "d/first")
		w.downloadAt(1, 18*day, "d/second")
		w.downloaded("first")
	})
	t.Run("later, with an update", func(t *testing.T) {
		w := start(t)
		delegated(w, in(7))
		w.download(0, "d/first")
		w.repo.Targets["delegated"].Signed.Expires = in(21)
		w.repo.Publish("delegated", "snapshot", "timestamp")
		w.downloadAt(0, 18*day, "d/second")
		w.downloaded("first", "second")
	})
}
