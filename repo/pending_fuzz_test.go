package repo

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// FuzzPendingDescriptor reads what lies in pending/ as anyone may have written it.
func FuzzPendingDescriptor(f *testing.F) {
	desc := &descriptor{
		Format: pendingFormat, Created: time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC), Title: "t", By: "b",
		Base:  descriptorBase{Root: 1, Targets: 1},
		Roles: []descriptorRole{{Role: "ring-users", From: 1, To: 2, SHA256: strings.Repeat("0", 64), Threshold: 1, KeyIDs: []string{strings.Repeat("a", 64)}}},
	}
	id, err := desc.makeID()
	if err != nil {
		f.Fatal(err)
	}
	desc.ID = id
	data, err := json.Marshal(desc)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := parseDescriptor(data, id); err != nil {
		f.Fatal(err)
	}
	f.Add(data, id)
	f.Add([]byte(`{"format":1,"roles":[null]}`), id)
	f.Fuzz(func(t *testing.T, data []byte, id string) {
		c, err := parseDescriptor(data, id)
		if err != nil {
			return
		}
		again, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if c2, err := parseDescriptor(again, id); err != nil || c2.ID != c.ID {
			t.Errorf("what was read is not read again: %v", err)
		}
	})
}

// FuzzPendingMetadata reads metadata that waits for signatures: what is taken is
// exactly what would be written, and all of it can be put into words.
func FuzzPendingMetadata(f *testing.F) {
	md := newTargets("ring-users", time.Hour)
	md.Signed.Targets["rings/users/plan.json"] = targetFile("rings/users/plan.json", 3, [32]byte{1})
	custom := json.RawMessage(`{"patchkeep":{"a":[1,"<&>"]}}`)
	md.Signed.Targets["x/y"] = targetFile("x/y", 3, [32]byte{1})
	md.Signed.Targets["x/y"].Custom = &custom
	md.Signed.Delegations = &metadata.Delegations{Keys: map[string]*metadata.Key{}, Roles: []metadata.DelegatedRole{{Name: "r", Paths: []string{"*"}}}}
	data, _, err := encodeUnsigned(md)
	if err != nil {
		f.Fatal(err)
	}
	if _, _, err := parseUnsigned(data, checkTargets); err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"signatures":[],"signed":{"_type":"targets","targets":{"a":null}}}`))
	f.Add([]byte(`{"signatures":[],"signed":{"_type":"targets","delegations":{"keys":{"a":null}}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		md, payload, err := parseUnsigned(data, checkTargets)
		if err != nil {
			return
		}
		again, payload2, err := encodeUnsigned(md)
		if err != nil || !bytes.Equal(again, data) || !bytes.Equal(payload, payload2) {
			t.Errorf("what was read is written otherwise: %v", err)
		}
		w := &wording{role: "x", before: &metadata.TargetsType{}, after: &md.Signed}
		if err := w.delegations(); err != nil {
			t.Error(err)
		}
		for path, tf := range md.Signed.Targets {
			if err := w.entry(path, nil, tf); err != nil {
				t.Error(err)
			}
		}
		if err := w.rest(); err != nil {
			t.Error(err)
		}
		for _, line := range w.lines {
			if printable(line) != line {
				t.Errorf("%q could steer a terminal", line)
			}
		}
	})
}

// FuzzPendingFiles reads the small files of a change, and those that travel.
func FuzzPendingFiles(f *testing.F) {
	key := strings.Repeat("a", 64)
	f.Add([]byte(`{"format":1,"keyid":"` + key + `","sig":"00"}`))
	f.Add([]byte(`{"format":1,"outcome":"rebased","next":"20261124-00","when":"2026-11-24T08:00:00Z"}`))
	f.Add([]byte(`{"format":1,"kind":"patchkeep change","id":"20261124-00","objects":{"metadata/1.root.json":"e30="}}`))
	f.Add([]byte(`{"format":1,"kind":"patchkeep signatures","id":"a","objects":{"pending/a/signatures/r/` + key + `.json":"e30="}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if sig, err := parseSignature(data, key); err == nil && len(sig) == 0 {
			t.Error("an empty signature")
		}
		if c, err := parseClosing(data); err == nil && printable(c.Reason+c.By) != c.Reason+c.By {
			t.Errorf("%q could steer a terminal", c.Reason+c.By)
		}
		b, err := ReadBundle(bytes.NewReader(data))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if _, err := b.WriteTo(&out); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadBundle(&out); err != nil {
			t.Errorf("what was read is not read again: %v", err)
		}
	})
}

// FuzzMerge merges any three documents: it ends, and what only one side changed
// is as that side has it.
func FuzzMerge(f *testing.F) {
	f.Add([]byte(`{"a":[{"id":"1"}]}`), []byte(`{"a":[{"id":"1"},{"id":"2"}]}`), []byte(`{"a":[{"id":"3"}],"b":["x"]}`))
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		old, err1 := object(a)
		ours, err2 := object(b)
		now, err3 := object(c)
		if err1 != nil || err2 != nil || err3 != nil {
			return
		}
		if _, err := merge3("x", old, ours, now); err != nil {
			return
		}
		for _, same := range []map[string]any{ours, now} {
			got, err := merge3("x", same, same, now)
			if err != nil || compact(got) != compact(now) {
				t.Errorf("nothing was changed, and now %s becomes %s: %v", compact(now), compact(got), err)
			}
		}
		if got, err := merge3("x", old, ours, old); err != nil || compact(got) != compact(ours) {
			t.Errorf("only we changed it: %s instead of %s: %v", compact(got), compact(ours), err)
		}
	})
}
