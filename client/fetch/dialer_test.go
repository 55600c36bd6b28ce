package fetch_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/tuf"
)

// Names that others than the machine's owner gave do not lead back into it.
func TestOnlyKnownHostsMayBeInside(t *testing.T) {
	inside := listen(t, (*httptest.Server).Start)
	u, err := url.Parse(inside.URL)
	if err != nil {
		t.Fatal(err)
	}
	viaName := "http://localhost:" + u.Port()
	for _, c := range []struct {
		name    string
		inside  []string
		proxied bool
		url     string
		ok      bool
	}{
		{"no bound", nil, false, inside.URL, true},
		{"known with its port", []string{u.Host}, false, inside.URL, true},
		{"known", []string{u.Hostname()}, false, inside.URL, true},
		{"not known", []string{"mirror.example"}, false, inside.URL, false},
		{"not known, by a name that leads there", []string{"mirror.example"}, false, viaName, false},
		{"not known, by its IPv4 address in IPv6", []string{"mirror.example"}, false, "http://[::ffff:127.0.0.1]:" + u.Port(), false},
		{"another known one is on this machine", []string{"localhost:1"}, false, inside.URL, true},
		{"link-local, even then", []string{"localhost:1"}, false, "http://169.254.169.254", false},
		{"multicast, even then", []string{"localhost:1"}, false, "http://224.0.0.1", false},
		{"everywhere, even then", []string{"localhost:1"}, false, "http://0.0.0.0:" + u.Port(), false},
		{"through a proxy on this machine", []string{"mirror.example"}, true, "http://mirror.example", true},
	} {
		o := quick
		o.Inside = c.inside
		o.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
		if c.proxied {
			o.Proxy = func(*http.Request) (*url.URL, error) { return u, nil }
		}
		_, err := fetch.New(o).Metadata(c.url).FetchMetadata(t.Context(), "1.json", 100)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, tuf.ErrOffline) {
			t.Errorf("%s: %v", c.name, err)
		}
	}

	// Nor by a redirect of a server outside, which a proxy stands for here.
	outside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, inside.URL+"/admin", http.StatusFound)
	}))
	defer outside.Close()
	o := quick
	o.Inside = []string{"mirror.example"}
	o.Proxy = func(r *http.Request) (*url.URL, error) {
		if r.URL.Host == "mirror.example" {
			return url.Parse(outside.URL)
		}
		return nil, nil
	}
	if _, err := fetch.New(o).Metadata("http://mirror.example").FetchMetadata(t.Context(), "1.json", 100); !errors.Is(err, tuf.ErrOffline) {
		t.Errorf("a redirect: %v", err)
	}
}
