//go:build unix

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/cmd/internal/settings"
)

const token = "a-token-of-many-characters"

// running is a serve in the background.
type running struct {
	t    *testing.T
	base string
	stop context.CancelFunc
	done chan struct{}
	code int // after done
	log  *syncBuffer
}

// run starts serve with a log.
func run(t *testing.T, args ...string) *running {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	r := &running{t: t, stop: stop, done: make(chan struct{}), log: &syncBuffer{}}
	out, in := io.Pipe()
	root := newRoot()
	root.SetOut(in)
	root.SetErr(r.log)
	go func() {
		defer close(r.done)
		r.code = cli.Execute(ctx, root, cli.Config{
			Args: append([]string{"serve", "--cache", t.TempDir(), "--listen", "127.0.0.1:0", "--min-free", "0"}, args...), LogLevel: "info", Hint: hint, Rules: rules,
		})
		in.Close()
	}()
	line := make([]byte, 4096)
	n, err := out.Read(line)
	if err != nil {
		t.Fatalf("%v: %s", err, r.log)
	}
	go io.Copy(io.Discard, out)
	r.base = regexp.MustCompile(`on (https?://127\.0\.0\.1:\d+)`).FindStringSubmatch(string(line[:n]))[1] // an upstream comes before
	t.Cleanup(func() { stop(); <-r.done })
	return r
}

// says waits for a line of the log.
func (r *running) says(part string) {
	r.t.Helper()
	r.until(part, func() bool { return strings.Contains(r.log.String(), part) })
}

func (r *running) until(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited in vain for %q; log:\n%s", what, r.log)
		}
	}
}

