package faulty_test

import (
	"bytes"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/patchkeep/patchkeep/client/fetch/faulty"
)

// An honest mirror is one, ranges and all.
func TestHonest(t *testing.T) {
	body := bytes.Repeat([]byte("abcdefg"), 1000)
	n := faulty.New()
	defer n.Close()
	base := n.Add(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/x" {
			http.NotFound(w, r)
			return
		}
		w.Write(body)
	}), faulty.Honest, nil, 1)
	for _, c := range []struct {
		path, asked string
		code        int
		body        []byte
	}{
		{"/x", "", 200, body},
		{"/x", "bytes=10-19", 206, body[10:20]},
		{"/x", "bytes=6000-", 206, body[6000:]},
		{"/x", "bytes=6000-9999", 206, body[6000:]},
		{"/y", "", 404, []byte("404 page not found\n")},
	} {
		req, err := http.NewRequest("GET", base+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.asked != "" {
			req.Header.Set("Range", c.asked)
		}
		resp, err := n.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != c.code || !bytes.Equal(got, c.body) {
			t.Errorf("%s %q: %s, %d bytes, %v", c.path, c.asked, resp.Status, len(got), err)
		}
	}
}

// Every fault can be met, and stopped while a client waits.
func TestFaultsEnd(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range faulty.Faults {
		if f.Name == "" || seen[f.Name] {
			t.Errorf("no name of its own: %q", f.Name)
		}
		seen[f.Name] = true
		synctest.Test(t, func(t *testing.T) {
			n := faulty.New()
			defer n.Close()
			base := n.Add(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 1<<16)) }), f, nil, 1)
			client := *n.Client()
			client.Timeout = time.Minute
			if resp, err := client.Get(base + "/x"); err == nil {
				io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
				resp.Body.Close()
			}
		})
	}
}
