package fetch_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// quick is patience for tests.
var quick = fetch.Options{
	Stall: 200 * time.Millisecond, RateWindow: 150 * time.Millisecond, MinRate: 20 << 10,
	Attempts: 2, BackoffMin: time.Millisecond, BackoffMax: 4 * time.Millisecond,
}

// object is a file and what is signed about it.
type object struct {
	data   []byte
	hashes map[string]string
	blocks []byte
}

func newObject(n int) object {
	data := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(data)
	return newObjectOf(data)
}

func newObjectOf(data []byte) object {
	o := object{data: data}
	sum := sha256.Sum256(o.data)
	o.hashes = map[string]string{"sha256": hex.EncodeToString(sum[:])}
	for rest := o.data; len(rest) > 0; {
		b := rest[:min(len(rest), layout.BlockSize)]
		sum := sha256.Sum256(b)
		o.blocks = append(o.blocks, sum[:]...)
		rest = rest[len(b):]
	}
	return o
}

// mirror is a server with a fault of its own.
type mirror struct {
	http.HandlerFunc
	url string

	mu     sync.Mutex // guards the rest
	ranges []string   // Range of each request
}

func newMirror(t *testing.T, h http.HandlerFunc) *mirror {
	m := &mirror{HandlerFunc: h}
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		m.ranges = append(m.ranges, r.Header.Get("Range"))
		m.mu.Unlock()
		h(w, r)
	}))
	t.Cleanup(ts.Close)
	t.Cleanup(ts.CloseClientConnections)
	m.url = ts.URL + "/object"
	return m
}

func (m *mirror) seen() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.ranges...)
}

// good serves as it should.
func good(o object) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"`+o.hashes["sha256"]+`"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(o.data))
	}
}

// cutAfter serves n bytes of each answer and drops the connection.
func cutAfter(o object, n int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		good(o)(&limited{ResponseWriter: w, left: n}, r)
	}
}

type limited struct {
	http.ResponseWriter
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if len(p) >= l.left {
		l.ResponseWriter.Write(p[:l.left])
		http.NewResponseController(l.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	l.left -= len(p)
	return l.ResponseWriter.Write(p)
}

// flipped serves with a wrong bit at an offset.
func flipped(o object, at int) http.HandlerFunc {
	bad := o
	bad.data = bytes.Clone(o.data)
	bad.data[at] ^= 1
	return good(bad)
}

// body answers 200 with fixed bytes.
func body(contentType string, data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		w.Write(data)
	}
}

// endless never stops, and says no length.
func endless(o object) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Write(o.data)
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 4<<10)); err != nil {
				return
			}
		}
	}
}

// silent sends the head and n bytes, then nothing.
func silent(o object, n int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(o.data)))
		w.Write(o.data[:n])
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}

// drip sends a byte every few milliseconds.
func drip(o object) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(o.data)))
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for i := range o.data {
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			}
			w.Write(o.data[i : i+1])
			http.NewResponseController(w).Flush()
		}
	}
}

// rangeOf is the offset that a request asks from, 0 for all.
func rangeOf(r *http.Request) int {
	s, _ := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	from, _, _ := strings.Cut(s, "-")
	n, _ := strconv.Atoi(from)
	return n
}

// lyingRange cuts the first answer and says the wrong thing in the next.
func lyingRange(o object, contentRange func(from int) string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		from := rangeOf(r)
		if from == 0 {
			cutAfter(o, 3<<20)(w, r)
			return
		}
		w.Header().Set("Content-Range", contentRange(from))
		w.WriteHeader(http.StatusPartialContent)
		w.Write(o.data[from:])
	}
}

func request(t *testing.T, o object, urls ...string) fetch.Request {
	return fetch.Request{URLs: urls, Length: int64(len(o.data)), Hashes: o.hashes, Dest: filepath.Join(t.TempDir(), "file")}
}

// want checks that the file is there, right, and alone.
func want(t *testing.T, r fetch.Request, o object) {
	t.Helper()
	got, err := os.ReadFile(r.Dest)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, o.data) {
		t.Fatal("the file is not the one that was signed")
	}
	wantFiles(t, r, "file")
}

func wantFiles(t *testing.T, r fetch.Request, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(r.Dest))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(names) {
		t.Fatalf("files left: %q, want %q", got, names)
	}
}