func (r *running) end() int {
	r.stop()
	<-r.done
	return r.code
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func write(t *testing.T, name, data string) {
	t.Helper()
	// As tools do it: nobody sees half a file.
	if err := errors.Join(os.WriteFile(name+".new", []byte(data), 0o600), os.Rename(name+".new", name)); err != nil {
		t.Fatal(err)
	}
}

func hangup(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

// pair makes a certificate and its key in PEM, signed by itself.
func pair(t *testing.T, name string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

// ask asks over a connection of its own. name is that of the server's certificate.
func ask(t *testing.T, url string, cert *tls.Certificate, headers ...string) (status int, name string) {
	t.Helper()
	cfg := &tls.Config{InsecureSkipVerify: true}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, ""
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if resp.TLS != nil {
		name = resp.TLS.PeerCertificates[0].Subject.CommonName
	}
	return resp.StatusCode, name
}

// TestFilesAreReloaded: certificates, authorities and tokens count as soon as
// their files change; broken ones do not, and the mirror says so.
func TestFilesAreReloaded(t *testing.T) {
	dir, root := repository(t)
	at := t.TempDir()
	cert, key, ca, tokens := filepath.Join(at, "cert"), filepath.Join(at, "key"), filepath.Join(at, "ca"), filepath.Join(at, "tokens")
	c1, k1 := pair(t, "first")
	c2, k2 := pair(t, "second")
	branch, branchKey := pair(t, "branch-7")
	other, otherKey := pair(t, "branch-8")
	client, err := tls.X509KeyPair([]byte(branch), []byte(branchKey))
	if err != nil {
		t.Fatal(err)
	}
	later, err := tls.X509KeyPair([]byte(other), []byte(otherKey))
	if err != nil {
		t.Fatal(err)
	}
	write(t, cert, c1)
	write(t, key, k1)
	write(t, ca, branch)
	write(t, tokens, "laptops "+token)
	r := run(t, "--upstream", dir, "--root", root, "--tls-cert", cert, "--tls-key", key, "--client-ca", ca, "--token-file", tokens)
	ts := r.base + "/metadata/timestamp.json"
	bearer := []string{"Authorization", "Bearer " + token}
	want := func(what string, status int, name string, c *tls.Certificate, headers ...string) {
		t.Helper()
		if s, n := ask(t, ts, c, headers...); s != status || n != name {
			t.Errorf("%s: status %d from %q, want %d from %q", what, s, n, status, name)
		}
	}
	want("nothing shown", 401, "first", nil)
	want("certificate", 200, "first", &client)
	want("token", 200, "first", nil, bearer...)
	want("certificate of nobody", 401, "first", &later) // it is not even sent
	if s, _ := ask(t, r.base+"/healthz", nil); s != 200 {
		t.Errorf("/healthz: status %d", s)
	}
	for _, path := range []string{"/readyz", "/metrics"} {
		if s, _ := ask(t, r.base+path, nil); s != 401 {
			t.Errorf("%s: status %d", path, s)
		}
		if s, _ := ask(t, r.base+path, nil, bearer...); s != 200 {
			t.Errorf("%s with a token: status %d", path, s)
		}
	}

	// Between the two writes they do not fit: the first pair serves on.
	write(t, cert, c2)
	r.says("cannot reload")
	want("half of a new pair", 401, "first", nil)
	write(t, key, k2)
	r.until("the second certificate", func() bool { _, name := ask(t, ts, nil); return name == "second" })

	write(t, ca, other)
	r.until("the new authority", func() bool { s, _ := ask(t, ts, &later); return s == 200 })
	want("certificate of the old authority", 401, "second", &client)

	write(t, tokens, "laptops "+token+"2\n")
	r.until("the token to be revoked", func() bool { s, _ := ask(t, ts, nil, bearer...); return s == 401 })
	want("the new token", 200, "second", nil, "Authorization", "Bearer "+token+"2")
	write(t, tokens, "laptops\n")
	r.says("line 1")
	want("the token while the file is broken", 200, "second", nil, "Authorization", "Bearer "+token+"2")

	if code := r.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if strings.Contains(r.log.String(), token) {
		t.Errorf("a token is in the log:\n%s", r.log)
	}
}

func TestConfigFile(t *testing.T) {
	dir, root := repository(t)
	config := filepath.Join(t.TempDir(), "mirror.yaml")
	good := "# a comment\nupstream: [" + dir + "]\nroot: " + root + "\nclient-requests: 2.5\nmax-fills: 3\npoll: 7s\nlimit: 08:00-18:00=5MB/s,*=unlimited\ntrusted-proxy:\n  - 10.0.0.0/8\n  - 10.1.1.1\n"
	for _, c := range []struct {
		what, file string
		args       []string
		code       int
		says       string
	}{
		{"good", good, nil, 0, ""},
		{"empty", "", []string{"--upstream", dir, "--root", root}, 0, ""},
		{"unknown", good + "frobnicate: 1\n", nil, cli.Usage, "line 11: frobnicate"},
		{"flag's spelling", "--root: x\n", nil, cli.Usage, "line 1: --root"},
		{"config in a config", good + "config: x\n", nil, cli.Usage, "line 11: config"},
		{"twice", good + "root: x\n", nil, cli.Usage, "stands in line 3 already"},
		{"a word for a number", good + "client-burst: many\n", nil, cli.Usage, `line 11: client-burst: "many"`},
		{"a list for one", good + "client-burst: [1, 2]\n", nil, cli.Usage, "line 11: client-burst: want one value"},
		{"nothing", good + "client-burst:\n", nil, cli.Usage, "line 11: client-burst: want a value"},
		{"a mapping", good + "client-burst: {a: b}\n", nil, cli.Usage, "line 11: client-burst: want a value"},
		{"an alias", "root: &x " + root + "\nlisten: *x\n", nil, cli.Usage, "line 2: listen: want a value"},
		{"no mapping", "- a\n", nil, cli.Usage, "cache-size: 20GiB"},
		{"no YAML", "a: b: c\n\t", nil, cli.Usage, "yaml"},
		{"calendar", strings.Replace(good, "5MB/s", "fast", 1), nil, cli.Failure, "fast"},
		{"proxy", good, []string{"--trusted-proxy", "proxy.example.com"}, cli.Usage, "proxy.example.com"},
		{"rate", good, []string{"--client-rate", "fast"}, cli.Usage, "fast"},
		{"NaN", good, []string{"--client-requests", "NaN"}, cli.Usage, "limits"},
		{"negative", good, []string{"--max-connections=-1"}, cli.Usage, "limits"},
		{"certificate", good, []string{"--tls-cert", root, "--tls-key", root}, cli.Failure, "TLS certificate"},
		{"client CA without TLS", good, []string{"--client-ca", root}, cli.Usage, "--tls-cert"},
		{"tokens", good, []string{"--token-file", root}, cli.Failure, "line 1"},
		{"sibling without self", good, []string{"--sibling", "http://x"}, cli.Usage, "--self"},
		{"sibling that is none", good, []string{"--sibling", "/srv", "--self", "http://x"}, cli.Usage, "/srv"},
		{"token in the clear", good, []string{"--upstream-token-file", root, "--upstream", "http://example.com"}, cli.Failure, "https"},
		{"no root", good, []string{"--root", root + "x"}, cli.Failure, "no such file"},
		{"half of a certificate", good, []string{"--upstream-cert", "x"}, cli.Usage, "--upstream-key"},
	} {
		write(t, config, c.file)
		var out bytes.Buffer
		code, stderr := execute(t.Context(), &out, append([]string{"serve", "--check", "--cache", t.TempDir(), "--config", config}, c.args...)...)
		if code != c.code || !strings.Contains(stderr, c.says) || (code == 0) != strings.Contains(out.String(), "good") {
			t.Errorf("%s: exit code %d, want %d: %s%s", c.what, code, c.code, out.String(), stderr)
		}
	}
	if code, stderr := execute(t.Context(), io.Discard, "serve", "--check", "--config", config+"x"); code != cli.Failure || !strings.Contains(stderr, "no such file") {
		t.Errorf("absent file: exit code %d: %s", code, stderr)
	}
}

// TestPrecedence: the command line over the environment over the file over the
// default.
func TestPrecedence(t *testing.T) {
	config := filepath.Join(t.TempDir(), "mirror.yaml")
	write(t, config, "root: file\ncache: file\nlisten: file\nupstream: [file, file2]\npoll: 7s\ntrusted-proxy: 10.0.0.1\nmin-rate: 1KiB\n")
	t.Setenv("PATCHKEEP_ROOT", "env")
	t.Setenv("PATCHKEEP_CACHE", "env")
	t.Setenv("PATCHKEEP_UPSTREAM", "env,env2")
	root := newRoot()
	cmd, _, err := root.Find([]string{"serve"})
	if err != nil {
		t.Fatal(err)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s := settings.Of(cmd.Flags(), config, "config", "check")
		for range 2 { // the second is a reload
			o, err := readOptions(s)
			if err != nil {
				return err
			}
			got := fmt.Sprintln(o.root, o.cache, o.listen, o.upstreams, o.poll, o.proxies, o.rate, o.grace)
			if want := "line env file [env env2] 9s [10.0.0.1] 1KiB 30s\n"; got != want {
				t.Errorf("%swant %s", got, want)
			}
		}
		return nil
	}
	cli.Execute(t.Context(), root, cli.Config{Args: []string{"serve", "--root", "line", "--poll", "9s"}})
}

// TestReload: SIGHUP takes over what it can, names what it cannot, keeps the old
// where the new is wrong, and begins a new access log.
func TestReload(t *testing.T) {
	dir, root := repository(t)
	at := t.TempDir()
	config, log, tokens := filepath.Join(at, "mirror.yaml"), filepath.Join(at, "access.log"), filepath.Join(at, "tokens")
	base := "upstream: " + dir + "\nroot: " + root + "\naccess-log: " + log + "\n"
	write(t, config, base)
	write(t, tokens, "laptops "+token+"\n")
	r := run(t, "--config", config)
	ts := r.base + "/metadata/timestamp.json"
	status := func(want int) func() bool {
		return func() bool { s, _ := ask(t, ts, nil); return s == want }
	}
	r.until("an answer", status(200))

	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	write(t, config, base+"token-file: "+tokens+"\npoll: 1h\nmax-fills: 2\nlimit: '*=5MB/s'\n")
	hangup(t)
	r.until("tokens to be asked for", status(401))
	r.says("max-fills, poll")
	r.says("configuration reloaded")
	if got, err := http.Get(r.base + "/readyz"); err != nil || got.StatusCode != 401 {
		t.Errorf("%v, %v", got, err)
	} else {
		got.Body.Close()
	}

	// TLS cannot come while it runs, nor may what would go with it.
	certPEM, keyPEM := pair(t, "mirror")
	cert, key := filepath.Join(at, "tls.pem"), filepath.Join(at, "tls.key")
	write(t, cert, certPEM)
	write(t, key, keyPEM)
	write(t, config, base+"tls-cert: "+cert+"\ntls-key: "+key+"\nclient-ca: "+cert+"\n")
	hangup(t)
	r.says("tls-cert")
	r.until("no tokens", status(200))
	write(t, config, base+"token-file: "+tokens+"\n")
	hangup(t)
	r.until("tokens to be asked for", status(401))

	write(t, config, base+"token-fiel: x\n")
	hangup(t)
	r.says("token-fiel")
	r.until("the old rules", status(401))

	write(t, config, base+"client-requests: 0.001\nclient-burst: 1\n")
	hangup(t)
	r.until("the limit", status(429))

	write(t, config, base+"token-file: "+tokens+"x\n")
	hangup(t)
	r.says("no such file")
	r.until("no limit", status(200)) // there were no tokens before
	if code := r.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	old, err := os.ReadFile(log + ".1")
	if err != nil || !strings.Contains(string(old), `"status":200`) {
		t.Errorf("%s, %v", old, err)
	}
	now, err := os.ReadFile(log)
	if err != nil || !strings.Contains(string(now), `"status":429`) {
		t.Errorf("%s, %v", now, err)
	}
}
