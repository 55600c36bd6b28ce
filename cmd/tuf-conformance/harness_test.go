package main

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
)

// binary is the real program, built once.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "tuf-conformance")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "tuf-conformance")
	out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// world is one repository and one client's directories.
type world struct {
	*testing.T
	repo              *tuftest.Repo
	url               string
	metadata, targets string
	stderr            string // of the last command
}

func newWorld(t *testing.T) *world {
	t.Helper()
	t.Parallel()
	w := &world{T: t, repo: tuftest.New(), metadata: t.TempDir(), targets: t.TempDir()}
	server := httptest.NewServer(w.repo)
	t.Cleanup(server.Close)
	w.url = server.URL
	return w
}

// start is a world whose client trusts version 1 of the root.
func start(t *testing.T) *world {
	w := newWorld(t)
	w.init(0)
	return w
}

func (w *world) run(wantExit int, env []string, args ...string) {
	w.Helper()
	w.repo.Requests() // hands the repository over to the server, and back
	defer w.repo.Requests()
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	w.stderr = string(out)
	if got := cmd.ProcessState.ExitCode(); got != wantExit {
		w.Fatalf("%s: exit %d, want %d (%v)\n%s", strings.Join(args, " "), got, wantExit, err, out)
	}
}

func (w *world) init(wantExit int) {
	w.Helper()
	w.initWith(wantExit, w.repo.Published["root"][0])
}

func (w *world) initWith(wantExit int, root []byte) {
	w.Helper()
	file := filepath.Join(w.TempDir(), "initial_root.json")
	if err := os.WriteFile(file, root, 0o600); err != nil {
		w.Fatal(err)
	}
	w.run(wantExit, nil, "--metadata-dir", w.metadata, "init", file)
}

func (w *world) refresh(wantExit int) {
	w.Helper()
	w.refreshAt(wantExit, 0)
}

// refreshAt runs refresh under libfaketime's variable, ahead of now.
func (w *world) refreshAt(wantExit int, ahead time.Duration) {
	w.Helper()
	w.run(wantExit, faketime(ahead), "--metadata-url", w.url+"/metadata", "--metadata-dir", w.metadata, "refresh")
}

func faketime(ahead time.Duration) []string {
	if ahead == 0 {
		return nil
	}
	return []string{fmt.Sprintf("FAKETIME=%+d", int64(ahead.Seconds()))}
}

func (w *world) download(wantExit int, targets ...string) {
	w.Helper()
	w.downloadAt(wantExit, 0, targets...)
}

func (w *world) downloadAt(wantExit int, ahead time.Duration, targets ...string) {
	w.Helper()
	args := []string{"--metadata-url", w.url + "/metadata/", "--metadata-dir", w.metadata}
	for _, t := range targets {
		args = append(args, "--target-name", t)
	}
	args = append(args, "--target-dir", w.targets, "--target-base-url", w.url+"/targets/", "download")
	w.run(wantExit, faketime(ahead), args...)
}

// trusts checks the versions of all that the client keeps: "root 1", "targets 2"….
func (w *world) trusts(want ...string) {
	w.Helper()
	var got []string
	names, err := filepath.Glob(filepath.Join(w.metadata, "*.json"))
	if err != nil {
		w.Fatal(err)
	}
	for _, name := range names {
		var md struct{ Signed struct{ Version int64 } }
		data, err := os.ReadFile(name)
		if err != nil {
			w.Fatal(err)
		}
		if err := json.Unmarshal(data, &md); err != nil {
			w.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %d", strings.TrimSuffix(filepath.Base(name), ".json"), md.Signed.Version))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		w.Fatalf("the client trusts %q, want %q\n%s", got, want, w.stderr)
	}
}

// keeps checks that a role's file is byte for byte what the repository signed last.
func (w *world) keeps(role string) {
	w.Helper()
	data, err := os.ReadFile(filepath.Join(w.metadata, role+".json"))
	if err != nil {
		w.Fatal(err)
	}
	if string(data) != string(w.repo.Latest(role)) {
		w.Fatalf("%s.json differs from what was published", role)
	}
}

// requested checks what the client asked for since the last check.
func (w *world) requested(want ...string) {
	w.Helper()
	if got := w.repo.Requests(); !slices.Equal(got, want) {
		w.Fatalf("requests %q, want %q\n%s", got, want, w.stderr)
	}
	w.repo.ResetRequests()
}

func (w *world) lastRequest(want string) {
	w.Helper()
	all := w.repo.Requests()
	if len(all) == 0 || all[len(all)-1] != want {
		w.Fatalf("requests %q, want the last to be %q\n%s", all, want, w.stderr)
	}
}

// downloaded checks the contents of the target directory, in any order.
func (w *world) downloaded(want ...string) {
	w.Helper()
	var got []string
	err := filepath.WalkDir(w.targets, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		got = append(got, string(data))
		return err
	})
	if err != nil {
		w.Fatal(err)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		w.Fatalf("target directory holds %q, want %q\n%s", got, want, w.stderr)
	}
}

// signatures edits the signatures of a role's latest file.
func (w *world) signatures(role string, change func(sigs []any) []any) {
	w.repo.SetLatest(role, tuftest.Edit(w.repo.Latest(role), func(md map[string]any) {
		md["signatures"] = change(md["signatures"].([]any))
	}))
}

var (
	topLevel = []string{"targets", "snapshot", "timestamp"}
	first    = []string{"2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"}
)
