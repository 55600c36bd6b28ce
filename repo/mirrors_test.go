package repo_test

import (
	"errors"
	"io/fs"
	"maps"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/mirror/upstream"
	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/mirrors"
)

func TestListOfMirrors(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	if list, err := f.repo.Mirrors(ctx); err != nil || list == nil || len(list) != 0 {
		t.Errorf("before the first: %v, %v", list, err)
	}
	branch := mirrors.Mirror{URL: "http://branch:8080", Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Weight: 2}
	origin := mirrors.Mirror{URL: "https://origin", Origin: true}
	for _, m := range []mirrors.Mirror{branch, origin} {
		if _, err := f.repo.AddMirror(ctx, m, false); err != nil {
			t.Fatal(err)
		}
	}
	before := f.files(t)
	for _, c := range []struct {
		name string
		do   func() error
		want error
	}{
		{"again", func() error { _, err := f.repo.AddMirror(ctx, branch, false); return err }, repo.ErrExists},
		{"not canonical", func() error { _, err := f.repo.AddMirror(ctx, mirrors.Mirror{URL: "https://X/"}, false); return err }, mirrors.ErrBad},
		{"remove unknown", func() error { _, err := f.repo.RemoveMirror(ctx, "https://x", false); return err }, fs.ErrNotExist},
		{"dry run", func() error { _, err := f.repo.RemoveMirror(ctx, branch.URL, true); return err }, nil},
	} {
		if err := c.do(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if after := f.files(t); !maps.Equal(before, after) {
			t.Fatalf("%s: it changed the store", c.name)
		}
	}
	locked := repo.Open(f.store, repo.Config{Keys: f.keys.without(layout.RoleMirrors)})
	if _, err := locked.AddMirror(ctx, mirrors.Mirror{URL: "https://x"}, false); !errors.Is(err, repo.ErrKeys) {
		t.Errorf("without the key: %v, want %v", err, repo.ErrKeys)
	}
	list, err := f.repo.Mirrors(ctx)
	if err != nil || len(list) != 2 || list[0].URL != branch.URL || list[0].Networks[0] != branch.Networks[0] || !list[1].Origin {
		t.Errorf("%+v, %v", list, err)
	}
	f.mustVerify(t)
	if _, err := f.repo.RemoveMirror(ctx, branch.URL, false); err != nil {
		t.Fatal(err)
	}
	if list, err := f.repo.Mirrors(ctx); err != nil || len(list) != 1 {
		t.Errorf("after the removal: %+v, %v", list, err)
	}
}

// A list that its role signed and that no client would read is a fault.
func TestVerifyReadsTheListOfMirrors(t *testing.T) {
	r := tuftest.New()
	r.Delegate("targets", tuftest.Delegation{
		Role: layout.RoleMirrors, Paths: layout.MirrorsPatterns(), Terminating: true, Keys: []*tuftest.Key{tuftest.NewKey(tuftest.Ed25519)},
	})
	r.AddArtifact(layout.RoleMirrors, layout.MirrorsPath, []byte(`{"format":1,"mirrors":[{"url":"https://user:secret@mirror"}]}`))
	r.PublishAll()
	ts := httptest.NewServer(r)
	defer ts.Close()
	src, err := upstream.NewHTTP(ts.URL)
	if err != nil {
		t.Fatal(err)
	}
	report, err := repo.Verify(t.Context(), src, repo.VerifyConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Faults) != 1 || report.Faults[0].Where != layout.MirrorsPath || !strings.Contains(report.Faults[0].What, "bad list of mirrors") {
		t.Errorf("%+v", report.Faults)
	}
}
