package patch

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func valid() *Patch {
	return &Patch{
		Format: Format, ID: "hello@1.1/linux-amd64", Product: "hello", Version: "1.1", Platform: "linux-amd64",
		Title: "Hello 1.1", Severity: SeverityCritical, CVEs: []string{"CVE-2026-12345"}, Kind: KindCommand,
		Applies:  Applicability{MinVersion: "1.0", MaxVersion: "1.1", Requires: []string{"base>=2", "libc"}},
		Install:  &Recipe{Argv: []string{"install", "{file}", "{root}/hello"}, Timeout: 60, Exit: map[string]Outcome{"3010": Reboot, "-1": Retry}},
		Verify:   &Recipe{Argv: []string{"hello", "--version"}},
		Released: time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC),
		Links:    []string{"https://example.org/notes"},
	}
}

func TestCustomRoundTrip(t *testing.T) {
	p := valid()
	raw, err := p.ToCustom()
	if err != nil {
		t.Fatal(err)
	}
	got, err := FromCustom(raw)
	if err != nil || !reflect.DeepEqual(got, p) {
		t.Fatalf("FromCustom = %+v, %v\nwant %+v", got, err, p)
	}
	// A newer version's field survives.
	raw = []byte(strings.Replace(string(raw), `"format":1`, `"format":1,"delta":{"from":"1.0"}`, 1))
	got, err = FromCustom(raw)
	if err != nil || string(got.Unknown["delta"]) != `{"from":"1.0"}` {
		t.Fatalf("FromCustom = %+v, %v", got, err)
	}
	again, err := got.ToCustom()
	if err != nil || !strings.Contains(string(again), `"delta":{"from":"1.0"}`) {
		t.Fatalf("ToCustom lost the unknown field: %s, %v", again, err)
	}
	for _, none := range []string{"", `{}`, `{"other":1}`} {
		if p, err := FromCustom([]byte(none)); p != nil || err != nil {
			t.Errorf("FromCustom(%q) = %v, %v; want neither", none, p, err)
		}
	}
}

func TestDigest(t *testing.T) {
	p := valid()
	raw, err := p.ToCustom()
	if err != nil {
		t.Fatal(err)
	}
	want, err := Digest(raw)
	if err != nil || len(want) != 64 {
		t.Fatalf("Digest = %q, %v", want, err)
	}
	// Order and white space do not count, and neither does what is beside.
	var v map[string]map[string]any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	v["other"] = map[string]any{"x": 1}
	spaced, err := json.MarshalIndent(v, " ", "\t")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Digest(spaced); got != want || err != nil {
		t.Errorf("Digest of the same, written otherwise = %q, %v; want %q", got, err, want)
	}
	p.Install.Argv[0] = "rm"
	if raw, err = p.ToCustom(); err != nil {
		t.Fatal(err)
	}
	if got, err := Digest(raw); got == want || err != nil {
		t.Errorf("another recipe has the same digest: %q, %v", got, err)
	}
	for _, bad := range []string{"", "{}", "[]", `{"patchkeep":1}`} {
		if _, err := Digest([]byte(bad)); !errors.Is(err, ErrBad) {
			t.Errorf("Digest(%q) = %v, want ErrBad", bad, err)
		}
	}
}

