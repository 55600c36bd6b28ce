package mirror_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/mirror/upstream"
)

// gate holds a transfer until it is opened.
type gate struct {
	entered chan struct{} // closed when the first transfer has come
	open    chan struct{}
	once    sync.Once
}

func newGate(up *faults) *gate {
	g := &gate{entered: make(chan struct{}), open: make(chan struct{})}
	up.onTarget(func(_ string, _ int64, body io.ReadCloser, size int64) (io.ReadCloser, int64, error) {
		g.once.Do(func() { close(g.entered) })
		return struct {
			io.Reader
			io.Closer
		}{io.MultiReader(readerFunc(func([]byte) (int, error) { <-g.open; return 0, io.EOF }), body), body}, size, nil
	})
	return g
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// until polls for a state that other goroutines bring about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

func TestManyClientsOneTransfer(t *testing.T) {
	noLeak(t)
	s := newSite(t)
	g := newGate(s.up)
	const clients = 50
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() { s.want(patchA, bytesA) })
	}
	until(t, "all clients waiting", func() bool { return s.m.Status().Fills.Waiting == clients })
	if p := s.m.Status().Progress; len(p) != 1 || p[0].Waiting != clients || p[0].Length != int64(len(bytesA)) {
		t.Errorf("progress: %+v", p)
	}
	close(g.open)
	wg.Wait()
	if n, b := s.up.transfers.Load(), s.up.bytes.Load(); n != 1 || b != int64(len(bytesA)) {
		t.Errorf("%d transfers of %d bytes for %d clients", n, b, clients)
	}
}

// TestFillOutlivesItsClients: all who asked leave; the object comes all the same.
func TestFillOutlivesItsClients(t *testing.T) {
	noLeak(t)
	s := newSite(t)
	g := newGate(s.up)
	ctx, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			req, _ := http.NewRequestWithContext(ctx, "GET", s.srv.URL+urlOf(patchA, bytesA), nil)
			if resp, err := s.srv.Client().Do(req); err == nil {
				resp.Body.Close()
				t.Error("an answer before the bytes were verified")
			}
		})
	}
	<-g.entered
	leave()
	wg.Wait()
	until(t, "the server seeing them leave", func() bool { return s.m.Status().Fills.Waiting == 0 })
	close(g.open)
	until(t, "the object in the cache", func() bool { return s.m.Status().Cache.Objects == 1 })
	s.want(patchA, bytesA)
	if n := s.up.transfers.Load(); n != 1 {
		t.Errorf("%d transfers", n)
	}
}

// TestQueueOfStrangers: a fill that waits for its turn is dropped with its
// last client, and more clients than allowed are told to come later.
func TestQueueOfStrangers(t *testing.T) {
	noLeak(t)
	const first, second = "patches/app/2/any/first", "patches/app/2/any/second"
	data := map[string][]byte{first: content(first, 2<<20), second: content(second, 2<<20)}
	s := newSite(t, func(s *site) {
		s.cfg.MaxFills, s.cfg.MaxWaiters = 1, 2
		for path, d := range data {
			s.repo.AddArtifact("product-app", path, d)
		}
		s.repo.PublishAll()
		export(t, s.repo, s.dir)
	})
	g := newGate(s.up)
	ctx, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { s.want(first, data[first]) })
	<-g.entered
	wg.Go(func() {
		req, _ := http.NewRequestWithContext(ctx, "GET", s.srv.URL+urlOf(second, data[second]), nil)
		if resp, err := s.srv.Client().Do(req); err == nil {
			resp.Body.Close()
		}
	})
	until(t, "a queued fill", func() bool { return s.m.Status().Fills.Queued == 1 })
	if resp, _ := s.get(urlOf(patchA, bytesA)); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one client too many: status %d, Retry-After %q", resp.StatusCode, resp.Header.Get("Retry-After"))
	}
	leave()
	until(t, "the queued fill gone", func() bool { return s.m.Status().Fills.Queued == 0 })
	close(g.open)
	wg.Wait()
	if n := s.up.transfers.Load(); n != 1 {
		t.Errorf("%d transfers, one was dropped", n)
	}
	s.up.onTarget(nil)
	s.want(second, data[second])
}

