//go:build unix

package install_test

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/repo/patch"
)

func demand(scheme patch.SignatureScheme, signers ...string) func(*patch.Patch) {
	return func(p *patch.Patch) { p.OSSignature = &patch.OSSignature{Scheme: scheme, Signers: signers} }
}

// What cannot be checked here is refused, and nothing is run.
func TestSignatureThatCannotBeChecked(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("other systems can check some")
	}
	b := newBench(t)
	for _, tt := range []struct {
		kind   patch.Kind
		demand func(*patch.Patch)
		want   string
	}{
		{patch.KindCommand, demand(patch.Authenticode, "cn:Example"), "only Windows can check Authenticode"},
		{patch.KindCommand, demand(patch.PkgSignature, "ABCDE12345"), "pkgutil is not on this machine"},
		{patch.KindCommand, demand("smoke"), "is not known"},
	} {
		job := b.job(t, tt.kind, "1.1", "f", nil, recipe("true"), tt.demand)
		_, err := b.Run(t.Context(), job)
		if !errors.Is(err, install.ErrSignature) || !errors.Is(err, install.ErrUnsupported) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Run = %v, want %q", err, tt.want)
		}
	}
	if logs, _ := os.ReadDir(b.Dir + "/logs"); len(logs) > 0 {
		t.Error("something was run")
	}
}

const pkgSigned = `Package "tool.pkg":
   Status: signed by a developer certificate issued by Apple for distribution
   Notarization: trusted by the Apple notary service
   Signed with a trusted timestamp on: 2026-11-23 08:00:00 +0000
   Certificate Chain:
    1. Developer ID Installer: Example (GmbH) (ABCDE12345)
       Expires: 2027-02-01 22:12:15 +0000
       SHA256 Fingerprint:
           AA BB
       ------------------------------------------------------------------------
    2. Developer ID Certification Authority
`

func TestPkgSignature(t *testing.T) {
	b := newBench(t)
	b.fakeProgram(t, "installer", "echo installed")
	job := b.job(t, patch.KindPkg, "1.1", "tool.pkg", []byte("pkg"), demand(patch.PkgSignature, "XXXXX00000", "ABCDE12345"))
	for name, tt := range map[string]struct{ said, exit, want string }{
		"signed":            {pkgSigned, "0", ""},
		"of another team":   {strings.ReplaceAll(pkgSigned, "ABCDE12345", "FGHIJ67890"), "0", "signed by team FGHIJ67890"},
		"team further down": {strings.ReplaceAll(pkgSigned, "1. Developer", "2. Developer"), "0", "not signed with a Developer ID"},
		"for apps":          {strings.ReplaceAll(pkgSigned, "ID Installer", "ID Application"), "0", "not signed with a Developer ID"},
		"self-signed":       {strings.ReplaceAll(pkgSigned, "signed by a developer certificate issued by Apple for distribution", "signed by untrusted certificate"), "0", "untrusted certificate"},
		"for development":   {strings.ReplaceAll(pkgSigned, "for distribution", "(Development)"), "0", "(Development)"},
		"no signature":      {"Package \"tool.pkg\":\n   Status: no signature\n", "1", "no signature"},
		"says no":           {pkgSigned, "1", "macOS says no"},
		"silent":            {"", "0", "not signed"},
	} {
		b.fakeProgram(t, "pkgutil", "cat <<'EOF'\n"+tt.said+"EOF\nexit "+tt.exit+"\n")
		out, err := b.Run(t.Context(), job)
		switch {
		case tt.want == "" && (err != nil || out.Output != "installed\n"):
			t.Errorf("%s: %+v, %v", name, out, err)
		case tt.want != "" && (!errors.Is(err, install.ErrSignature) || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: %+v, %v; want %q", name, out, err, tt.want)
		}
	}
}

func TestPkgReceipt(t *testing.T) {
	b := newBench(t)
	p := &patch.Patch{Product: "com.example.tool", Kind: patch.KindPkg}
	if !b.CanDetect(p) || b.CanDetect(&patch.Patch{Product: "tool", Kind: patch.KindPkg}) {
		t.Error("only a product that is called like a package's id can be looked up")
	}
	for said, want := range map[string]string{
		`test "$2" = com.example.tool && printf 'package-id: com.example.tool\nversion: 1.2.3\nvolume: /\n'`: "1.2.3",
		"echo 'No receipt for com.example.tool found at /.' >&2; exit 1":                                     "",
		"echo nonsense": "!",
	} {
		b.fakeProgram(t, "pkgutil", said)
		got, err := b.Detect(t.Context(), p, install.Known{Version: "9"})
		if (err != nil) != (want == "!") || err == nil && got != want {
			t.Errorf("%s: Detect = %q, %v; want %q", said, got, err, want)
		}
	}
	if got, err := b.Detect(t.Context(), &patch.Patch{Product: "tool", Kind: patch.KindPkg}, install.Known{Version: "9"}); got != "9" || err != nil {
		t.Errorf("Detect by the record = %q, %v", got, err)
	}
}
