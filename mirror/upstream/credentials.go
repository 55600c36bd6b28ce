package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"strings"

	"github.com/patchkeep/patchkeep/repo/store/storeurl"
)

// Credentials say how a mirror makes itself known to upstreams over HTTP, and
// whom it takes for them. The functions may be nil; they are asked each time, so
// that what they return may change. A store has credentials of its own.
type Credentials struct {
	// Token is a bearer token, or empty. It goes over TLS (or to this machine)
	// and to the upstream's own host, wherever that redirects to.
	Token func() string
	// Certificate is what a server is shown that asks for one; nil for none.
	Certificate func() *tls.Certificate
	// Authorities vouch for servers' certificates; nil: the system's.
	Authorities *x509.CertPool
}

// Open is the function Open with credentials.
func (c Credentials) Open(ctx context.Context, ref string, lim Limits) (Upstream, error) {
	if IsHTTP(ref) {
		u, err := newHTTP(ref, c)
		if err != nil {
			return nil, err
		}
		return Guard(u, lim), nil
	}
	s, err := storeurl.Open(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("open upstream: %w", err)
	}
	return Guard(FromStore(s, s.String()), lim), nil
}

// IsHTTP says whether a reference is the URL of a mirror.
func IsHTTP(ref string) bool {
	return strings.HasPrefix(ref, "http://") || strings.HasPrefix(ref, "https://")
}

func (c Credentials) tls() *tls.Config {
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

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.Unmap().IsLoopback()
}
