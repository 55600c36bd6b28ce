package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/mirror/upstream"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// repository writes a repository with one target and returns its directory and
// a file with its root.
func repository(t *testing.T) (dir, root string) {
	t.Helper()
	r := tuftest.New()
	r.AddArtifact("targets", "f", content)
	r.PublishAll()
	dir = t.TempDir()
	write := func(object string, data []byte) {
		name := filepath.Join(dir, filepath.FromSlash(object))
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for role, versions := range r.Published {
		for i, data := range versions {
			write(layout.MetadataObject(role, int64(i+1)), data)
		}
	}
	write(layout.TargetObject("f", target), content)
	return dir, filepath.Join(dir, "metadata", "1.root.json")
}

// content is more than the buffers of a connection on the way hold.
var (
	content = bytes.Repeat([]byte("content."), 4<<20)
	target  = hex.EncodeToString(tuftest.Hash("sha256", content))
)

// execute runs a command line to its end.
func execute(ctx context.Context, stdout io.Writer, args ...string) (code int, stderr string) {
	root := newRoot()
	var errs bytes.Buffer
	root.SetOut(stdout)
	root.SetErr(&errs)
	code = cli.Execute(ctx, root, cli.Config{Args: args, LogLevel: "disabled", Hint: hint, Rules: rules})
	return code, errs.String()
}

// start runs serve in the background and returns its URL, what stops it, and
// what waits for its exit code.
func start(t *testing.T, args ...string) (base string, stop func(), wait func() int) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	out, in := io.Pipe()
	done := make(chan int, 1)
	go func() {
		code, stderr := execute(ctx, in, append([]string{"serve", "--cache", t.TempDir(), "--listen", "127.0.0.1:0", "--min-free", "0"}, args...)...)
		in.CloseWithError(errors.New(stderr))
		done <- code
	}()
	line := make([]byte, 4096)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, out)
	return regexp.MustCompile(`https?://127\.0\.0\.1:\d+`).FindString(string(line[:n])), stop, func() int { return <-done }
}

func TestServeAndStatus(t *testing.T) {
	dir, root := repository(t)
	base, stop, wait := start(t, "--upstream", dir, "--root", root)
	resp, err := http.Get(base + "/targets/" + target + ".f")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(body) != string(content) {
		t.Errorf("status %d, %d bytes", resp.StatusCode, len(body))
	}

	var table, doc bytes.Buffer
	if code, stderr := execute(t.Context(), &table, "status", base); code != 0 || !strings.Contains(table.String(), "snapshot 2") {
		t.Errorf("status: exit code %d: %s%s", code, table.String(), stderr)
	}
	var st mirror.Status
	if code, _ := execute(t.Context(), &doc, "status", base, "--json"); code != 0 || json.Unmarshal(doc.Bytes(), &st) != nil || !st.Ready {
		t.Errorf("status --json: %s", doc.String())
	}
	http.DefaultClient.CloseIdleConnections()
	stop()
	if code := wait(); code != 0 {
		t.Errorf("serve ended with %d", code)
	}
	if code, _ := execute(t.Context(), io.Discard, "status", base); code != cli.Offline {
		t.Errorf("status of nobody: exit code %d", code)
	}
}

// TestGracefulStop: a transfer that has begun ends well after the signal.
func TestGracefulStop(t *testing.T) {
	dir, root := repository(t)
	base, stop, wait := start(t, "--upstream", dir, "--root", root)
	resp, err := http.Get(base + "/targets/" + target + ".f")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	first := make([]byte, 1)
	if _, err := io.ReadFull(resp.Body, first); err != nil {
		t.Fatal(err)
	}
	stop()
	for { // until nobody listens any more
		conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
		if err != nil {
			break
		}
		conn.Close()
	}
	rest, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(slices.Concat(first, rest), content) {
		t.Errorf("%d bytes, %v", len(rest)+1, err)
	}
	if code := wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}

	base, stop, wait = start(t, "--upstream", dir, "--root", root, "--grace", "1ms")
	resp, err = http.Get(base + "/targets/" + target + ".f")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	stop()
	if code := wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if rest, err := io.ReadAll(resp.Body); err == nil && len(rest) != len(content) {
		t.Errorf("cut off after %d bytes without an error", len(rest))
	}
}