func TestCheckRefuses(t *testing.T) {
	tests := map[string]func(*Patch){
		"format":       func(p *Patch) { p.Format = 2 },
		"product":      func(p *Patch) { p.Product = "../x" },
		"id":           func(p *Patch) { p.ID = "other@1.1/linux-amd64" },
		"severity":     func(p *Patch) { p.Severity = "bad" },
		"kind":         func(p *Patch) { p.Kind = "floppy" },
		"cve":          func(p *Patch) { p.CVEs = []string{"CVE-1"} },
		"link":         func(p *Patch) { p.Links = []string{"javascript:alert(1)"} },
		"no install":   func(p *Patch) { p.Install = nil },
		"empty argv":   func(p *Patch) { p.Verify.Argv = nil },
		"no command":   func(p *Patch) { p.Install.Argv = nil },
		"empty argv 0": func(p *Patch) { p.Install.Argv[0] = "" },
		"nul":          func(p *Patch) { p.Install.Argv[1] = "a\x00b" },
		"placeholder":  func(p *Patch) { p.Install.Argv[1] = "{password}" },
		"many args":    func(p *Patch) { p.Install.Argv = make([]string, 200); p.Install.Argv[0] = "x" },
		"timeout":      func(p *Patch) { p.Install.Timeout = -1 },
		"long timeout": func(p *Patch) { p.Install.Timeout = 1 << 40 },
		"exit code":    func(p *Patch) { p.Install.Exit = map[string]Outcome{"01": Success} },
		"exit outcome": func(p *Patch) { p.Install.Exit = map[string]Outcome{"1": "great"} },
		"requires":     func(p *Patch) { p.Applies.Requires = []string{"a b"} },
		"supersedes":   func(p *Patch) { p.Applies.Supersedes = []string{"hello"} },
		"os":           func(p *Patch) { p.Applies.OS = []string{"Linux "} },
		"version":      func(p *Patch) { p.Applies.MinVersion = "1 0" },
		"signature":    func(p *Patch) { p.OSSignature = &OSSignature{Scheme: "pgp", Signers: []string{"x"}} },
		"no signer":    func(p *Patch) { p.OSSignature = &OSSignature{Scheme: RPMSignature} },
		"signer":       func(p *Patch) { p.OSSignature = &OSSignature{Scheme: PkgSignature, Signers: []string{"TEAM"}} },
		"kind to sign": func(p *Patch) {
			p.Kind = KindDeb
			p.OSSignature = &OSSignature{Scheme: RPMSignature, Signers: []string{strings.Repeat("a", 40)}}
		},
		"released":  func(p *Patch) { p.Released = time.Time{} },
		"title":     func(p *Patch) { p.Title = strings.Repeat("x", 5000) },
		"many cves": func(p *Patch) { p.CVEs = make([]string, 300) },
		"too long in all": func(p *Patch) {
			p.Install.Argv = strings.Split(strings.Repeat(strings.Repeat("x", 8000)+" ", 20), " ")[:20]
		},
	}
	for name, breakIt := range tests {
		p := valid()
		breakIt(p)
		if _, err := p.ToCustom(); !errors.Is(err, ErrBad) {
			t.Errorf("%s: ToCustom = %v, want ErrBad", name, err)
		}
	}
}

func TestExpandOnce(t *testing.T) {
	r := Recipe{Argv: []string{"cp", "{file}", "x{version}y{unknown}", "; rm -rf {root}"}}
	got := r.Expand(map[string]string{"file": "/a/{root} b", "version": "{file}", "root": "/r"})
	want := []string{"cp", "/a/{root} b", "x{file}y{unknown}", "; rm -rf /r"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Expand = %q, want %q", got, want)
	}
}

func TestOutcomeOf(t *testing.T) {
	r := Recipe{Exit: map[string]Outcome{"3010": Reboot, "0": NotApplicable}}
	for code, want := range map[int]Outcome{0: NotApplicable, 1: Failure, 3010: Reboot} {
		if got := r.OutcomeOf(code); got != want {
			t.Errorf("OutcomeOf(%d) = %s, want %s", code, got, want)
		}
	}
	if got := (&Recipe{}).OutcomeOf(0); got != Success {
		t.Errorf("OutcomeOf(0) = %s", got)
	}
	// Codes of 32 bits, as Windows has them: 0x80070642.
	for _, key := range []string{"-2147023294", "2147944002"} {
		if got := (&Recipe{Exit: map[string]Outcome{key: Retry}}).OutcomeOf(2147944002); got != Retry {
			t.Errorf("OutcomeOf(2147944002) by %s = %s", key, got)
		}
	}
	if got := (&Recipe{Exit: map[string]Outcome{"-1": Retry}}).OutcomeOf(1); got != Failure {
		t.Errorf("OutcomeOf(1) = %s", got)
	}
}

