package fetch_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/tuf"
)

// files serves bytes by escaped path and logs requests.
type files struct {
	content map[string]string // by escaped path
	log     []string
	etag    string
}

func (f *files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.log = append(f.log, r.URL.EscapedPath())
	body, ok := f.content[r.URL.EscapedPath()]
	if !ok {
		http.Error(w, "no", http.StatusNotFound)
		return
	}
	if f.etag != "" {
		w.Header().Set("ETag", f.etag)
		if r.Header.Get("If-None-Match") == f.etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	w.Write([]byte(body))
}

func newFiles(t *testing.T, content map[string]string) (*files, string) {
	f := &files{content: content}
	ts := httptest.NewServer(f)
	t.Cleanup(ts.Close)
	return f, ts.URL + "/metadata/"
}

func TestMetadataNames(t *testing.T) {
	names := []string{"timestamp.json", "1.a%2Fb.json", "1.%2E%2E.json", "2.a%20b.json", "3.%C3%BC.json", "1.%25.json", "1.a+b.json"}
	content := map[string]string{}
	for _, n := range names {
		content["/metadata/"+n] = n
	}
	_, url := newFiles(t, content)
	m := fetch.New(quick).Metadata(url)
	for _, n := range names {
		if got, err := m.FetchMetadata(t.Context(), n, 100); err != nil || string(got) != n {
			t.Errorf("%s: %q, %v", n, got, err)
		}
	}
}

func TestMetadataErrors(t *testing.T) {
	f, url := newFiles(t, map[string]string{"/metadata/big.json": strings.Repeat("x", 101)})
	m := fetch.New(quick).Metadata(url)
	if _, err := m.FetchMetadata(t.Context(), "big.json", 100); !errors.Is(err, tuf.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if _, err := m.FetchMetadata(t.Context(), "2.root.json", 100); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, tuf.ErrOffline) {
		t.Errorf("absent: %v", err)
	}
	if len(f.log) != 2 {
		t.Errorf("asked again for what the answer was clear: %q", f.log)
	}
	down := fetch.New(quick).Metadata("http://127.0.0.1:1")
	if _, err := down.FetchMetadata(t.Context(), "timestamp.json", 100); !errors.Is(err, tuf.ErrOffline) {
		t.Errorf("down: %v", err)
	}
	if _, err := fetch.New(quick).Metadata().FetchMetadata(t.Context(), "timestamp.json", 100); !errors.Is(err, tuf.ErrOffline) {
		t.Errorf("no mirror: %v", err)
	}
}

func TestMetadataFailsOver(t *testing.T) {
	full, url := newFiles(t, map[string]string{"/metadata/timestamp.json": "{}", "/metadata/1.snapshot.json": "{}"})
	lacking, url2 := newFiles(t, nil)
	m := fetch.New(quick).Metadata("http://127.0.0.1:1", url2, url)
	for _, n := range []string{"timestamp.json", "1.snapshot.json"} {
		if _, err := m.FetchMetadata(t.Context(), n, 100); err != nil {
			t.Fatal(err)
		}
	}
	if len(lacking.log) != 1 || len(full.log) != 2 {
		t.Errorf("asked %q and %q: it should stay with the mirror that answered", lacking.log, full.log)
	}
}

// Only the ETag of verified bytes is ever sent: one that came with forged bytes
// would keep the client on them.
func TestValidators(t *testing.T) {
	f, url := newFiles(t, map[string]string{"/metadata/timestamp.json": "forged"})
	f.etag = `"1"`
	m := fetch.New(quick).Metadata(url)
	get := func() string {
		t.Helper()
		got, err := m.FetchMetadata(t.Context(), "timestamp.json", 100)
		if err != nil {
			t.Fatal(err)
		}
		return string(got)
	}
	get()
	m.Confirm([]byte("the one trusted before"))
	f.content["/metadata/timestamp.json"] = "genuine" // under the same ETag
	if got := get(); got != "genuine" {
		t.Errorf("got %q", got)
	}
	m.Confirm([]byte("genuine"))
	f.content["/metadata/timestamp.json"] = "unseen"
	if got := get(); got != "genuine" {
		t.Errorf("got %q: the server said that nothing has changed", got)
	}
	f.etag = `"2"`
	if got := get(); got != "unseen" {
		t.Errorf("got %q", got)
	}
}

func TestDowngradeToHTTP(t *testing.T) {
	_, plain := newFiles(t, map[string]string{"/metadata/timestamp.json": "{}"})
	secure := httptest.NewTLSServer(http.RedirectHandler(plain+"timestamp.json", http.StatusFound))
	t.Cleanup(secure.Close)
	opt := quick
	opt.HTTP = secure.Client()
	m := fetch.New(opt).Metadata(secure.URL)
	if _, err := m.FetchMetadata(t.Context(), "timestamp.json", 100); !errors.Is(err, tuf.ErrOffline) || !strings.Contains(err.Error(), "https to http") {
		t.Errorf("error %v", err)
	}
}

func TestDocument(t *testing.T) {
	o := newObject(1000)
	f := fetch.New(quick)
	bad, fine := newMirror(t, flipped(o, 3)), newMirror(t, good(o))
	got, err := f.Document(t.Context(), []string{bad.url, fine.url}, 1000, o.hashes)
	if err != nil || string(got) != string(o.data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	for _, m := range []*mirror{bad, newMirror(t, endless(o)), newMirror(t, body("", nil))} {
		if _, err := f.Document(t.Context(), []string{m.url}, 1000, o.hashes); !errors.Is(err, fetch.ErrCorrupt) {
			t.Errorf("error %v", err)
		}
	}
}

// What is kept for the next conditional request is the tag of the coding that
// came, and what a server sends in a coding nobody asked for is refused.
func TestMetadataIsAskedForPacked(t *testing.T) {
	plain := []byte(strings.Repeat(`{"signed":"x"}`, 100))
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write(plain)
	z.Close()
	answer := ""
	var asked []string
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Header.Get("Accept-Encoding")+" "+r.Header.Get("If-None-Match"))
		w.Header().Set("ETag", `"tag-`+answer+`"`)
		if r.Header.Get("If-None-Match") == `"tag-`+answer+`"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		if answer != "" {
			w.Header().Set("Content-Encoding", answer)
			w.Write(packed.Bytes())
			return
		}
		w.Write(plain)
	}))
	defer ts.Close()
	m := fetch.New(quick).Metadata(ts.URL)
	for i, c := range []struct {
		encoding, asks string
		ok             bool
	}{
		{"", `zstd, gzip;q=0.9 `, true},
		{"", `zstd, gzip;q=0.9 "tag-"`, true},
		{"gzip", `zstd, gzip;q=0.9 "tag-"`, true}, // another coding: another tag, so the whole comes
		{"gzip", `zstd, gzip;q=0.9 "tag-gzip"`, true},
		{"br", `zstd, gzip;q=0.9 "tag-gzip"`, false},
	} {
		answer, asked = c.encoding, nil
		got, err := m.FetchMetadata(t.Context(), "timestamp.json", int64(len(plain)))
		if c.ok && (err != nil || !bytes.Equal(got, plain)) || !c.ok && !errors.Is(err, tuf.ErrOffline) {
			t.Errorf("%d: %d bytes, %v", i, len(got), err)
		}
		if len(asked) == 0 || asked[0] != c.asks {
			t.Errorf("%d: asked %q, want %q", i, asked, c.asks)
		}
		m.Confirm(got)
	}
	answer = "gzip"
	if _, err := fetch.New(quick).Metadata(ts.URL).FetchMetadata(t.Context(), "timestamp.json", int64(len(plain))-1); !errors.Is(err, tuf.ErrTooLarge) {
		t.Errorf("more than allowed once it is unpacked: %v", err)
	}
}
