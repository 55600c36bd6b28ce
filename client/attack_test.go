package client_test

import (
	"bytes"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client"
	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/repo/layout"
)

const patchPath = "patches/hello/1.1/any/hello.bin"

// hello publishes a product with one patch of 5 MiB and its block list.
func hello(s *server, content byte) []byte {
	if s.Targets["product-hello"] == nil {
		s.Delegate("targets", tuftest.Delegation{
			Role: "product-hello", Paths: layout.ProductPatterns("hello"), Terminating: true,
			Keys: []*tuftest.Key{tuftest.NewKey(tuftest.Ed25519)},
		})
	}
	data := bytes.Repeat([]byte{content}, 5<<20+7)
	s.AddArtifact("product-hello", patchPath, data)
	s.AddArtifact("product-hello", layout.BlocksPath(patchPath), blockList(data))
	s.PublishAll()
	return data
}

func blockList(data []byte) []byte {
	var list []byte
	for len(data) > 0 {
		n := min(len(data), layout.BlockSize)
		list = append(list, tuftest.Hash("sha256", data[:n])...)
		data = data[n:]
	}
	return list
}

// The attacks of TUF's specification §1.5.2 and those of a mirror, each against
// a client that has refreshed once. (Extraneous dependencies: a patch is one
// file, and what it requires is another signed patch.)
func TestAttacks(t *testing.T) {
	past := time.Now().UTC().Truncate(time.Second).Add(-time.Hour)
	thief := tuftest.NewKey(tuftest.Ed25519)
	// file lets f answer requests for the patch itself.
	file := func(f func(w http.ResponseWriter, r *http.Request, data []byte)) func(*server, []byte) {
		return func(s *server, data []byte) {
			s.setEvil(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasPrefix(r.URL.Path, "/targets/") || !strings.HasSuffix(r.URL.Path, ".hello.bin") {
					return false
				}
				f(w, r, data)
				return true
			})
		}
	}
	// all lets f answer every request.
	all := func(f http.HandlerFunc) func(*server, []byte) {
		return func(s *server, _ []byte) {
			s.setEvil(func(w http.ResponseWriter, r *http.Request) bool { f(w, r); return true })
		}
	}
	for _, a := range []struct {
		name   string
		attack func(s *server, data []byte)
		want   error
	}{
		{"arbitrary software: other bytes of the same length", file(func(w http.ResponseWriter, _ *http.Request, data []byte) {
			w.Write(bytes.Repeat([]byte{'!'}, len(data)))
		}), fetch.ErrCorrupt},
		{"arbitrary software: signed by a stranger", func(s *server, _ []byte) {
			s.Signers["product-hello"] = []*tuftest.Key{thief}
			hello(s, '!')
		}, tuf.ErrNotTrusted},
		{"arbitrary software: a stranger's timestamp", func(s *server, _ []byte) {
			s.Signers["timestamp"] = []*tuftest.Key{thief}
			s.Publish("timestamp")
		}, tuf.ErrNotTrusted},
		{"rollback: an old timestamp again", func(s *server, _ []byte) {
			s.SetLatest("timestamp", s.Published["timestamp"][0])
		}, tuf.ErrNotTrusted},
		{"rollback: an old role under a new snapshot", func(s *server, _ []byte) {
			s.Snapshot.Signed.Meta["product-hello.json"].Version = 1
			s.Publish("snapshot", "timestamp")
		}, tuf.ErrNotTrusted},
		{"freeze", func(s *server, _ []byte) {
			s.Timestamp.Signed.Expires = past
			s.Publish("timestamp")
		}, tuf.ErrExpired},
		{"fast-forward: a thief of the online keys cannot make more than versions", func(s *server, _ []byte) {
			s.SetVersion("snapshot", 1<<40)
			s.Snapshot.Signed.Meta["product-hello.json"].Version = 1 << 40
			s.SetLatest("snapshot", s.Sign("snapshot"))
			s.Timestamp.Signed.Meta["snapshot.json"].Version = 1 << 40
			s.Publish("timestamp")
		}, tuf.ErrOffline},
		{"endless data: metadata", all(flood), tuf.ErrTooLarge},
		{"endless data: file", file(func(w http.ResponseWriter, r *http.Request, data []byte) {
			w.Write(data)
			flood(w, r)
		}), fetch.ErrCorrupt},
		{"slow retrieval: metadata", all(drip), tuf.ErrOffline},
		{"slow retrieval: file", file(func(w http.ResponseWriter, r *http.Request, _ []byte) { drip(w, r) }), tuf.ErrOffline},
		{"slow retrieval: a server that says nothing", all(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), tuf.ErrOffline},
		{"mix-and-match: a role of another snapshot", func(s *server, _ []byte) {
			old := s.Latest("product-hello")
			s.Publish("product-hello", "snapshot", "timestamp")
			s.SetLatest("product-hello", old)
		}, tuf.ErrNotTrusted},
		{"wrong software: another signed file under this name", func(s *server, _ []byte) {
			other := bytes.Repeat([]byte{'2'}, 5<<20+7)
			s.AddArtifact("product-hello", "patches/hello/1.0/any/hello.bin", other)
			s.PublishAll()
			file(func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.Write(other) })(s, nil)
		}, fetch.ErrCorrupt},
		{"wrong software: another product signs this path", func(s *server, _ []byte) {
			s.Delegate("targets", tuftest.Delegation{
				Role: "product-other", Paths: layout.ProductPatterns("other"), Terminating: true, Keys: []*tuftest.Key{thief},
			})
			s.AddArtifact("product-other", patchPath, []byte("!"))
			delete(s.Targets["product-hello"].Signed.Targets, patchPath)
			s.PublishAll()
		}, fs.ErrNotExist},
		{"captive portal: a login page for everything", all(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.Write([]byte("<!DOCTYPE html><title>Hotel</title>"))
		}), fetch.ErrCaptivePortal},
		{"captive portal: a login page for the file", file(func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			w.Write([]byte("<!DOCTYPE html><title>Hotel</title>"))
		}), fetch.ErrCaptivePortal},
		{"malicious mirror: a bit flipped", file(func(w http.ResponseWriter, _ *http.Request, data []byte) {
			bad := bytes.Clone(data)
			bad[3<<20] ^= 1
			w.Write(bad)
		}), fetch.ErrCorrupt},
		{"malicious mirror: truncated", file(func(w http.ResponseWriter, r *http.Request, data []byte) {
			if r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			http.NewResponseController(w).Flush()
			w.Write(data[:4<<20])
		}), fetch.ErrCorrupt},
		{"malicious mirror: a range of elsewhere", file(func(w http.ResponseWriter, r *http.Request, data []byte) {
			if r.Header.Get("Range") == "" {
				w.Header().Set("Content-Length", strconv.Itoa(len(data)))
				w.Write(data[:2<<20])
				panic(http.ErrAbortHandler)
			}
			w.Header().Set("Content-Range", "bytes 0-5242886/5242887")
			w.WriteHeader(http.StatusPartialContent)
			w.Write(data)
		}), fetch.ErrCorrupt},
		{"malicious mirror: round in circles", all(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		}), tuf.ErrOffline},
		{"malicious mirror: nothing is there", all(http.NotFound), tuf.ErrOffline},
		{"malicious mirror: the file is not there", file(func(w http.ResponseWriter, r *http.Request, _ []byte) { http.NotFound(w, r) }), fs.ErrNotExist},
		{"key compromise below the threshold", func(s *server, _ []byte) {
			s.AddKey("targets", thief)
			s.Root.Signed.Roles["targets"].Threshold = 2
			s.Publish("root")
			s.PublishAll() // both sign
			s.Signers["targets"] = []*tuftest.Key{thief}
			s.PublishAll()
		}, tuf.ErrNotTrusted},
		{"key compromise: a root of one's own", func(s *server, _ []byte) {
			s.RotateKeys("root")
			s.Publish("root")
		}, tuf.ErrNotTrusted},
	} {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			hello(s, '0')
			data := hello(s, '1')
			c := open(t, client.Config{Dir: t.TempDir(), Root: s.root, Mirrors: []string{s.url}})
			if err := c.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Target(t.Context(), patchPath); err != nil {
				t.Fatal(err)
			}
			a.attack(s, data)

			dest := filepath.Join(t.TempDir(), "hello.bin")
			err := c.Refresh(t.Context())
			if err == nil {
				_, _, err = c.Download(t.Context(), patchPath, dest, client.DownloadOptions{})
			}
			if !errors.Is(err, a.want) {
				t.Errorf("error %v, want %v", err, a.want)
			}
			if _, err := os.Lstat(dest); !errors.Is(err, fs.ErrNotExist) {
				t.Error("there is a file")
			}

			// And with an honest mirror behind the bad one: what was published.
			if a.want == fetch.ErrCorrupt || a.want == fetch.ErrCaptivePortal {
				honest := &server{Repo: s.Repo}
				c := open(t, client.Config{Root: s.root, Mirrors: []string{s.url, serveHonest(t, honest)}})
				if err := c.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
				if _, _, err := c.Download(t.Context(), patchPath, dest, client.DownloadOptions{}); err != nil {
					t.Fatal(err)
				}
				if got, _ := os.ReadFile(dest); !bytes.Equal(got, data) {
					t.Error("the file is not what was published")
				}
			}
		})
	}
}

func flood(w http.ResponseWriter, r *http.Request) {
	for r.Context().Err() == nil {
		if _, err := w.Write(make([]byte, 4<<10)); err != nil {
			return
		}
	}
}

func drip(w http.ResponseWriter, r *http.Request) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			w.Write([]byte("x"))
			http.NewResponseController(w).Flush()
		case <-r.Context().Done():
			return
		}
	}
}
