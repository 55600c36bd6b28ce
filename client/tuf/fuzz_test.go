package tuf_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
)

// fuzzRole serves hostile bytes in the place of a role's file. The client must
// not panic, not accept them, and say why in one of its own words.
func fuzzRole(f *testing.F, role string) {
	repo := tuftest.New()
	repo.Delegate("targets", tuftest.Delegation{Role: "A"})
	repo.DelegateBins("A", 2, "bin")
	repo.PublishAll()
	if role == "root" {
		repo.Publish("root")
	}
	root := repo.Published["root"][0]
	good := bytes.Clone(repo.Latest(role))
	f.Add(good)
	f.Add([]byte(`{"signed":{"_type":"` + role + `","spec_version":"1.0.0","version":1,"expires":"2030-01-01T00:00:00Z"},"signatures":[]}`))
	for _, s := range []string{
		"", "{}", "null", "[]", `{"signed":null,"signatures":null}`, `{"signed":{},"signatures":[null]}`,
		`{"signed":{"_type":"targets","spec_version":"1.0","version":1,"targets":{"a":null}},"signatures":[]}`,
		`{"signed":{"_type":"timestamp","spec_version":"1.0","version":1,"meta":{"snapshot.json":null}},"signatures":[{"keyid":"a","sig":"00"}]}`,
		`{"signed":{"_type":"root","spec_version":"1.0","version":2,"keys":{"a":null},"roles":{"root":null}},"signatures":[]}`,
		`{"signed":{"_type":"targets","spec_version":"1.0","version":1,"delegations":{"keys":null,"succinct_roles":{"bit_length":33}}},"signatures":[]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		repo.SetLatest(role, data)
		c, err := tuf.Open(tuf.Config{Root: root, Fetcher: repo})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.Target(t.Context(), "file")
		if errors.Is(err, tuf.ErrNotTrusted) || errors.Is(err, tuf.ErrTooLarge) || errors.Is(err, tuf.ErrExpired) {
			return
		}
		// Accepted: then it says what the signers signed, spelt otherwise.
		if got := c.Bytes(role); len(got) > 0 && !sameSigned(got, good) {
			t.Fatalf("accepted %q: %v", data, err)
		}
	})
}

// sameSigned tells whether two files sign the same content as go-tuf reads it.
func sameSigned(a, b []byte) bool {
	content := func(data []byte) (out []byte) {
		defer func() { recover() }()
		tuftest.Edit(data, func(md map[string]any) {
			for name, v := range md {
				if len(name) == len("signed") {
					out = tuftest.Canonical(v)
				}
			}
		})
		return out
	}
	return bytes.Equal(content(a), content(b))
}

func FuzzRoot(f *testing.F)      { fuzzRole(f, "root") }
func FuzzTimestamp(f *testing.F) { fuzzRole(f, "timestamp") }
func FuzzSnapshot(f *testing.F)  { fuzzRole(f, "snapshot") }
func FuzzTargets(f *testing.F)   { fuzzRole(f, "targets") }
func FuzzDelegated(f *testing.F) { fuzzRole(f, "A") }

// FuzzState plants hostile files in the state, the root among them.
func FuzzState(f *testing.F) {
	repo := tuftest.New()
	root := repo.Latest("root")
	f.Add([]byte("{}"), []byte("{}"))
	f.Add(root, repo.Latest("timestamp"))
	f.Fuzz(func(t *testing.T, savedRoot, saved []byte) {
		dir := writeFiles(t, map[string]string{
			"root.json": string(savedRoot), "timestamp.json": string(saved),
			"snapshot.json": string(saved), "targets.json": string(saved), "clock": string(saved),
		})
		if c, err := tuf.Open(tuf.Config{Dir: dir, Fetcher: repo}); err == nil {
			c.Close()
		}
		c, err := tuf.Open(tuf.Config{Dir: dir, Root: root, Fetcher: repo})
		if err != nil {
			return // a root of the same version that differs
		}
		defer c.Close()
		if err := c.Refresh(t.Context()); err != nil && !errors.Is(err, tuf.ErrClock) && bytes.Equal(c.Bytes("root"), root) {
			t.Fatal(err)
		}
	})
}
