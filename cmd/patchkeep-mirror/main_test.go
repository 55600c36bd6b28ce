package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// repository writes a repository with one target and returns its directory and
// a file with its root.
func repository(t *testing.T) (dir, root string) {
	t.Helper()
	r := tuftest.New()
	r.AddArtifact("targets", "f", []byte("content"))
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
	write(layout.TargetObject("f", target), []byte("content"))
	return dir, filepath.Join(dir, "metadata", "1.root.json")
}

const target = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73" // sha256 of "content"

// execute runs a command line to its end.
func execute(ctx context.Context, stdout io.Writer, args ...string) (code int, stderr string) {
	root := newRoot()
	var errs bytes.Buffer
	root.SetOut(stdout)
	root.SetErr(&errs)
	code = cli.Execute(ctx, root, cli.Config{Args: args, LogLevel: "disabled", Hint: hint, Rules: rules})
	return code, errs.String()
}

func TestServeAndStatus(t *testing.T) {
	dir, root := repository(t)
	ctx, stop := context.WithCancel(t.Context())
	out, in := io.Pipe()
	done := make(chan int, 1)
	go func() {
		code, _ := execute(ctx, in, "serve", "--upstream", dir, "--root", root, "--cache", t.TempDir(), "--listen", "127.0.0.1:0", "--min-free", "0")
		in.Close()
		done <- code
	}()
	line := make([]byte, 4096)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, out)
	base := regexp.MustCompile(`http://127\.0\.0\.1:\d+`).FindString(string(line[:n]))
	resp, err := http.Get(base + "/targets/" + target + ".f")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(body) != "content" {
		t.Errorf("status %d: %q", resp.StatusCode, body)
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
	if code := <-done; code != 0 {
		t.Errorf("serve ended with %d", code)
	}
	if code, _ := execute(t.Context(), io.Discard, "status", base); code != cli.Offline {
		t.Errorf("status of nobody: exit code %d", code)
	}
}

// TestMistakes: each gets its exit code and a word on what is wrong.
func TestMistakes(t *testing.T) {
	dir, root := repository(t)
	_, otherRoot := repository(t)
	locked := t.TempDir()
	o := serveOptions{upstreams: []string{dir}, root: root, cache: locked, cacheSize: "0", minFree: "0", rate: "1KiB", poll: 1e9, fills: 1}
	cfg, err := o.config(t.Context())
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
