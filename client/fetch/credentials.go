package fetch

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"strings"
)

// Credentials say how a client makes itself known to servers, and whom it takes
// for them. The functions may be nil; they are asked each time, so that what
// they return may change.
type Credentials struct {
	// Token is a bearer token, or empty. It goes over TLS (or to this machine)
	// and to the host that was asked, wherever that redirects to.
	Token func() string
	// Certificate is what a server is shown that asks for one; nil for none.
	Certificate func() *tls.Certificate
	// Authorities vouch for servers' certificates; nil: the system's.
	Authorities *x509.CertPool
}

// authorize puts the token into a request that may bear it.
func (c *Credentials) authorize(req *http.Request) {
	if c.Token == nil || !private(req.URL) {
		return
	}
	if token := c.Token(); token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
}

// private reports whether nobody on the way can read a request for u.
func private(u *url.URL) bool { return u.Scheme == "https" || isLoopback(u.Hostname()) }

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.Unmap().IsLoopback()
}

func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return u.Host
}

func (c *Credentials) tls() *tls.Config {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.Authorities}
	if c.Certificate != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert := c.Certificate(); cert != nil {
				return cert, nil
			}
			return &tls.Certificate{}, nil // as tls has it for none
		}
	}
	return cfg
}

// CredentialFiles name the files that credentials are read from; empty for none.
type CredentialFiles struct {
	Token            string // one line
	Certificate, Key string // PEM, both or none
	Authorities      string // PEM, in place of the system's
}

const maxCredentials = 1 << 20

// Load reads the files. One with a secret that everybody can read is refused.
// No error tells a secret.
func (f CredentialFiles) Load() (Credentials, error) {
	var c Credentials
	if f.Token != "" {
		data, err := readCredential(f.Token, true)
		if err != nil {
			return c, fmt.Errorf("read token: %w", err)
		}
		token := strings.TrimSpace(string(data))
		if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return c, fmt.Errorf("read token: %s holds none: it is one line without blanks", f.Token)
		}
		c.Token = func() string { return token }
	}
	if (f.Certificate == "") != (f.Key == "") {
		return c, errors.New("a client certificate and its key belong together, and one of them is missing")
	}
	if f.Certificate != "" {
		pem, err := readCredential(f.Certificate, false)
		if err != nil {
			return c, fmt.Errorf("read client certificate: %w", err)
		}
		key, err := readCredential(f.Key, true)
		if err != nil {
			return c, fmt.Errorf("read key of client certificate: %w", err)
		}
		cert, err := tls.X509KeyPair(pem, key)
		if err != nil {
			return c, fmt.Errorf("read client certificate %s with key %s: %w", f.Certificate, f.Key, err)
		}
		c.Certificate = func() *tls.Certificate { return &cert }
	}
	if f.Authorities != "" {
		data, err := readCredential(f.Authorities, false)
		if err != nil {
			return c, fmt.Errorf("read authorities: %w", err)
		}
		c.Authorities = x509.NewCertPool()
		if !c.Authorities.AppendCertsFromPEM(data) {
			return c, fmt.Errorf("read authorities: %s holds no certificate in PEM", f.Authorities)
		}
	}
	return c, nil
}

func readCredential(name string, secret bool) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", name)
	}
	if secret && runtime.GOOS != "windows" && info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("%s can be read by every user of this machine: chmod o= it first", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxCredentials+1))
	if err == nil && len(data) > maxCredentials {
		err = fmt.Errorf("%s has more than %d bytes", name, maxCredentials)
	}
	return data, err
}
