package upstream_test

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/patchkeep/patchkeep/mirror/upstream"
)

// TestCredentials: an upstream over TLS is shown the token and the certificate
// of the moment, and nobody else is.
func TestCredentials(t *testing.T) {
	var stranger atomic.Int64 // requests with a token
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			stranger.Add(1)
		}
		w.Write(body)
	}))
	t.Cleanup(other.Close)
	type seen struct {
		authorization string
		certs         int
	}
	var last atomic.Pointer[seen]
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		last.Store(&seen{r.Header.Get("Authorization"), len(r.TLS.PeerCertificates)})
		if strings.HasPrefix(r.URL.Path, "/away/") {
			http.Redirect(w, r, other.URL+r.URL.Path, http.StatusFound)
			return
		}
		w.Write(body)
	}))
	srv.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	srv.StartTLS()
	t.Cleanup(srv.Close)

	token, cert := "", (*tls.Certificate)(nil)
	creds := upstream.Credentials{
		Token:       func() string { return token },
		Certificate: func() *tls.Certificate { return cert },
		Authorities: x509.NewCertPool(),
	}
	open := func(ref string) upstream.Upstream {
		u, err := creds.Open(t.Context(), ref, patient)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	fetch := func(u upstream.Upstream) error {
		_, err := u.FetchMetadata(t.Context(), "timestamp.json", 100)
		return err
	}
	if err := fetch(open(srv.URL)); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a server that nobody vouches for: %v", err)
	}
	creds.Authorities.AddCert(srv.Certificate())
	u := open(srv.URL)
	if err := fetch(u); err != nil || *last.Load() != (seen{}) {
		t.Errorf("without credentials: %v, %+v", err, last.Load())
	}
	token = "first"
	if err := fetch(u); err != nil || *last.Load() != (seen{"Bearer first", 0}) {
		t.Errorf("with a token: %v, %+v", err, last.Load())
	}
	token, cert = "second", &srv.TLS.Certificates[0]
	u = open(srv.URL) // a connection keeps its certificate
	if err := fetch(u); err != nil || *last.Load() != (seen{"Bearer second", 1}) {
		t.Errorf("with both: %v, %+v", err, last.Load())
	}
	if rc, _, err := u.OpenTarget(t.Context(), "targets/x", 0); err != nil || last.Load().authorization != "Bearer second" {
		t.Errorf("a target: %v, %+v", err, last.Load())
	} else {
		rc.Close()
	}
	if err := fetch(open(srv.URL + "/away")); err != nil || stranger.Load() != 0 || last.Load().authorization == "" {
		t.Errorf("redirected: %v, %d requests with the token", err, stranger.Load())
	}

	for ref, ok := range map[string]bool{
		"https://example.com": true, "http://127.0.0.1:1": true, "http://[::1]:1": true, "http://localhost": true,
		"http://example.com": false, "http://127.0.0.1.example.com": false, "http://10.0.0.1": false,
	} {
		if _, err := creds.Open(t.Context(), ref, patient); (err == nil) != ok {
			t.Errorf("a token for %s: %v", ref, err)
		}
	}
}
