package fetch_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/tuf"
)

const secret = "a-token-of-many-characters"

// heard is a server that keeps the Authorization of each request.
type heard struct {
	*httptest.Server
	auth   atomic.Pointer[string]
	answer http.HandlerFunc // nil: {}
}

func listen(t *testing.T, start func(*httptest.Server)) *heard {
	h := &heard{}
	h.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		auth := r.Header.Get("Authorization")
		h.auth.Store(&auth)
		if h.answer != nil {
			h.answer(w, r)
			return
		}
		w.Write([]byte("{}"))
	}))
	start(h.Server)
	t.Cleanup(h.Close)
	return h
}

func (h *heard) token() string {
	if a := h.auth.Load(); a != nil {
		return *a
	}
	return "(not asked)"
}

func authorities(servers ...*heard) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, s := range servers {
		pool.AddCert(s.Certificate())
	}
	return pool
}

func TestTokenGoesToTheServerAlone(t *testing.T) {
	server, other := listen(t, (*httptest.Server).StartTLS), listen(t, (*httptest.Server).StartTLS)
	server.answer = func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/moved.json") {
			http.Redirect(w, r, other.URL+"/x", http.StatusFound)
			return
		}
		w.Write([]byte("{}"))
	}
	o := quick
	o.Credentials = fetch.Credentials{Token: func() string { return secret }, Authorities: authorities(server, other)}
	m := fetch.New(o).Metadata(server.URL)
	for _, name := range []string{"1.json", "moved.json"} {
		if _, err := m.FetchMetadata(t.Context(), name, 100); err != nil {
			t.Fatal(err)
		}
		if got := server.token(); got != "Bearer "+secret {
			t.Errorf("%s: the server heard %q", name, got)
		}
	}
	if got := other.token(); got != "" {
		t.Errorf("where it redirects to, %q was heard", got)
	}

	// In the clear it does not go at all, here by way of a proxy that reads along.
	proxy := listen(t, (*httptest.Server).Start)
	o.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(proxy.URL) }
	if _, err := fetch.New(o).Metadata("http://mirror.example").FetchMetadata(t.Context(), "1.json", 100); err != nil {
		t.Fatal(err)
	}
	if got := proxy.token(); got != "" {
		t.Errorf("in the clear %q was heard", got)
	}
}

func TestErrorsTellNoToken(t *testing.T) {
	server := listen(t, (*httptest.Server).StartTLS)
	server.answer = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }
	o := quick
	o.Credentials = fetch.Credentials{Token: func() string { return secret }, Authorities: authorities(server)}
	_, err := fetch.New(o).Metadata(server.URL).FetchMetadata(t.Context(), "1.json", 100)
	if !errors.Is(err, tuf.ErrOffline) || !strings.Contains(err.Error(), "a token or a certificate") || strings.Contains(err.Error(), secret) {
		t.Errorf("%v", err)
	}
}

// Over TLS it is HTTP/2; a server that asks for it is shown the certificate; one
// whose certificate nobody vouches for is not talked to.
func TestTLS(t *testing.T) {
	var proto, shown atomic.Value
	server := listen(t, func(s *httptest.Server) {
		s.EnableHTTP2 = true
		s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
		s.StartTLS()
	})
	server.answer = func(w http.ResponseWriter, r *http.Request) {
		proto.Store(r.Proto)
		shown.Store(len(r.TLS.PeerCertificates))
		w.Write([]byte("{}"))
	}
	dir := t.TempDir()
	cert, key, ca := filepath.Join(dir, "cert"), filepath.Join(dir, "key"), filepath.Join(dir, "ca")
	pair := server.TLS.Certificates[0]
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		cert: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]},
		ca:   {Type: "CERTIFICATE", Bytes: server.Certificate().Raw},
		key:  {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name  string
		files fetch.CredentialFiles
		shown int
		err   error
	}{
		{"nobody vouches for it", fetch.CredentialFiles{}, 0, tuf.ErrOffline},
		{"authority", fetch.CredentialFiles{Authorities: ca}, 0, nil},
		{"authority and certificate", fetch.CredentialFiles{Authorities: ca, Certificate: cert, Key: key}, 1, nil},
	} {
		o := quick
		if o.Credentials, err = c.files.Load(); err != nil {
			t.Fatal(err)
		}
		_, err := fetch.New(o).Metadata(server.URL).FetchMetadata(t.Context(), "1.json", 100)
		if !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.name, err, c.err)
		}
		if err == nil && (proto.Load() != "HTTP/2.0" || shown.Load() != c.shown) {
			t.Errorf("%s: %v, %v certificates", c.name, proto.Load(), shown.Load())
		}
	}
}

func TestCredentialFiles(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string, mode os.FileMode) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return name
	}
	good := file("token", secret+"\n", 0o640)
	c, err := fetch.CredentialFiles{Token: good}.Load()
	if err != nil || c.Token() != secret {
		t.Fatal(err)
	}
	bad := map[string]fetch.CredentialFiles{
		"no such file":     {Token: filepath.Join(dir, "none")},
		"empty":            {Token: file("empty", "\n", 0o600)},
		"two words":        {Token: file("words", secret+" x", 0o600)},
		"a directory":      {Token: dir},
		"too large":        {Token: file("large", strings.Repeat("x", 2<<20), 0o600)},
		"key alone":        {Key: good},
		"certificate only": {Certificate: good},
		"no certificate":   {Certificate: good, Key: good},
		"no authority":     {Authorities: good},
	}
	if runtime.GOOS != "windows" {
		bad["for all to read"] = fetch.CredentialFiles{Token: file("open", secret, 0o604)}
	}
	for name, f := range bad {
		if _, err := f.Load(); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