// bad is how an upstream can fail at handing out an object.
var bad = []struct {
	name   string
	banned bool // it is not asked for that object again
	fn     func(object string, offset int64, body io.ReadCloser, size int64) (io.ReadCloser, int64, error)

	harmless bool // the object is right
}{
	{"corrupt", true, func(_ string, _ int64, body io.ReadCloser, size int64) (io.ReadCloser, int64, error) {
		data, _ := io.ReadAll(body)
		if len(data) > 0 {
			data[len(data)/2] ^= 1
		}
		return io.NopCloser(bytes.NewReader(data)), size, nil
	}, false},
	{"other software", true, func(_ string, offset int64, _ io.ReadCloser, size int64) (io.ReadCloser, int64, error) {
		return io.NopCloser(bytes.NewReader(content("evil", int(size))[offset:])), size, nil
	}, false},
	{"one byte more", true, func(_ string, _ int64, body io.ReadCloser, size int64) (io.ReadCloser, int64, error) {
		return io.NopCloser(io.MultiReader(body, strings.NewReader("x"))), size, nil
	}, true},
	{"one byte more, without a length", true, func(_ string, _ int64, body io.ReadCloser, _ int64) (io.ReadCloser, int64, error) {
		return io.NopCloser(io.MultiReader(body, strings.NewReader("x"))), -1, nil
	}, true},
	{"endless", true, func(string, int64, io.ReadCloser, int64) (io.ReadCloser, int64, error) {
		return io.NopCloser(readerFunc(func(p []byte) (int, error) { return len(p), nil })), -1, nil
	}, false},
	{"another length", true, func(_ string, _ int64, body io.ReadCloser, size int64) (io.ReadCloser, int64, error) {
		return body, size + 1, nil
	}, false},
	{"web page", true, func(string, int64, io.ReadCloser, int64) (io.ReadCloser, int64, error) {
		page := "<html>Please log in to the hotel's network</html>"
		return io.NopCloser(strings.NewReader(page)), int64(len(page)), nil
	}, false},
	{"truncated", false, func(_ string, offset int64, body io.ReadCloser, size int64) (io.ReadCloser, int64, error) {
		return io.NopCloser(io.LimitReader(body, max(1000-offset, 0))), size, nil
	}, false},
	{"breaks at once", false, func(_ string, _ int64, _ io.ReadCloser, size int64) (io.ReadCloser, int64, error) {
		return io.NopCloser(iotest.ErrReader(errors.New("connection reset"))), size, nil
	}, false},
	{"a byte a connection", false, func(_ string, _ int64, body io.ReadCloser, size int64) (io.ReadCloser, int64, error) {
		return io.NopCloser(io.MultiReader(io.LimitReader(body, 1), iotest.ErrReader(errors.New("reset")))), size, nil
	}, false},
	{"not there", false, func(object string, _ int64, _ io.ReadCloser, _ int64) (io.ReadCloser, int64, error) {
		return nil, 0, fmt.Errorf("%s: %w", object, fs.ErrNotExist)
	}, false},
	{"down", false, func(string, int64, io.ReadCloser, int64) (io.ReadCloser, int64, error) { return nil, 0, errDown }, false},
	{"stalls", false, func(_ string, _ int64, _ io.ReadCloser, size int64) (io.ReadCloser, int64, error) {
		r, _ := io.Pipe() // closing ends it
		return r, size, nil
	}, false},
}

// TestBadUpstream: alone, it makes the mirror answer 502 without a byte of the
// object; beside a good one, nobody notices. Nothing wrong comes to the disk.
func TestBadUpstream(t *testing.T) {
	for _, b := range bad {
		t.Run(b.name, func(t *testing.T) {
			noLeak(t)
			s := newSite(t, func(s *site) {
				s.cfg.Upstreams = []upstream.Upstream{upstream.Guard(closing{s.up}, upstream.Limits{Stall: 30 * time.Millisecond, Open: time.Second})}
			})
			s.up.onTarget(b.fn)
			// What was released before is cut off; else it is 502 without a byte of it.
			resp, body, err := s.try("GET", urlOf(patchA, bytesA))
			switch {
			case b.harmless:
				if err != nil || resp.StatusCode != 200 || !bytes.Equal(body, bytesA) {
					t.Errorf("status %d, %d bytes, %v", resp.StatusCode, len(body), err)
				}
				return
			case err == nil && (resp.StatusCode != 502 || len(body) > 100 || resp.Header.Get("Etag") != "" || resp.Header.Get("Cache-Control") != "no-store"):
				t.Errorf("status %d, headers %v, %d bytes", resp.StatusCode, resp.Header, len(body))
			}
			if files := s.files("cas"); len(files) != 0 {
				t.Errorf("left on the disk: %v", files)
			}
			asked := s.up.transfers.Load()
			s.try("GET", urlOf(patchA, bytesA))
			if again := s.up.transfers.Load() - asked; b.banned != (again == 0) {
				t.Errorf("asked %d times again; banned should be %v", again, b.banned)
			}
			s.up.onTarget(nil)
			s.want(patchB, bytesB) // another object of it is another matter
		})
		t.Run(b.name+" beside a good one", func(t *testing.T) {
			noLeak(t)
			var good *faults
			s := newSite(t, func(s *site) {
				good = overDir(t, s.dir)
				good.name = "good"
				s.cfg.Upstreams = []upstream.Upstream{upstream.Guard(closing{s.up}, upstream.Limits{Stall: 30 * time.Millisecond}), good}
			})
			s.up.onTarget(b.fn)
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					s.wantAtLast(patchA, bytesA)
					s.wantAtLast(patchB, bytesB)
					s.wantAtLast(empty, nil)
				})
			}
			wg.Wait()
		})
	}
}