// TestTLS: by files, beside an admin address without.
func TestTLS(t *testing.T) {
	dir, root := repository(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	if err := errors.Join(os.WriteFile(certFile, certPEM, 0o644), os.WriteFile(keyFile, keyPEM, 0o600)); err != nil {
		t.Fatal(err)
	}
	base, stop, wait := start(t, "--upstream", dir, "--root", root, "--tls-cert", certFile, "--tls-key", keyFile, "--admin-listen", "127.0.0.1:0")
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	for name, maxVersion := range map[string]uint16{"any": 0, "1.1": tls.VersionTLS11} {
		client := &http.Client{Transport: &http.Transport{
			ForceAttemptHTTP2: true,
			TLSClientConfig:   &tls.Config{RootCAs: pool, MaxVersion: maxVersion},
		}}
		resp, err := client.Get(base + "/targets/" + target + ".f")
		if maxVersion != 0 {
			if err == nil {
				t.Errorf("TLS %s was accepted", name)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !bytes.Equal(body, content) || resp.ProtoMajor != 2 {
			t.Errorf("HTTP/%d: %d bytes, %v", resp.ProtoMajor, len(body), err)
		}
		if resp, err := client.Get(base + "/readyz"); err != nil || resp.StatusCode != http.StatusNotFound {
			t.Errorf("/readyz in public: %v, %v", resp, err)
		}
		client.CloseIdleConnections()
	}
	stop()
	if code := wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestMistakes: each gets its exit code and a word on what is wrong.
func TestMistakes(t *testing.T) {
	dir, root := repository(t)
	_, otherRoot := repository(t)
	locked := t.TempDir()
	o := &serveOptions{}
	o.flags()
	o.upstreams, o.root, o.cache, o.minFree = []string{dir}, root, locked, "0"
	cfg, err := o.mirrorConfig(t.Context(), upstream.Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := mirror.New(zerolog.Nop().WithContext(t.Context()), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	notRoot := filepath.Join(t.TempDir(), "root.json")
	if err := os.WriteFile(notRoot, []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"no root", []string{"--upstream", dir, "--cache", t.TempDir()}, cli.Usage, "metadata/1.root.json"},
		{"no upstream", []string{"--root", root, "--cache", t.TempDir()}, cli.Usage, "--upstream"},
		{"no cache", []string{"--root", root, "--upstream", dir}, cli.Usage, "--cache"},
		{"absent root", []string{"--root", root + "x", "--upstream", dir, "--cache", t.TempDir()}, cli.Failure, "no such file"},
		{"no root at all", []string{"--root", notRoot, "--upstream", dir, "--cache", t.TempDir()}, cli.NotTrusted, "pinned root"},
		{"root of another repository", []string{"--root", otherRoot, "--upstream", dir, "--cache", t.TempDir()}, cli.NotTrusted, "not trusted"},
		{"second mirror", []string{"--root", root, "--upstream", dir, "--cache", locked}, cli.Conflict, "another mirror"},
		{"bad size", []string{"--root", root, "--upstream", dir, "--cache", t.TempDir(), "--cache-size", "much"}, cli.Usage, "much"},
		{"bad URL", []string{"--root", root, "--upstream", "http://user:secret@/x", "--cache", t.TempDir()}, cli.Failure, "http"},
		{"half of TLS", []string{"--root", root, "--upstream", dir, "--cache", t.TempDir(), "--tls-cert", "x"}, cli.Usage, "--tls-key"},
		{"unknown flag", []string{"--frobnicate"}, cli.Usage, "frobnicate"},
	} {
		code, stderr := execute(t.Context(), io.Discard, append([]string{"serve", "--listen", "127.0.0.1:0", "--min-free", "0"}, c.args...)...)
		if code != c.code || !strings.Contains(stderr, c.says) || strings.Contains(stderr, "secret") {
			t.Errorf("%s: exit code %d, want %d: %s", c.name, code, c.code, stderr)
		}
	}
	if code, _ := execute(t.Context(), io.Discard, "status", "nonsense"); code != cli.Usage {
		t.Errorf("status of nonsense: exit code %d", code)
	}
}
