package cmd_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/patchkeep/patchkeep"

type wall struct {
	inside  string
	imports []string
}

// walls say which packages of this module a package may import: the first wall
// that holds it counts, "/..." takes in everything below. Tests are free.
var walls = []wall{
	{"cmd/...", []string{"cmd/internal/...", "repo/...", "signing/...", "mirror/...", "client/...", "keys-example"}},
	{"docs/...", nil},     // tests of what the pages say
	{"internal/...", nil}, // what tests of several packages need
	{"keys-example", nil},
	{"signing/...", []string{"signing/...", "keys-example"}},
	{"repo/layout", nil},
	{"repo/delta", leaves},
	{"repo/patch/...", leaves},
	{"repo/rollout/...", leaves},
	{"repo/mirrors/...", leaves},
	{"repo/internal/...", leaves},
	{"repo/store/...", []string{"repo/store/...", "repo/layout"}},
	{"repo/...", []string{"repo/...", "client/tuf/..."}},
	{"client/...", append([]string{"client/..."}, leaves...)},
	{"mirror/...", append([]string{"mirror/...", "client/...", "repo/store/..."}, leaves...)},
}

var leaves = []string{"repo/layout", "repo/delta", "repo/patch/...", "repo/rollout/...", "repo/mirrors/...", "repo/internal/..."}

// linked says what must not be in a program, however it got there.
var linked = map[string][]string{
	"cmd/patchkeep-agent": {
		module + "/repo", module + "/repo/store/...", module + "/signing/...", module + "/mirror/...",
		"github.com/minio/minio-go/...", "database/sql", "github.com/jackc/pgx/...", "modernc.org/sqlite/...",
		"github.com/sigstore/sigstore/pkg/signature/kms/...", "github.com/aws/aws-sdk-go-v2/...", "cloud.google.com/...",
	},
	"cmd/tuf-conformance": {
		module + "/repo", module + "/repo/store/...", module + "/signing/...", module + "/mirror/...",
		"github.com/minio/minio-go/...", "database/sql", "github.com/sigstore/sigstore/pkg/signature/kms/...",
	},
	"cmd/patchkeep-mirror": {
		module + "/repo", module + "/signing/...", module + "/keys-example",
		"github.com/sigstore/sigstore/pkg/signature/kms/...",
	},
	"cmd/patchkeep": {
		"database/sql", "github.com/jackc/pgx/...", "modernc.org/sqlite/...",
	},
}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
	Error      *struct{ Err string }
}

func TestWallsBetweenPackages(t *testing.T) {
	seen := 0
	for _, p := range list(t) {
		if p.Error != nil {
			t.Errorf("%s: %s", p.ImportPath, p.Error.Err)
		}
		path, ours := strings.CutPrefix(p.ImportPath, module+"/")
		if !ours {
			t.Errorf("%s: the module's root holds no package", p.ImportPath)
			continue
		}
		i := slices.IndexFunc(walls, func(w wall) bool { return matches(path, w.inside) })
		if i < 0 {
			t.Errorf("%s stands outside every wall: give it one", path)
			continue
		}
		seen++
		for _, imported := range p.Imports {
			if imported, ours := strings.CutPrefix(imported, module+"/"); ours && !matchesAny(imported, walls[i].imports) {
				t.Errorf("%s imports %s; %s may import only %q", path, imported, walls[i].inside, walls[i].imports)
			}
		}
	}
	if seen < 5 {
		t.Errorf("only %d packages were looked at", seen)
	}
}

func TestWhatProgramsLink(t *testing.T) {
	for _, p := range list(t) {
		for _, dep := range p.Deps {
			if matchesAny(dep, linked[strings.TrimPrefix(p.ImportPath, module+"/")]) {
				t.Errorf("%s links %s", p.ImportPath, dep)
			}
		}
	}
}

// list gives every package of the module, without its tests.
func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Imports,Deps,Error", module+"/...")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("list packages: %v: %s", err, stderr.String())
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		if p.ImportPath != module+"/cmd" { // holds this test alone
			all = append(all, p)
		}
	}
}

func matchesAny(path string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(path, p) })
}

// matches knows "a/b" and "a/b/...", which is a/b and all below.
func matches(path, pattern string) bool {
	base, below := strings.CutSuffix(pattern, "/...")
	return path == base || below && strings.HasPrefix(path, base+"/")
}