// wantAtLast is want of a client that tries again when its connection is cut.
func (s *site) wantAtLast(path string, data []byte) {
	s.t.Helper()
	for range 3 {
		resp, body, err := s.try("GET", urlOf(path, data))
		if err != nil {
			continue
		}
		if resp.StatusCode != 200 || !bytes.Equal(body, data) {
			s.t.Errorf("GET %s: status %d, %d bytes", path, resp.StatusCode, len(body))
		}
		return
	}
	s.t.Errorf("GET %s: cut off each time", path)
}

// closing ends a pipe's reader when its context does, as a connection would.
type closing struct{ *faults }

func (c closing) OpenTarget(ctx context.Context, object string, offset int64) (io.ReadCloser, int64, error) {
	body, size, err := c.faults.OpenTarget(ctx, object, offset)
	if err == nil {
		context.AfterFunc(ctx, func() { body.Close() })
	}
	return body, size, err
}

// TestResumesWhereItWasCut: the line breaks every 100 kB.
func TestResumesWhereItWasCut(t *testing.T) {
	s := newSite(t)
	var offsets []int64
	s.up.onTarget(func(_ string, offset int64, body io.ReadCloser, size int64) (io.ReadCloser, int64, error) {
		offsets = append(offsets, offset)
		return io.NopCloser(io.MultiReader(io.LimitReader(body, 100_000), iotest.ErrReader(errors.New("reset")))), size, nil
	})
	s.want(patchA, bytesA)
	if fmt.Sprint(offsets) != "[0 100000 200000]" || s.up.bytes.Load() != int64(len(bytesA)) {
		t.Errorf("offsets %v, %d bytes", offsets, s.up.bytes.Load())
	}
}

// TestMixedFault: a first upstream sends a corrupt beginning and breaks off, the
// second the right rest. It is nobody's provable fault, and must end well.
func TestMixedFault(t *testing.T) {
	var good *faults
	s := newSite(t, func(s *site) {
		good = overDir(t, s.dir)
		good.name = "good"
		s.cfg.Upstreams = append(s.cfg.Upstreams, good)
	})
	s.up.onTarget(func(_ string, _ int64, body io.ReadCloser, size int64) (io.ReadCloser, int64, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader(strings.Repeat("evil", 25_000)), iotest.ErrReader(errors.New("reset")))), size, nil
	})
	s.wantAtLast(patchA, bytesA)
}

// TestNoWrongPart: an object without a block list is released before it is
// verified. A client that asks for a part of that is not left with it.
func TestNoWrongPart(t *testing.T) {
	s := newSite(t)
	s.up.onTarget(func(_ string, offset int64, _ io.ReadCloser, size int64) (io.ReadCloser, int64, error) {
		return io.NopCloser(bytes.NewReader(content("evil", int(size))[offset:])), size, nil
	})
	for _, r := range []string{"0-0", "0-999", "1000-20000", "0-9,20-29", "30000-37000"} {
		resp, body, err := s.try("GET", urlOf(patchA, bytesA), "Range", "bytes="+r)
		if err == nil && resp.StatusCode < 400 {
			t.Errorf("%s: status %d with %d wrong bytes", r, resp.StatusCode, len(body))
		}
		s.stop() // forgets the ban
		s.start()
	}
}

// TestSizesOfSameContent: a role that signs a wrong length for content that
// another one signs rightly harms only its own target.
func TestSizesOfSameContent(t *testing.T) {
	s := newSite(t)
	s.publish(func(r *tuftest.Repo) {
		r.Delegate("targets", tuftest.Delegation{Role: "wrong", Paths: []string{"wrong/*"}})
		r.AddArtifact("wrong", "wrong/app.deb", bytesA)
		r.Targets["wrong"].Signed.Targets["wrong/app.deb"].Length--
	})
	must(t, s.m.Refresh(t.Context()))
	for range 2 {
		if resp, _ := s.get(urlOf("wrong/app.deb", bytesA)); resp.StatusCode != 502 {
			t.Errorf("status %d", resp.StatusCode)
		}
		s.want(patchA, bytesA)
	}
}

