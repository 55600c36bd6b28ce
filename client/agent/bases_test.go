//go:build unix

package agent_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// fetched counts the requests for files whose names contain part.
func (f *fixture) fetched(part string) (count func() int) {
	n := 0
	inner := f.srv.Config.Handler
	f.srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		if strings.Contains(r.URL.Path, part) {
			n++
		}
		f.mu.Unlock()
		inner.ServeHTTP(w, r)
	})
	return func() int {
		f.mu.Lock()
		defer f.mu.Unlock()
		return n
	}
}

// bases are the kept files, as <product>/<first letters of the SHA-256>.
func (f *fixture) bases() []string {
	f.Helper()
	paths, err := filepath.Glob(filepath.Join(f.dir, "downloads/bases/*/*"))
	f.must(err)
	var out []string
	for _, p := range paths {
		out = append(out, filepath.Base(filepath.Dir(p))+"/"+filepath.Base(p)[:8])
	}
	return out
}

func keptAs(product string, content []byte) string {
	return fmt.Sprintf("%s/%.4x", product, sha256.Sum256(content))
}

// The file that a product was installed from stays, its newest, and is not
// fetched again.
func TestBases(t *testing.T) {
	f := newFixture(t)
	f.add("hello", "1.0", "hello.tar", program("1.0"))
	f.add("tools", "1", "tools.bin", []byte("x"), command("exit 0"))
	f.add("base", "1", "base.txt", []byte("delivered"))
	f.publish()
	f.enroll()
	f.wantApply("hello 1.0 committed, tools 1 committed, base 1 committed", nil)
	want := []string{keptAs("hello", program("1.0")), keptAs("tools", []byte("x"))}
	if got := f.bases(); !slices.Equal(got, want) {
		t.Errorf("kept %v, want %v: a delivered file lies where it was delivered", got, want)
	}
	f.add("hello", "1.1", "hello.tar", program("1.1"))
	f.publish()
	f.wantApply("hello 1.1 committed", nil)
	want[0] = keptAs("hello", program("1.1"))
	if got := f.bases(); !slices.Equal(got, want) {
		t.Errorf("then kept %v, want %v", got, want)
	}

	// Somebody removes it: it is put back without a byte from the network.
	count := f.fetched("hello.tar")
	f.must(os.RemoveAll(filepath.Join(f.root, "hello")))
	f.wantApply("hello 1.1 committed", nil)
	if n := count(); n != 0 {
		t.Errorf("%d requests for a file that was there", n)
	}
	// A damaged one is not believed.
	f.must(os.RemoveAll(filepath.Join(f.root, "hello")))
	paths, err := filepath.Glob(filepath.Join(f.dir, "downloads/bases/hello/*"))
	f.must(err)
	evil := bytes.ReplaceAll(program("1.1"), []byte("echo 1.1"), []byte("echo 6.6"))
	f.must(os.WriteFile(paths[0], evil, 0o600))
	f.wantApply("hello 1.1 committed", nil)
	if got := f.read(f.root, "hello/current/bin/hello"); !strings.Contains(got, "echo 1.1") || count() == 0 {
		t.Errorf("installed %q with %d requests", got, count())
	}
	if got := f.bases(); !slices.Equal(got, want) {
		t.Errorf("in the end kept %v, want %v", got, want)
	}
}

// What is kept is bounded; the oldest goes first.
func TestBasesAreBounded(t *testing.T) {
	move := time.Duration(0)
	content := func(product string) []byte { return bytes.Repeat([]byte(product[:1]), 1000) }
	for _, tt := range []struct {
		most int64
		want []string
	}{
		{0, []string{keptAs("base", content("base")), keptAs("hello", content("hello")), keptAs("tools", content("tools"))}},
		{2500, []string{keptAs("base", content("base")), keptAs("tools", content("tools"))}},
		{1000, []string{keptAs("base", content("base"))}},
		{999, nil},
		{-1, nil},
	} {
		f := newFixture(t)
		f.opts.MaxBases = tt.most
		f.opts.Now = func() time.Time { return time.Now().Add(move) }
		f.enrollEmpty()
		for _, product := range []string{"hello", "tools", "base"} {
			f.add(product, "1", "x.bin", content(product), command("exit 0"))
			f.publish()
			f.wantApply(product+" 1 committed", nil)
			move += time.Minute
		}
		if got := f.bases(); !slices.Equal(got, tt.want) {
			t.Errorf("at most %d bytes: kept %v, want %v", tt.most, got, tt.want)
		}
	}
}

func (f *fixture) enrollEmpty() {
	f.Helper()
	f.publish()
	f.enroll()
}

// A new version takes its blocks from the one that is installed, kept or
// delivered.
func TestBasesAreHandedOn(t *testing.T) {
	for _, kind := range []patch.Kind{patch.KindCommand, patch.KindFile} {
		f := newFixture(t)
		old := make([]byte, 6<<20)
		for i := range old {
			old[i] = byte(i >> 20)
		}
		fresh := bytes.Clone(old)
		copy(fresh[3<<20:], "another version")
		change := func(p *patch.Patch) {
			p.Kind = kind
			if kind == patch.KindCommand {
				command("exit 0")(p)
			}
		}
		f.add("hello", "1", "hello.bin", old, change)
		f.blocks("hello", "1", "hello.bin", old)
		f.publish()
		f.enroll()
		f.wantApply("hello 1 committed", nil)
		f.add("hello", "2", "hello.bin", fresh, change)
		f.blocks("hello", "2", "hello.bin", fresh)
		f.publish()
		var log bytes.Buffer
		_, err := f.agent().Apply(zerolog.New(&log).WithContext(t.Context()), agent.ApplyOptions{})
		f.must(err)
		if !strings.Contains(log.String(), fmt.Sprintf(`"copied":%d`, 5<<20)) {
			t.Errorf("%s: five blocks of six should come from the base:\n%s", kind, log.String())
		}
		if got, err := f.agent().Status(); err != nil || got.Installed["hello"].Version != "2" {
			t.Errorf("%s: %+v, %v", kind, got, err)
		}
	}
}

// blocks signs the block list of a file.
func (f *fixture) blocks(product, version, file string, content []byte) {
	f.Helper()
	var list []byte
	for rest := content; len(rest) > 0; {
		n := min(len(rest), 1<<20)
		sum := sha256.Sum256(rest[:n])
		list, rest = append(list, sum[:]...), rest[n:]
	}
	path := layoutPath(f.T, &patch.Patch{Product: product, Version: version, Platform: "any"}, file)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.repo.AddArtifact("product-"+product, path+".blocks", list)
}
