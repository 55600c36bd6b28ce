package repo_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/inventory"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// exposure says what is missing, as "ring patch state lacking/of reason".
func (f *fixture) exposure(t *testing.T, rows string) (*repo.Exposure, []string) {
	t.Helper()
	in, err := inventory.Read(strings.NewReader("machine,ring,product,version,platform\n" + rows))
	if err != nil {
		t.Fatal(err)
	}
	x, err := f.repo.Exposure(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, m := range x.Missing {
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s %s %d/%d %s%s", m.Ring, m.Patch, m.State, m.Lacking, m.Of, m.Reason, m.Covered)))
	}
	return x, lines
}

func TestExposure(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	add := func(version, platform string, severity patch.Severity) {
		t.Helper()
		p := newPatch(version)
		p.Platform, p.ID, p.Severity = platform, patch.MakeID("hello", version, platform), severity
		p.Released = time.Date(2026, 1, int(severity[0])%28+1, 0, 0, 0, 0, time.UTC)
		if _, _, err := f.repo.AddPatch(ctx, p, "f", bytes.NewReader([]byte(version+platform)), -1, repo.AddOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	add("1.1", "any", patch.SeverityLow)
	add("1.2", "linux-amd64", patch.SeverityCritical)
	add("1.3", "windows-amd64", patch.SeverityModerate)
	rows := "a,users,hello,1.0,linux-amd64\nb,users,hello,1.1,windows-amd64\nc,users,hello,1.10,\nd,servers,hello,1.0,\n" +
		"e,users,tool,1.0,\nf,users,hello,,\ng,moon,hello,1.0,linux-arm64\nh,,hello,1.0,\n"
	x, got := f.exposure(t, rows)
	want := []string{
		"servers hello@1.2/linux-amd64 not-started 1/1 no reason given",
		"users hello@1.2/linux-amd64 not-started 1/2 no reason given",
		"servers hello@1.3/windows-amd64 not-started 1/1 no reason given",
		"users hello@1.3/windows-amd64 not-started 1/2 no reason given",
		"moon hello@1.1/any not-started 1/1 no reason given",
		"servers hello@1.1/any not-started 1/1 no reason given",
		"users hello@1.1/any not-started 1/3 no reason given",
	}
	if !slices.Equal(got, want) {
		t.Errorf("missing:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if x.Machines != 8 || x.NoRing != 1 || !slices.Equal(x.UnknownRings, []string{"moon"}) || !slices.Equal(x.Missing[1].IDs, []string{"a"}) {
		t.Errorf("%+v", x)
	}

	f.start(t, "1.2", "users", "10%@0h,100%@24h")
	if _, err := f.repo.Pause(ctx, "hello", "1.2", "users", "", false); err != nil {
		t.Fatal(err)
	}
	if _, err := f.repo.Hold(ctx, "hello", "1.2", "servers", "audit", false); err != nil {
		t.Fatal(err)
	}
	f.start(t, "1.3", "users", "")
	if _, _, err := f.repo.AddHalt(ctx, repo.HaltScope{Product: "hello", Version: "1.3"}, "crash", "anna", false); err != nil {
		t.Fatal(err)
	}
	_, got = f.exposure(t, rows)
	for _, want := range []string{
		"users hello@1.2/linux-amd64 paused 1/2 no reason given",
		"servers hello@1.2/linux-amd64 held 1/1 audit",
		"users hello@1.3/windows-amd64 halted 1/2 crash",
		"users hello@1.1/any not-started 1/3 no reason givenhello@1.3",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%q is not there:\n%s", want, strings.Join(got, "\n"))
		}
	}
}
