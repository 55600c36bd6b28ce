package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/client/fetch/faulty"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// ends are the exit codes that each kind of fault may lead to.
var ends = map[faulty.Ends][]int{
	faulty.Harmless: nil,
	faulty.Broken:   {cli.Offline},
	faulty.Lying:    {cli.NotTrusted},
	faulty.Either:   {cli.Offline, cli.NotTrusted},
}

// In a thousand runs with faults of every kind, in metadata and files, an agent
// has the right file in the end, or says with the right exit code why not. With
// one good mirror among three bad ones it has the file.
func TestThousandFaultyDownloads(t *testing.T) {
	seed := uint64(20261125)
	if s := os.Getenv("PATCHKEEP_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	runs := uint64(1000)
	if testing.Short() || raceEnabled { // which takes eight times as long
		runs = 150
	}
	repo := tuftest.New()
	files := map[string][]byte{}
	for i, size := range []int{0, 1, 1000, 70_000, 1 << 20, 1<<20 + 1, 3 << 20, 4<<20 + 1, 5<<20 + 77, 6 << 20} {
		data := make([]byte, size)
		rand.NewChaCha8([32]byte{byte(i)}).Read(data)
		name := "file-" + strconv.Itoa(i)
		files[name] = data
		repo.AddArtifact("targets", name, data)
		if i%3 != 0 && layout.BlockListLen(int64(size)) > 0 {
			var list []byte
			for b := range slices.Chunk(data, layout.BlockSize) {
				sum := sha256.Sum256(b)
				list = append(list, sum[:]...)
			}
			repo.AddArtifact("targets", layout.BlocksPath(name), list)
		}
	}
	repo.PublishAll()
	root := repo.Published["root"][0]

	run := func(t *testing.T, n uint64) {
		dir := t.TempDir()
		network := faulty.New()
		defer network.Close()
		rng := rand.New(rand.NewPCG(seed, n))
		where := map[string]func(string) bool{
			"files":    func(p string) bool { return strings.HasPrefix(p, "/targets/") },
			"metadata": func(p string) bool { return strings.HasPrefix(p, "/metadata/") },
			"all":      nil,
		}
		mirrors := 1 + rng.IntN(4)
		good := -1
		if mirrors == 4 {
			good = rng.IntN(8) // half of them have one
		}
		var what, servers []string
		var may []int
		for i := range mirrors {
			f, part := faulty.Honest, "all"
			if i != good {
				f = faulty.Faults[rng.IntN(len(faulty.Faults))]
				part = []string{"files", "metadata", "all"}[rng.IntN(3)]
			}
			servers = append(servers, network.Add(repo, f, where[part], rng.Uint64()))
			what = append(what, f.Name+" in "+part)
			may = append(may, ends[f.Ends]...)
		}
		name := "file-" + strconv.Itoa(rng.IntN(1+rng.IntN(len(files)))) // small ones more often
		report := func(format string, args ...any) {
			t.Helper()
			t.Errorf("run %d of seed %d, %s from %q: "+format, append([]any{n, seed, name, what}, args...)...)
		}
		state := filepath.Join(dir, "state")
		if _, err := agent.Enroll(t.Context(), agent.EnrollOptions{
			Dir: state, Servers: servers, Root: root, Ring: "users", MachineID: "m",
			InstallRoot: filepath.Join(dir, "opt"), Offline: true,
		}); err != nil {
			report("%v", err)
			return
		}
		a, err := agent.Open(agent.Options{Dir: state, HTTP: network.Client()})
		if err != nil {
			report("%v", err)
			return
		}
		out := filepath.Join(dir, "out")
		_, _, err = a.Download(t.Context(), name, out)
		got, rerr := os.ReadFile(out)
		code := cli.ExitCode(err, config().Rules...)
		switch {
		case err == nil && (rerr != nil || !bytes.Equal(got, files[name])):
			report("a wrong file")
		case err == nil:
		case good >= 0 && good < mirrors:
			report("exit code %d with a good mirror: %v", code, err)
		case !errors.Is(rerr, fs.ErrNotExist):
			report("there is a file after an error: %v", err)
		case !slices.Contains(may, code):
			report("exit code %d, want one of %v: %v", code, may, err)
		case hint(err) == "":
			report("no advice: %v", err)
		}
	}
	// In a bubble nobody really waits, so the agent has the patience it always has.
	for part := range uint64(4) {
		t.Run("part "+strconv.FormatUint(part, 10), func(t *testing.T) {
			t.Parallel()
			for n := part; n < runs; n += 4 {
				synctest.Test(t, func(t *testing.T) { run(t, n) })
			}
		})
	}
}
