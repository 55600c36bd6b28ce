package repo_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/delta"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// addFrom publishes a version with deltas from others.
func (f *fixture) addFrom(t testing.TB, version, file string, content []byte, opt repo.AddOptions) (*repo.Published, error) {
	t.Helper()
	pub, _, err := f.repo.AddPatch(t.Context(), newPatch(version), file, bytes.NewReader(content), int64(len(content)), opt)
	return pub, err
}

// read returns a target's object.
func (f *fixture) read(t testing.TB, path, sum string) []byte {
	t.Helper()
	rc, _, err := f.store.Open(t.Context(), layout.TargetObject(path, sum), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	data, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestDeltas(t *testing.T) {
	onEachStore(t, deltas)
}

// A delta of more than 4 MiB has a block list, like any file.
func TestDeltaWithBlockList(t *testing.T) {
	f := newFixture(t)
	old := randomBytes(3 << 20)
	f.add(t, "1.0", old)
	pub, err := f.addFrom(t, "1.1", "hello.bin", append(randomBytes(4<<20+1), old...), repo.AddOptions{DeltaFrom: []string{"1.0"}})
	if err != nil || len(pub.Deltas) != 1 || !pub.Deltas[0].Blocks || pub.Deltas[0].Length <= 4<<20 {
		t.Fatalf("%+v, %v", pub, err)
	}
	f.mustVerify(t)
	change, err := f.repo.WithdrawPatch(t.Context(), "hello", "1.1", false)
	if err != nil || len(change.Roles[0].Targets) != 4 {
		t.Errorf("withdrawn: %+v, %v", change, err)
	}
}

func deltas(t *testing.T, f *fixture) {
	old, older := randomBytes(99_999), randomBytes(2000)
	next := append(append(randomBytes(100_000), old...), older...)
	from := map[string][]byte{"1.0": older, "1.1": old}
	f.add(t, "1.0", older)
	base := f.add(t, "1.1", old)
	pub, err := f.addFrom(t, "2.0", "hello.bin", next, repo.AddOptions{DeltaFrom: []string{"1.1", "1.0"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(pub.Deltas) != 2 || pub.Deltas[0].Skipped != "" || pub.Deltas[0].Blocks || pub.Deltas[0].Length > 110_000 {
		t.Fatalf("deltas: %+v", pub.Deltas)
	}
	if !strings.Contains(pub.Deltas[1].Skipped, "more than 60 %") || pub.Deltas[1].Path != "" {
		t.Errorf("a delta that does not pay: %+v", pub.Deltas[1])
	}
	list, err := f.repo.PatchVersion(t.Context(), "hello", "2.0")
	if err != nil || len(list) != 1 || len(list[0].Deltas) != 1 {
		t.Fatalf("PatchVersion = %+v, %v", list, err)
	}
	d := list[0].Deltas[0]
	if want := pub.Path + ".from-" + base.SHA256[:16] + ".delta"; d.Path != want || d.From != "1.1" || d.BaseSHA256 != base.SHA256 || d.SHA256 != pub.Deltas[0].SHA256 {
		t.Errorf("delta %+v, want it at %s", d, want)
	}
	var got bytes.Buffer
	if _, err := delta.Apply(t.Context(), &got, bytes.NewReader(from[d.From]), int64(len(old)), bytes.NewReader(f.read(t, d.Path, d.SHA256)), pub.Length); err != nil || !bytes.Equal(got.Bytes(), next) {
		t.Errorf("it makes %d bytes, %v", got.Len(), err)
	}
	if r := f.mustVerify(t); r.Patches != 3 || r.Deltas != 1 || len(r.Warnings) != 0 {
		t.Errorf("verify: %+v", r)
	}

	change, err := f.repo.WithdrawPatch(t.Context(), "hello", "2.0", false)
	if err != nil {
		t.Fatal(err)
	}
	removed := 0
	for _, r := range change.Roles {
		removed += len(r.Targets)
	}
	if r := f.mustVerify(t); removed != 2 || r.Patches != 2 || r.Deltas != 0 || len(r.Warnings) != 0 {
		t.Errorf("withdrawn: %d targets removed, %+v", removed, r)
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	for i, x := 0, uint64(n); i < n; i++ {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x >> 32)
	}
	return b
}

func TestDeltaDryRun(t *testing.T) {
	f := newFixture(t)
	old := randomBytes(100_000)
	f.add(t, "1.0", old)
	before := f.files(t)
	var told []string
	pub, err := f.addFrom(t, "1.1", "hello.bin", append(old, "more"...), repo.AddOptions{
		DryRun: true, DeltaFrom: []string{"1.0"}, OnDelta: func(v string) { told = append(told, v) },
	})
	if err != nil || len(pub.Deltas) != 1 || pub.Deltas[0].Length == 0 || pub.Deltas[0].Length > 1000 || len(told) != 1 || told[0] != "1.0" {
		t.Errorf("%+v, %v, told of %q", pub, err, told)
	}
	if after := f.files(t); !maps.Equal(before, after) {
		t.Errorf("the store changed")
	}
}

func TestDeltasThatCannotBe(t *testing.T) {
	f := newFixture(t)
	old := randomBytes(100_000)
	f.add(t, "1.0", old)
	same := f.add(t, "1.0a", old)
	f.add(t, "1.0b", nil)
	next := append(bytes.Clone(old), "more"...)
	before := f.files(t)
	for name, c := range map[string]struct {
		from []string
		want error
	}{
		"a version that is not published": {[]string{"0.9"}, fs.ErrNotExist},
		"too many":                        {strings.Fields("1 2 3 4 5 6 7 8 9"), nil},
	} {
		_, err := f.addFrom(t, "1.1", "hello.bin", next, repo.AddOptions{DeltaFrom: c.from})
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !maps.Equal(before, f.files(t)) {
		t.Error("something was written all the same")
	}

	pub, err := f.addFrom(t, "1.1", strings.Repeat("x", 153), next, repo.AddOptions{DeltaFrom: []string{"1.0"}})
	if err != nil || len(pub.Deltas) != 1 || !strings.Contains(pub.Deltas[0].Skipped, "file name is longer") {
		t.Errorf("a name that is too long: %+v, %v", pub, err)
	}
	pub, err = f.addFrom(t, "1.2", "hello.bin", next, repo.AddOptions{DeltaFrom: []string{"1.0", "1.0a", "1.0b"}})
	if err != nil || pub.Deltas[0].Skipped != "" || !strings.Contains(pub.Deltas[1].Skipped, "same file") || !strings.Contains(pub.Deltas[2].Skipped, "empty") {
		t.Errorf("the same base twice, and an empty one: %+v, %v", pub, err)
	}
	f.mustVerify(t)

	// What lies in the store is not believed.
	object := filepath.Join(f.dir, layout.TargetObject(same.Path, same.SHA256))
	if err := os.Chmod(object, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(object, append([]byte{old[0] ^ 1}, old[1:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.addFrom(t, "1.3", "hello.bin", next, repo.AddOptions{DeltaFrom: []string{"1.0a"}}); !errors.Is(err, repo.ErrNotTrusted) {
		t.Errorf("a damaged base: %v", err)
	}
	if err := os.Remove(object); err != nil {
		t.Fatal(err)
	}
	if _, err := f.addFrom(t, "1.3", "hello.bin", next, repo.AddOptions{DeltaFrom: []string{"1.0a"}}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing base: %v", err)
	}
}

// A delta whose object was damaged is a fault, like that of a patch.
func TestVerifyReadsDeltas(t *testing.T) {
	f := newFixture(t)
	old := randomBytes(100_000)
	f.add(t, "1.0", old)
	pub, err := f.addFrom(t, "1.1", "hello.bin", append(bytes.Clone(old), "more"...), repo.AddOptions{DeltaFrom: []string{"1.0"}})
	if err != nil {
		t.Fatal(err)
	}
	d := pub.Deltas[0]
	data := f.read(t, d.Path, d.SHA256)
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != d.SHA256 {
		t.Fatalf("%+v has sha256 %x", d, sum)
	}
	object := filepath.Join(f.dir, layout.TargetObject(d.Path, d.SHA256))
	data[len(data)/2] ^= 1
	if err := errors.Join(os.Chmod(object, 0o600), os.WriteFile(object, data, 0o600)); err != nil {
		t.Fatal(err)
	}
	if r := f.verify(t); len(r.Faults) != 1 || r.Faults[0].Where != d.Path {
		t.Errorf("%+v", r.Faults)
	}
}

// What is signed about a delta, and is of no use, is a fault that verify and show
// name, and nothing that stops the patch itself.
func TestVerifyChecksWhatDeltasSay(t *testing.T) {
	old := randomBytes(100_000)
	for name, change := range map[string]func(*delta.Info) *delta.Info{
		"nothing":        func(*delta.Info) *delta.Info { return nil },
		"another base":   func(i *delta.Info) *delta.Info { i.BaseSHA256 = i.SHA256; return i },
		"another result": func(i *delta.Info) *delta.Info { i.SHA256 = i.BaseSHA256; return i },
		"another length": func(i *delta.Info) *delta.Info { i.Length++; return i },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.add(t, "1.0", old)
			pub, err := f.addFrom(t, "1.1", "hello.bin", append(bytes.Clone(old), "more"...), repo.AddOptions{DeltaFrom: []string{"1.0"}})
			if err != nil {
				t.Fatal(err)
			}
			path := pub.Deltas[0].Path
			err = f.repo.EditRole(t.Context(), "product-hello", func(role *metadata.TargetsType) {
				tf := *role.Targets[path]
				info, err := delta.FromCustom(*tf.Custom)
				if err != nil {
					t.Fatal(err)
				}
				tf.Custom = nil
				if info = change(info); info != nil {
					raw, err := info.ToCustom()
					if err != nil {
						t.Fatal(err)
					}
					tf.Custom = &raw
				}
				role.Targets[path] = &tf
			})
			if err != nil {
				t.Fatal(err)
			}
			if r := f.verify(t); len(r.Faults) != 1 || r.Faults[0].Where != path || r.Deltas != 0 {
				t.Errorf("%+v", r)
			}
			list, err := f.repo.PatchVersion(t.Context(), "hello", "1.1")
			if err != nil || len(list) != 1 || len(list[0].Deltas) != 1 || list[0].Deltas[0].Skipped == "" {
				t.Errorf("%+v, %v", list, err)
			}
			f.start(t, "1.1", "users", "")
		})
	}
}