func TestEviction(t *testing.T) {
	s := newSite(t, func(s *site) { s.cfg.CacheSize = int64(len(bytesA)) + 1000 })
	s.want(patchA, bytesA)
	s.want(empty, nil)
	s.want(patchB, bytesB) // A has to go
	if st := s.m.Status().Cache; st.Bytes > st.Max || st.Evicted == 0 {
		t.Errorf("cache: %+v", st)
	}
	s.want(patchA, bytesA)
	if n := s.up.transfers.Load(); n != 3 { // the empty one needs none
		t.Errorf("%d transfers, want 3", n)
	}
}

// TestFullDisk: what cannot be kept is refused for now; all else is served.
func TestFullDisk(t *testing.T) {
	s := newSite(t, func(s *site) { s.cfg.CacheSize = int64(len(bytesB)) + 1000 })
	s.want(patchB, bytesB)
	if resp, body := s.get(urlOf(patchA, bytesA)); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || len(body) > 100 {
		t.Errorf("object larger than the cache: status %d, %d bytes", resp.StatusCode, len(body))
	}
	s.want(patchB, bytesB)
	if s.up.transfers.Load() != 1 {
		t.Error("the upstream was asked in vain")
	}

	s.stop()
	s.cfg.MinFree = 1 << 60 // more than any disk has
	s.start()
	s.want(patchB, bytesB)
	if resp, _ := s.get(urlOf(empty, nil)); resp.StatusCode != 503 {
		t.Errorf("status %d on a full disk", resp.StatusCode)
	}
	if resp, _ := s.get("/metadata/timestamp.json"); resp.StatusCode != 200 {
		t.Errorf("metadata: status %d on a full disk", resp.StatusCode)
	}
}

// TestCrashLeavings: what a killed mirror leaves is neither served nor kept.
func TestCrashLeavings(t *testing.T) {
	s := newSite(t)
	s.want(patchA, bytesA)
	s.want(patchB, bytesB)
	s.stop()
	sumA := hashOf(bytesA)
	must(t, os.Truncate(filepath.Join(s.cfg.Dir, "cas/sha256", sumA[:2], sumA), 1234))
	must(t, os.WriteFile(filepath.Join(s.cfg.Dir, "tmp", sumA+".1"), bytesA[:100], 0o644))
	must(t, os.WriteFile(filepath.Join(s.cfg.Dir, "metadata", "3.snapshot.json.new"), []byte("{"), 0o644))
	must(t, os.WriteFile(filepath.Join(s.cfg.Dir, "cas/sha256", sumA[:2], "stranger"), []byte("x"), 0o644))
	s.start()
	if files := s.files("tmp"); len(files) != 0 {
		t.Errorf("left: %v", files)
	}
	if files := s.files("metadata"); contains(files, ".new") {
		t.Errorf("left: %v", files)
	}
	s.want(patchA, bytesA)
	s.want(patchB, bytesB)
	if n := s.up.transfers.Load(); n != 3 {
		t.Errorf("%d transfers, want 3: the damaged object once more", n)
	}

	// The same while it runs.
	settled := func() bool { return s.m.Status().Cache.Objects == 2 && s.m.Status().Fills.Transfer == 0 }
	until(t, "both in the cache", settled)
	must(t, os.Truncate(filepath.Join(s.cfg.Dir, "cas/sha256", sumA[:2], sumA), 99))
	s.want(patchA, bytesA)
	until(t, "both in the cache", settled)
	must(t, os.Remove(filepath.Join(s.cfg.Dir, "cas/sha256", sumA[:2], sumA)))
	s.want(patchA, bytesA)
}

func TestOneMirrorADirectory(t *testing.T) {
	s := newSite(t)
	if m, err := mirror.New(t.Context(), s.cfg); !errors.Is(err, mirror.ErrLocked) {
		if err == nil {
			m.Close()
		}
		t.Errorf("a second mirror: %v", err)
	}
	s.want(patchA, bytesA)
}

// TestCloseEndsWaits: nobody hangs on a mirror that goes.
func TestCloseEndsWaits(t *testing.T) {
	noLeak(t)
	s := newSite(t)
	g := newGate(s.up)
	done := make(chan int)
	go func() {
		resp, _, err := s.try("GET", urlOf(patchB, bytesB))
		if err != nil {
			done <- 0
			return
		}
		done <- resp.StatusCode
	}()
	<-g.entered
	close(g.open)
	go s.m.Close()
	if code := <-done; code != 503 && code != 200 {
		t.Errorf("status %d", code)
	}
	s.srv.Close()
	s.m = nil
}
