package repo_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/store"
	"github.com/patchkeep/patchkeep/repo/store/storeurl"
)

var storeOptions store.Options

// export is a change as it lies on a stick.
func (c *council) export(t testing.TB, id string) []byte {
	t.Helper()
	b, err := c.as().ExportPending(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if _, err := b.WriteTo(&file); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

// signFile is what an officer does on a machine without network.
func signFile(t testing.TB, file, root []byte, keys ...*testKey) ([]byte, *repo.Pending, error) {
	t.Helper()
	b, err := repo.ReadBundle(bytes.NewReader(file))
	if err != nil {
		return nil, nil, err
	}
	r, err := repo.OpenBundle(b, repo.Config{Keys: only(keys...), Root: root})
	if err != nil {
		return nil, nil, err
	}
	p, err := r.Pending(t.Context(), b.ID)
	if err != nil {
		return nil, nil, err
	}
	if _, err := r.SignPending(t.Context(), p); err != nil {
		return nil, p, err
	}
	var out bytes.Buffer
	_, err = r.Signatures().WriteTo(&out)
	return out.Bytes(), p, err
}

func (c *council) importFile(t testing.TB, file []byte) (*repo.Imported, error) {
	t.Helper()
	b, err := repo.ReadBundle(bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	return c.as().ImportPending(t.Context(), b, false)
}

func (c *council) root(t testing.TB) []byte {
	t.Helper()
	root, err := c.repo.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func TestAirGap(t *testing.T) { onEachCouncil(t, airGap) }

func airGap(t *testing.T, c *council) {
	change, err := c.waiting(repo.WaitAlways).StartRollout(t.Context(), repo.Rollout{Product: "hello", Version: "1.0", Ring: "servers"}, false)
	if err != nil {
		t.Fatal(err)
	}
	id, root := change.Pending.ID, c.root(t)
	file := c.export(t, id)
	if len(file) > 64<<10 {
		t.Errorf("the file has %d bytes", len(file))
	}
	var files [][]byte
	for _, key := range c.officers {
		sigs, p, err := signFile(t, file, root, key)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := strings.Join(p.Roles[0].Words, "\n"), strings.Join(change.Pending.Roles[0].Words, "\n"); got != want {
			t.Errorf("offline it says\n%s\nand at the repository\n%s", got, want)
		}
		files = append(files, sigs)
	}
	if _, _, err := signFile(t, file, root, c.keys.role["halt"]); !errors.Is(err, repo.ErrKeys) {
		t.Errorf("a key of another role signs: %v, want ErrKeys", err)
	}
	for _, i := range []int{2, 0} { // in any order
		in, err := c.importFile(t, files[i])
		if err != nil || len(in.Added) != 1 || in.Added[0].KeyID != c.officers[i].id || in.Whole {
			t.Fatalf("ImportPending = %+v, %v", in, err)
		}
	}
	before := c.files(t)
	if _, err := c.importFile(t, files[2]); !errors.Is(err, repo.ErrExists) {
		t.Errorf("ImportPending again = %v, want ErrExists", err)
	}
	if !maps.Equal(before, c.files(t)) {
		t.Error("a refusal changed the store")
	}
	if _, err := c.online().PublishPending(t.Context(), id, false); err != nil {
		t.Fatal(err)
	}
	if !c.approved(t, "1.0") {
		t.Error("it is not published")
	}
	c.mustVerify(t)
	if _, err := c.as().ExportPending(t.Context(), id); !errors.Is(err, repo.ErrExists) {
		t.Errorf("ExportPending of a published change = %v, want ErrExists", err)
	}
}

// TestImportWholeChange brings a change to another copy of the repository.
func TestImportWholeChange(t *testing.T) {
	c := newCouncil(t, t.TempDir())
	copied := &council{fixture: emptyFixture(t, t.TempDir()), officers: c.officers}
	copied.keys = c.keys
	for name := range c.files(t) {
		data, err := readStore(t, c.store, name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := copied.store.Create(t.Context(), name, bytes.NewReader(data), int64(len(data)), storeOptions); err != nil {
			t.Fatal(err)
		}
	}
	p := c.start(t, "1.0", c.officers[0])
	sigs, _, err := signFile(t, c.export(t, p.ID), c.root(t), c.officers[1])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := copied.importFile(t, sigs); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("signatures of an unknown change: %v, want ErrNotExist", err)
	}
	if in, err := copied.importFile(t, c.export(t, p.ID)); err != nil || !in.Whole || len(in.Added) != 1 {
		t.Fatalf("ImportPending = %+v, %v", in, err)
	}
	if in, err := copied.importFile(t, sigs); err != nil || in.Change.State != repo.PendingReady {
		t.Fatalf("ImportPending = %+v, %v", in, err)
	}
	r := repo.Open(copied.store, repo.Config{Keys: c.keys.find})
	if _, err := r.PublishPending(t.Context(), p.ID, false); err != nil {
		t.Fatal(err)
	}
	copied.repo = r
	copied.mustVerify(t)
}

// TestHostileFiles changes what is on the stick.
func TestHostileFiles(t *testing.T) {
	c := newCouncil(t, t.TempDir())
	c.add(t, "1.1", []byte("two"))
	p, other := c.start(t, "1.0", c.officers[0]), c.start(t, "1.1", c.officers[0])
	root, ben := c.root(t), c.officers[1]
	change, foreign := c.export(t, p.ID), newCouncil(t, t.TempDir())
	sigs, _, err := signFile(t, change, root, ben)
	if err != nil {
		t.Fatal(err)
	}
	otherSigs, _, err := signFile(t, c.export(t, other.ID), root, ben)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(file []byte, edit func(m map[string]any, objects map[string]any)) []byte {
		var m map[string]any
		if err := json.Unmarshal(file, &m); err != nil {
			t.Fatal(err)
		}
		edit(m, m["objects"].(map[string]any))
		out, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	object := func(objects map[string]any, name string) string {
		data, err := base64.StdEncoding.DecodeString(objects[name].(string))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	set := func(objects map[string]any, name, data string) {
		objects[name] = base64.StdEncoding.EncodeToString([]byte(data))
	}
	role := layout.PendingRole(p.ID, "ring-servers")
	sig := layout.PendingSignature(p.ID, "ring-servers", ben.id)
	signing := map[string][]byte{
		"no JSON":                    []byte("<html>"),
		"empty":                      nil,
		"of another kind":            []byte(`{"format":1,"kind":"x","id":"y","objects":{}}`),
		"a format to come":           edit(change, func(m, _ map[string]any) { m["format"] = 2 }),
		"an id that climbs":          edit(change, func(m, _ map[string]any) { m["id"] = "../x" }),
		"an object that climbs":      edit(change, func(_, o map[string]any) { set(o, "pending/../x", "") }),
		"an object of another place": edit(change, func(_, o map[string]any) { set(o, "audit/x", "") }),
		"the id of another change":   edit(change, func(m, _ map[string]any) { m["id"] = other.ID }),
		"another plan": edit(change, func(_, o map[string]any) {
			set(o, role, strings.Replace(object(o, role), `"length":`, `"length":1`, 1))
		}),
		"a document of other content": edit(change, func(_, o map[string]any) {
			for name := range o {
				if strings.HasPrefix(name, "targets/rings/servers/") {
					set(o, name, object(o, name)+" ")
				}
			}
		}),
		"without the role's metadata": edit(change, func(_, o map[string]any) { delete(o, role) }),
		"without what is published": edit(change, func(_, o map[string]any) {
			for name := range o {
				if strings.HasPrefix(name, "metadata/") {
					delete(o, name)
				}
			}
		}),
		"a role that is not signed by its keys": edit(change, func(_, o map[string]any) {
			name := "metadata/1.ring-servers.json"
			set(o, name, strings.Replace(object(o, name), `"length":`, `"length":1`, 1))
		}),
		"signatures instead of a change": sigs,
	}
	for name, file := range signing {
		t.Run("signing/"+name, func(t *testing.T) {
			if _, _, err := signFile(t, file, root, ben); !errors.Is(err, repo.ErrBadPending) && !errors.Is(err, repo.ErrNotTrusted) &&
				!errors.Is(err, repo.ErrNoRepository) && !errors.Is(err, layout.ErrBadName) && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("it is signed, or: %v", err)
			}
		})
	}
	if _, _, err := signFile(t, change, foreign.root(t), ben); !errors.Is(err, repo.ErrNotTrusted) {
		t.Errorf("verified from another root: %v, want ErrNotTrusted", err)
	}
	if _, _, err := signFile(t, change, nil, ben); err == nil {
		t.Error("signed without a pinned root")
	}
	before := c.files(t)
	for name, file := range map[string][]byte{
		"over other bytes": edit(sigs, func(_, o map[string]any) {
			var m map[string]any
			if err := json.Unmarshal(otherSigs, &m); err != nil {
				t.Fatal(err)
			}
			o[sig] = m["objects"].(map[string]any)[layout.PendingSignature(other.ID, "ring-servers", ben.id)]
		}),
		"under another key": edit(sigs, func(_, o map[string]any) {
			o[layout.PendingSignature(p.ID, "ring-servers", c.officers[2].id)] = o[sig]
		}),
		"of another role": edit(sigs, func(_, o map[string]any) {
			o[layout.PendingSignature(p.ID, "ring-users", ben.id)] = o[sig]
		}),
		"by a key of another role": edit(sigs, func(_, o map[string]any) {
			halt := c.keys.role["halt"]
			s, _ := halt.Sign(t.Context(), []byte("x"))
			set(o, layout.PendingSignature(p.ID, "ring-servers", halt.id), fmt.Sprintf(`{"format":1,"keyid":"%s","sig":"%x"}`, halt.id, s))
		}),
		"no signature": edit(sigs, func(_, o map[string]any) { set(o, sig, "{}") }),
		"with a target": edit(sigs, func(_, o map[string]any) {
			set(o, "targets/"+fmt.Sprintf("%x", sha256.Sum256(nil))+".x", "")
		}),
		"none": edit(sigs, func(_, o map[string]any) { clear(o) }),
	} {
		t.Run("importing/"+name, func(t *testing.T) {
			if in, err := c.importFile(t, file); err == nil {
				t.Errorf("it is taken: %+v", in)
			}
			if !maps.Equal(before, c.files(t)) {
				t.Error("a refusal changed the store")
			}
		})
	}
	// And into a repository that does not have the change.
	s, err := storeurl.Open(t.Context(), foreign.ref)
	if err != nil {
		t.Fatal(err)
	}
	b, err := repo.ReadBundle(bytes.NewReader(change))
	if err != nil {
		t.Fatal(err)
	}
	if in, err := repo.Open(s, repo.Config{}).ImportPending(t.Context(), b, false); err == nil && (in.Change.State == repo.PendingReady || len(in.Added) > 0) {
		t.Errorf("a change of another repository: %+v", in)
	}
	foreign.mustVerify(t)
}
