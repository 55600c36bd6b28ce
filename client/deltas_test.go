package client_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/client"
	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/repo/delta"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// deltaWorld is a server with a patch, and a delta that makes it out of a file
// that is here.
type deltaWorld struct {
	*server
	old, next []byte
	delta     []byte
	path      string // target path of the delta
	info      delta.Info
	base      string // file
	dir       string
	dest      string
}

func sum(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

func noise(n int, seed byte) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func newDeltaWorld(t testing.TB) *deltaWorld {
	t.Helper()
	w := &deltaWorld{server: newServer(t), old: noise(300_000, 1), dir: t.TempDir()}
	w.next = append(append(bytes.Clone(w.old[:100_000]), noise(5000, 2)...), w.old[90_000:]...)
	w.base, w.dest = filepath.Join(t.TempDir(), "base"), filepath.Join(w.dir, "f")
	if err := os.WriteFile(w.base, w.old, 0o600); err != nil {
		t.Fatal(err)
	}
	w.Delegate("targets", tuftest.Delegation{
		Role: "product-hello", Paths: layout.ProductPatterns("hello"), Terminating: true,
		Keys: []*tuftest.Key{tuftest.NewKey(tuftest.Ed25519)},
	})
	w.AddArtifact("product-hello", patchPath, w.next)
	w.delta = makeDelta(t, w.old, w.next)
	var err error
	if w.path, err = layout.DeltaPath(patchPath, sum(w.old)); err != nil {
		t.Fatal(err)
	}
	w.info = delta.Info{
		Format: 1, From: "1.0", BaseSHA256: sum(w.old), BaseLength: int64(len(w.old)),
		SHA256: sum(w.next), Length: int64(len(w.next)), Memory: delta.Memory,
	}
	w.sign(t, "product-hello")
	return w
}

func makeDelta(t testing.TB, base, target []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := delta.Make(t.Context(), &b, base, target, math.MaxInt64); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sign makes what the world says of the delta what a role says.
func (w *deltaWorld) sign(t testing.TB, role string) {
	t.Helper()
	raw, err := json.Marshal(map[string]any{"patchkeep-delta": w.info})
	if err != nil {
		t.Fatal(err)
	}
	w.AddArtifact(role, w.path, w.delta)
	w.Targets[role].Signed.Targets[w.path].Custom = (*json.RawMessage)(&raw)
	w.PublishAll()
}

func (w *deltaWorld) open(t testing.TB) *client.Client {
	return open(t, client.Config{Root: w.root, Mirrors: []string{w.url}, Fetch: quick})
}

// download expects the right file, whatever was in the way, and nothing else.
func (w *deltaWorld) download(t testing.TB, base fetch.Base) fetch.Result {
	t.Helper()
	_ = os.Remove(w.dest)
	_, res, err := w.open(t).Download(t.Context(), patchPath, w.dest, client.DownloadOptions{Bases: []fetch.Base{base}})
	if err != nil {
		t.Fatal(err)
	}
	w.check(t)
	return res
}

func (w *deltaWorld) check(t testing.TB) {
	t.Helper()
	if got, err := os.ReadFile(w.dest); err != nil || !bytes.Equal(got, w.next) {
		t.Errorf("wrong file: %d bytes, %v", len(got), err)
	}
	entries, err := os.ReadDir(w.dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left beside the file: %v, %v", entries, err)
	}
}

func TestDeltaIsUsed(t *testing.T) {
	w := newDeltaWorld(t)
	for _, known := range []string{sum(w.old), ""} {
		res := w.download(t, fetch.Base{Path: w.base, SHA256: known})
		if !res.Delta || res.Bytes != int64(len(w.delta)) || res.Copied < 290_000 || len(res.From()) != 1 {
			t.Errorf("base with hash %q: %+v; the delta has %d bytes", known, res, len(w.delta))
		}
	}
	var last, total int64
	_ = os.Remove(w.dest)
	_, _, err := w.open(t).Download(t.Context(), patchPath, w.dest, client.DownloadOptions{
		Bases:    []fetch.Base{{Path: "nothing"}, {Path: w.base}},
		Progress: func(done, of int64) { last, total = done, of },
	})
	if err != nil || last != int64(len(w.next)) || total != last {
		t.Errorf("progress ended with %d of %d, %v", last, total, err)
	}
}

func TestSmallestDelta(t *testing.T) {
	w := newDeltaWorld(t)
	large := len(w.delta)
	closer := append(bytes.Clone(w.next), 'x')
	other := filepath.Join(t.TempDir(), "closer")
	if err := os.WriteFile(other, closer, 0o600); err != nil {
		t.Fatal(err)
	}
	w.delta = makeDelta(t, closer, w.next)
	w.path, _ = layout.DeltaPath(patchPath, sum(closer))
	w.info.BaseSHA256, w.info.BaseLength = sum(closer), int64(len(closer))
	w.sign(t, "product-hello")
	_, res, err := w.open(t).Download(t.Context(), patchPath, w.dest, client.DownloadOptions{Bases: []fetch.Base{{Path: w.base}, {Path: other}}})
	if err != nil || !res.Delta || res.Bytes != int64(len(w.delta)) {
		t.Errorf("%+v, %v; the deltas have %d and %d bytes", res, err, large, len(w.delta))
	}
	w.check(t)
}

// Whatever is wrong with a delta, or with the base, the whole file comes.
func TestDeltaFaults(t *testing.T) {
	resign := func(change func(w *deltaWorld)) func(testing.TB, *deltaWorld) {
		return func(t testing.TB, w *deltaWorld) {
			change(w)
			w.sign(t, "product-hello")
		}
	}
	rewrite := func(content []byte) func(testing.TB, *deltaWorld) {
		return func(t testing.TB, w *deltaWorld) {
			if err := os.WriteFile(w.base, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	serve := func(answer func(w http.ResponseWriter, d *deltaWorld)) func(testing.TB, *deltaWorld) {
		return func(_ testing.TB, d *deltaWorld) {
			d.setEvil(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, ".delta") {
					return false
				}
				answer(w, d)
				return true
			})
		}
	}
	for name, change := range map[string]func(testing.TB, *deltaWorld){
		"it is not published": func(_ testing.TB, w *deltaWorld) {
			delete(w.Targets["product-hello"].Signed.Targets, w.path)
			w.PublishAll()
		},
		"the base is changed":  rewrite(noise(300_000, 9)),
		"the base is shorter":  rewrite(noise(1000, 1)),
		"the base is longer":   rewrite(noise(300_001, 1)),
		"the base is empty":    rewrite(nil),
		"the base is gone":     func(_ testing.TB, w *deltaWorld) { os.Remove(w.base) },
		"the base is a folder": func(_ testing.TB, w *deltaWorld) { os.Remove(w.base); _ = os.Mkdir(w.base, 0o700) },
		"another role signed it": func(t testing.TB, w *deltaWorld) {
			delete(w.Targets["product-hello"].Signed.Targets, w.path)
			w.sign(t, "targets")
		},
		"nothing is said of it": func(_ testing.TB, w *deltaWorld) {
			w.Targets["product-hello"].Signed.Targets[w.path].Custom = nil
			w.PublishAll()
		},
		"it makes another file":       resign(func(w *deltaWorld) { w.info.SHA256 = sum(w.old) }),
		"it makes a longer file":      resign(func(w *deltaWorld) { w.info.Length++ }),
		"it is made of another base":  resign(func(w *deltaWorld) { w.info.BaseSHA256 = sum(w.next) }),
		"its base only begins like":   resign(func(w *deltaWorld) { w.info.BaseSHA256 = w.info.BaseSHA256[:16] + sum(w.next)[16:] }),
		"its base has another length": resign(func(w *deltaWorld) { w.info.BaseLength-- }),
		"it takes too much memory":    resign(func(w *deltaWorld) { w.info.Memory = 64<<20 + 1 }),
		"its format is newer":         resign(func(w *deltaWorld) { w.info.Format = 2 }),
		"it is larger than the file":  resign(func(w *deltaWorld) { w.delta = noise(len(w.next), 5) }),
		"it is no delta":              resign(func(w *deltaWorld) { w.delta = noise(1000, 5) }),
		"it is empty":                 resign(func(w *deltaWorld) { w.delta = nil }),
		"it is cut off":               resign(func(w *deltaWorld) { w.delta = w.delta[:len(w.delta)/2] }),
		"it makes too much":           resign(func(w *deltaWorld) { w.delta = makeDelta(t, w.old, append(bytes.Clone(w.next), 'x')) }),
		"it makes too little":         resign(func(w *deltaWorld) { w.delta = makeDelta(t, w.old, w.next[:len(w.next)-1]) }),
		"it makes something else":     resign(func(w *deltaWorld) { w.delta = makeDelta(t, w.old, append([]byte("x"), w.next[1:]...)) }),
		"the mirror has it not":       serve(func(w http.ResponseWriter, _ *deltaWorld) { w.WriteHeader(http.StatusNotFound) }),
		"the mirror fails":            serve(func(w http.ResponseWriter, _ *deltaWorld) { w.WriteHeader(http.StatusBadGateway) }),
		"the mirror sends less":       serve(func(w http.ResponseWriter, d *deltaWorld) { _, _ = w.Write(d.delta[1:]) }),
		"the mirror sends more":       serve(func(w http.ResponseWriter, d *deltaWorld) { _, _ = w.Write(append(bytes.Clone(d.delta), 0)) }),
		"the mirror flips a bit": serve(func(w http.ResponseWriter, d *deltaWorld) {
			b := bytes.Clone(d.delta)
			b[len(b)/2] ^= 1
			_, _ = w.Write(b)
		}),
		"the mirror cuts it": serve(func(w http.ResponseWriter, d *deltaWorld) {
			w.Header().Set("Content-Length", fmt.Sprint(len(d.delta)))
			_, _ = w.Write(d.delta[:len(d.delta)/2])
			panic(http.ErrAbortHandler)
		}),
	} {
		t.Run(name, func(t *testing.T) {
			w := newDeltaWorld(t)
			known := fetch.Base{Path: w.base, SHA256: sum(w.old)} // as it was
			change(t, w)
			res := w.download(t, known)
			if res.Delta || res.Bytes < int64(len(w.next)) {
				t.Errorf("%+v", res)
			}
		})
	}
}

// A signed delta with any bit wrong makes no wrong file.
func TestDamagedDeltaFallsBack(t *testing.T) {
	w := newDeltaWorld(t)
	good := w.delta
	for i := range 40 {
		w.delta = bytes.Clone(good)
		w.delta[i*(len(good)-1)/39] ^= 1 << (i % 8)
		w.sign(t, "product-hello")
		w.download(t, fetch.Base{Path: w.base, SHA256: sum(w.old)}) // some bits mean nothing
	}
}

// The caller's end is no fault of the delta: nothing else is tried, and the next
// time goes on.
func TestDeltaIsCanceled(t *testing.T) {
	w := newDeltaWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var whole bool
	w.setEvil(func(rw http.ResponseWriter, r *http.Request) bool {
		whole = whole || strings.HasSuffix(r.URL.Path, ".hello.bin")
		if ctx.Err() != nil || !strings.HasSuffix(r.URL.Path, ".delta") {
			return false
		}
		rw.Header().Set("Content-Length", fmt.Sprint(len(w.delta)))
		_, _ = rw.Write(w.delta[:1000])
		cancel()
		<-r.Context().Done()
		return true
	})
	o := client.DownloadOptions{Bases: []fetch.Base{{Path: w.base}}}
	if _, _, err := w.open(t).Download(ctx, patchPath, w.dest, o); err == nil || ctx.Err() == nil || whole {
		t.Fatalf("%v; the whole file was asked for: %t", err, whole)
	}
	if _, err := os.Stat(w.dest); err == nil {
		t.Error("there is a file")
	}
	if _, res, err := w.open(t).Download(t.Context(), patchPath, w.dest, o); err != nil || !res.Delta {
		t.Errorf("%+v, %v", res, err)
	}
	w.check(t)
}

// What killed processes have left beside the file is gone when it is there,
// whichever way it came.
func TestNothingIsLeft(t *testing.T) {
	for _, withBase := range []bool{true, false} {
		w := newDeltaWorld(t)
		for _, ending := range []string{".part", ".part.json", ".made.part", ".delta", ".delta.part", ".delta.part.json"} {
			if err := os.WriteFile(w.dest+ending, noise(1000, 7), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		base := fetch.Base{Path: w.base}
		if !withBase {
			base.Path = "none"
		}
		if res := w.download(t, base); res.Delta != withBase {
			t.Errorf("%+v", res)
		}
	}
}

// To look for a delta takes no request.
func TestNoDeltaCostsNothing(t *testing.T) {
	w := newDeltaWorld(t)
	delete(w.Targets["product-hello"].Signed.Targets, w.path)
	w.PublishAll()
	count := func(o client.DownloadOptions) int64 {
		_ = os.Remove(w.dest)
		before := w.requests.Load()
		if _, _, err := w.open(t).Download(t.Context(), patchPath, w.dest, o); err != nil {
			t.Fatal(err)
		}
		return w.requests.Load() - before
	}
	plain := count(client.DownloadOptions{})
	if with := count(client.DownloadOptions{Bases: []fetch.Base{{Path: w.base}, {Path: w.base, SHA256: sum(w.next)}}}); with != plain {
		t.Errorf("%d requests with bases, %d without", with, plain)
	}
}

// A name that leaves no room for endings does not matter.
func TestLongName(t *testing.T) {
	w := newDeltaWorld(t)
	w.dest = filepath.Join(w.dir, strings.Repeat("x", 255))
	if res := w.download(t, fetch.Base{Path: w.base}); !res.Delta {
		t.Errorf("%+v", res)
	}
}