func TestAppliesTo(t *testing.T) {
	tests := []struct {
		name      string
		os, arch  string
		installed map[string]string
		why       string // part of it; "" if it applies
	}{
		{"fits", "linux", "amd64", map[string]string{"hello": "1.0", "base": "2.1", "libc": "1"}, ""},
		{"same version fits", "linux", "amd64", map[string]string{"hello": "1.1", "base": "2", "libc": "1"}, ""},
		{"other system", "windows", "amd64", nil, "not for windows"},
		{"other architecture", "linux", "arm64", nil, "not for arm64"},
		{"not installed", "linux", "amd64", map[string]string{}, "not installed"},
		{"too old", "linux", "amd64", map[string]string{"hello": "0.9"}, "at least 1.0"},
		{"too new", "linux", "amd64", map[string]string{"hello": "1.10"}, "1.1 at most"},
		{"requirement missing", "linux", "amd64", map[string]string{"hello": "1.0", "base": "2"}, "requires libc"},
		{"requirement too old", "linux", "amd64", map[string]string{"hello": "1.0", "base": "1.9", "libc": "1"}, "requires base>=2"},
	}
	for _, tt := range tests {
		ok, why := valid().AppliesTo(Device{OS: tt.os, Arch: tt.arch, Installed: func(p string) string { return tt.installed[p] }})
		if ok != (tt.why == "") || !strings.Contains(why, tt.why) {
			t.Errorf("%s: AppliesTo = %v, %q; want %q", tt.name, ok, why, tt.why)
		}
	}
}

func TestCompareVersions(t *testing.T) {
	ordered := []string{"0.9", "1.0.0-rc1", "1.0.0", "1.0.1", "1.2", "1.10", "2.0", "10"}
	for i, a := range ordered {
		for j, b := range ordered {
			if got := CompareVersions(a, b); got != sign(i-j) {
				t.Errorf("CompareVersions(%s, %s) = %d, want %d", a, b, got, sign(i-j))
			}
		}
	}
	deb := &Patch{Kind: KindDeb}
	for _, c := range [][2]string{{"1.0~rc1", "1.0"}, {"1.0-1", "1.0-2"}, {"1.9", "1:0.1"}, {"1.0-1", "1.0-1+deb12u1"}} {
		if deb.Compare(c[0], c[1]) != -1 || deb.Compare(c[1], c[0]) != 1 {
			t.Errorf("Compare does not put %s before %s", c[0], c[1])
		}
	}
}

func TestCompareRPM(t *testing.T) {
	p := &Patch{Kind: KindRPM}
	for _, c := range [][2]string{{"1.0~rc1", "1.0"}, {"1.0", "1.0^git1"}, {"1.0-1", "1.0-2"}, {"1.0-9.el9", "1.0-10.el9"}, {"1.9", "1:0.1"}, {"1.0-2", "1.1"}, {"1.a", "1.1"}} {
		if p.Compare(c[0], c[1]) != -1 || p.Compare(c[1], c[0]) != 1 {
			t.Errorf("Compare does not put %s before %s", c[0], c[1])
		}
	}
	for _, c := range [][2]string{{"1.0", "1.0-2.el9"}, {"1.0", "1.0"}, {"1:1.0-1", "1:1.0"}} {
		if p.Compare(c[0], c[1]) != 0 || p.Compare(c[1], c[0]) != 0 {
			t.Errorf("Compare takes %s and %s for different", c[0], c[1])
		}
	}
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

func FuzzFromCustom(f *testing.F) {
	raw, err := valid().ToCustom()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(raw))
	f.Add([]byte(`{"patchkeep":{"format":1}}`))
	f.Add([]byte(`{"patchkeep":{"format":1,"format":2}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := FromCustom(data)
		if err != nil || p == nil {
			return
		}
		raw, err := p.ToCustom()
		if err != nil {
			t.Fatalf("accepted but cannot be written: %v", err)
		}
		again, err := FromCustom(raw)
		if err != nil || again.ID != p.ID || len(again.Unknown) != len(p.Unknown) {
			t.Fatalf("does not round-trip: %v", err)
		}
	})
}
