package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestVerify takes a cache from the mirror that filled it to the one that finds
// it damaged.
func TestVerify(t *testing.T) {
	repo, root := repository(t)
	dir := filepath.Join(t.TempDir(), "cache")
	base, stop, wait := start(t, "--upstream", repo, "--root", root, "--cache", dir, "--listen", "127.0.0.1:0")
	resp, err := http.Get(base + "/targets/" + target + ".f")
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if _, err := got.ReadFrom(resp.Body); err != nil || !bytes.Equal(got.Bytes(), content) {
		t.Fatalf("status %d, %d bytes, %v", resp.StatusCode, got.Len(), err)
	}
	resp.Body.Close()
	verify := func(args ...string) (int, string, string) {
		t.Helper()
		var out bytes.Buffer
		code, stderr := execute(t.Context(), &out, append([]string{"verify", "--cache", dir}, args...)...)
		return code, out.String(), stderr
	}
	if code, out, stderr := verify(); code != 12 || out != "" || !strings.Contains(stderr, "stop the mirror first") {
		t.Errorf("while it runs: %d, %s, %s", code, out, stderr)
	}
	stop()
	if code := wait(); code != 0 {
		t.Fatalf("serve: exit code %d", code)
	}
	if code, out, stderr := verify(); code != 0 || !strings.Contains(out, "1 sound, 32 MiB; 0 damaged") {
		t.Errorf("sound: %d, %s, %s", code, out, stderr)
	}

	object := "cas/sha256/" + target[:2] + "/" + target
	f, err := os.OpenFile(filepath.Join(dir, object), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte("!"), 5<<20)
	f.Close()
	if err := os.WriteFile(filepath.Join(dir, "cas/sha256/stray\x1b[2J"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	code, out, stderr := verify()
	if code != 10 || !strings.Contains(stderr, "delete the files named") || strings.Contains(out, "\x1b") {
		t.Errorf("damaged: %d, %s", code, stderr)
	}
	for _, line := range []string{object + "  damaged  sha256 is ", "stray?[2J", "0 sound", "1 damaged"} {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), strings.Join(strings.Fields(line), " ")) {
			t.Errorf("%q is not in %s", line, out)
		}
	}
	code, out, _ = verify("--json")
	var v verdict
	if err := json.Unmarshal([]byte(out), &v); err != nil || code != 10 {
		t.Fatalf("%d, %v: %s", code, err, out)
	}
	if v.Damaged != 1 || v.Objects != 0 || len(v.Files) != 2 || v.Files[0].File != object || !v.Files[0].Damaged || v.Files[1].Damaged {
		t.Errorf("%+v", v)
	}

	dir = filepath.Dir(dir)
	if code, _, stderr := verify(); code != 1 || !strings.Contains(stderr, "no such file") {
		t.Errorf("what is no cache: %d, %s", code, stderr)
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("verify has made %v", files)
	}
	if code, _ := execute(t.Context(), &bytes.Buffer{}, "verify"); code != 64 {
		t.Errorf("without --cache: %d", code)
	}
}
