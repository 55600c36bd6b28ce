package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/mirror/access"
	"github.com/patchkeep/patchkeep/mirror/line"
	"github.com/patchkeep/patchkeep/mirror/upstream"
)

const maxCredentials = 1 << 20 // bytes of a file of certificates or keys

// live is what can change while the mirror runs. One goroutine changes it.
type live struct {
	rules access.Rules
	gate  *access.Gate
	line  *line.Limiter // nil: there is no calendar, nor may one come

	begun bool // what has no TLS by now stays without
	tls   atomic.Pointer[tls.Config]
	token atomic.Pointer[string]
	cert  atomic.Pointer[tls.Certificate]

	files []*followed
}

// followed are files whose content is taken over when it changes.
type followed struct {
	what  string
	names func(*serveOptions) []string
	load  func(*serveOptions) error
	seen  []os.FileInfo // when they were read; nil for those that were not there
	err   error         // of that
}

func newLive(log *access.Log) *live {
	l := &live{gate: access.New(access.Rules{}, log)}
	l.files = []*followed{
		{what: "TLS certificate", names: func(o *serveOptions) []string { return []string{o.cert, o.key, o.clientCA} }, load: l.loadTLS},
		{what: "tokens", names: func(o *serveOptions) []string { return []string{o.tokenFile} }, load: l.loadTokens},
		{what: "upstream token", names: func(o *serveOptions) []string { return []string{o.upstreamToken} }, load: l.loadToken},
		{what: "upstream certificate", names: func(o *serveOptions) []string { return []string{o.upstreamCert, o.upstreamKey} }, load: l.loadCert},
	}
	return l
}

// credentials are those of the moment, towards upstreams.
func (l *live) credentials() upstream.Credentials {
	return upstream.Credentials{
		Token: func() string {
			if t := l.token.Load(); t != nil {
				return *t
			}
			return ""
		},
		Certificate: l.cert.Load,
	}
}

// apply takes over options, and all files anew. What is wrong stays as it was.
func (l *live) apply(o *serveOptions) error {
	rules, err := o.rules()
	if err != nil {
		return err
	}
	var calendar *line.Calendar
	if o.limit != "" {
		if calendar, err = line.ParseCalendar(o.limit); err != nil {
			return err
		}
	}
	var errs []error
	for _, f := range l.files {
		errs = append(errs, f.reload(o))
	}
	l.begun = true
	rules.Tokens = l.rules.Tokens
	l.set(rules)
	if l.line != nil {
		l.line.SetCalendar(calendar)
	}
	return errors.Join(errs...)
}

// set makes rules count. Certificates are asked for if the TLS in use knows
// whose, whatever a broken file was to change about that.
func (l *live) set(rules access.Rules) {
	cfg := l.tls.Load()
	rules.Certs = cfg != nil && cfg.ClientCAs != nil
	l.rules = rules
	l.gate.Set(rules)
}

// look takes over files that have changed, and logs what is wrong with them.
func (l *live) look(ctx context.Context, o *serveOptions) {
	for _, f := range l.files {
		if f.err == nil && !f.changed(o) {
			continue
		}
		was := f.err
		switch err := f.reload(o); {
		case err == nil:
			l.set(l.rules)
			zerolog.Ctx(ctx).Info().Str("what", f.what).Msg("reloaded")
		case was == nil || was.Error() != err.Error():
			zerolog.Ctx(ctx).Error().Err(err).Msg("cannot reload: the old one counts on")
		}
	}
}

func (f *followed) reload(o *serveOptions) error {
	f.seen = f.stat(o) // before it is read: what changes meanwhile is read again
	f.err = f.load(o)
	if f.err != nil {
		f.err = fmt.Errorf("load %s: %w", f.what, f.err)
	}
	return f.err
}

// changed tells files apart without reading them: a new one has been renamed to
// the name, or the old one was written to.
func (f *followed) changed(o *serveOptions) bool {
	return !slices.EqualFunc(f.seen, f.stat(o), func(a, b os.FileInfo) bool {
		if a == nil || b == nil {
			return a == b
		}
		return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
	})
}

func (f *followed) stat(o *serveOptions) (out []os.FileInfo) {
	for _, name := range f.names(o) {
		if name == "" {
			continue
		}
		info, err := os.Stat(name)
		if err != nil {
			info = nil
		}
		out = append(out, info)
	}
	return out
}

// loadTLS makes the configuration of TLS anew. Sessions of the old one are not
// resumed, so that who is not vouched for any more has to show a certificate.
func (l *live) loadTLS(o *serveOptions) error {
	if o.cert == "" || l.begun && l.tls.Load() == nil {
		return nil
	}
	pair, err := readPair(o.cert, o.key)
	if err != nil {
		return err
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*pair}, NextProtos: []string{"h2", "http/1.1"}}
	if o.clientCA != "" {
		if cfg.ClientCAs, err = readPool(o.clientCA); err != nil {
			return err
		}
		cfg.ClientAuth = tls.VerifyClientCertIfGiven // the gate asks for it, where it is needed
	}
	l.tls.Store(cfg)
	return nil
}

func (l *live) loadTokens(o *serveOptions) error {
	if o.tokenFile == "" {
		l.rules.Tokens = nil
		return nil
	}
	data, err := readFile(o.tokenFile, access.MaxTokenFile)
	if err != nil {
		return err
	}
	tokens, err := access.ParseTokens(data)
	if err != nil {
		return fmt.Errorf("%s: %w", o.tokenFile, err)
	}
	l.rules.Tokens = tokens // with none in it, nobody comes in by one
	return nil
}

func (l *live) loadToken(o *serveOptions) error {
	if o.upstreamToken == "" {
		l.token.Store(nil)
		return nil
	}
	data, err := readFile(o.upstreamToken, maxCredentials)
	if err != nil {
		return err
	}
	token := strings.TrimSpace(string(data))
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("%s holds no token: it is one line without blanks", o.upstreamToken)
	}
	l.token.Store(&token)
	return nil
}

func (l *live) loadCert(o *serveOptions) error {
	if o.upstreamCert == "" {
		l.cert.Store(nil)
		return nil
	}
	pair, err := readPair(o.upstreamCert, o.upstreamKey)
	if err != nil {
		return err
	}
	l.cert.Store(pair)
	return nil
}

// readPair reads a certificate chain and its key.
func readPair(cert, key string) (*tls.Certificate, error) {
	certPEM, err := readFile(cert, maxCredentials)
	if err != nil {
		return nil, err
	}
	keyPEM, err := readFile(key, maxCredentials)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", cert, key, err)
	}
	return &pair, nil
}

// readPool reads certificates of authorities.
func readPool(name string) (*x509.CertPool, error) {
	data, err := readFile(name, maxCredentials)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", name)
	}
	return pool, nil
}
