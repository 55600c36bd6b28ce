package signing_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/signing"
)

// The published keys open with the published password, all of them are known as
// examples, and none signs unless it is allowed to.
func TestExampleKeys(t *testing.T) {
	const examples = "../keys-example"
	published, err := filepath.Glob(filepath.Join(examples, "*.key"))
	if err != nil || len(published) < 12 {
		t.Fatalf("found %d example keys, %v", len(published), err)
	}
	dir := t.TempDir() // git does not keep mode 0600
	for _, path := range published {
		for _, p := range []string{path, strings.TrimSuffix(path, ".key") + ".pub"} {
			data, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(p)), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	opts := signing.Options{Password: signing.StaticPassword("patchkeep-example")}
	kr := open(t, opts, dir)
	var some signing.KeyInfo
	for _, info := range kr.Keys() {
		if !info.Example || !signing.IsExample(info.ID) {
			t.Errorf("%s is not known as an example", info.Name)
		}
		_, err := kr.Signer(t.Context(), info.ID)
		wantErr(t, err, signing.ErrExampleKey, info.Name, "demo")
		some = info
	}
	opts.AllowExample = true
	if _, err := open(t, opts, dir).Signer(t.Context(), some.ID); err != nil {
		t.Error(err)
	}
	opts.AllowExample = false

	// Neither under another name, nor without its public half.
	private, err := os.ReadFile(some.Source)
	if err != nil {
		t.Fatal(err)
	}
	_, err = open(t, opts, t.TempDir()).Import(t.Context(), "mine", private)
	wantErr(t, err, signing.ErrExampleKey)
	renamed := filepath.Join(t.TempDir(), "mine.key")
	if err := os.WriteFile(renamed, private, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = open(t, opts, renamed).Signer(t.Context(), some.ID)
	wantErr(t, err, signing.ErrExampleKey)

	if signing.IsExample(plant(t, t.TempDir(), "own", password, signing.Ed25519).ID) {
		t.Error("a fresh key is taken for an example")
	}
}

// A signature that metadata carries must satisfy go-tuf's own verifier.
func TestSignaturesSatisfyTUF(t *testing.T) {
	dir := t.TempDir()
	for _, alg := range []signing.Algorithm{signing.Ed25519, signing.ECDSAP256} {
		info := plant(t, dir, string(alg), password, alg)
		signer, err := open(t, locked(), dir).Signer(t.Context(), info.ID)
		if err != nil {
			t.Fatal(err)
		}
		key, id, err := signing.TUFKey(signer.Public())
		if err != nil {
			t.Fatal(err)
		}
		root := metadata.Root()
		for _, role := range []string{"root", "targets", "snapshot", "timestamp"} {
			if err := root.Signed.AddKey(key, role); err != nil {
				t.Fatal(err)
			}
		}
		payload, err := root.Signed.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		// VerifyDelegate checks over the canonical form, which cjson gives.
		payload = canonical(t, payload)
		sig, err := signer.Sign(t.Context(), payload)
		if err != nil {
			t.Fatal(err)
		}
		root.Signatures = []metadata.Signature{{KeyID: id, Signature: sig}}
		if err := root.VerifyDelegate("root", root); err != nil {
			t.Errorf("%s: %v", alg, err)
		}
	}
}

func TestNamesOfAlgorithms(t *testing.T) {
	for in, want := range map[string]signing.Algorithm{"": signing.Ed25519, "ed25519": signing.Ed25519, "ECDSA-P256": signing.ECDSAP256} {
		if got, err := signing.ParseAlgorithm(in); err != nil || got != want {
			t.Errorf("ParseAlgorithm(%q) = %q, %v", in, got, err)
		}
	}
	if got, err := signing.ParseAlgorithm("rsa"); err == nil {
		t.Errorf("rsa is taken as %q", got)
	}
}

func TestNothingSecretIsPrinted(t *testing.T) {
	dir := t.TempDir()
	info := plant(t, dir, "root", password, signing.Ed25519)
	key, err := open(t, locked(), dir).Signer(t.Context(), info.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(format, key); got != "key "+info.ID {
			t.Errorf("%s prints %q", format, got)
		}
	}
	if got, want := info.Fingerprint(), info.ID[:4]+" "+info.ID[4:8]; !strings.HasPrefix(got, want) || len(got) != 39 {
		t.Errorf("fingerprint %q of %s", got, info.ID)
	}
	if got := signing.Fingerprint("short"); got != "short" {
		t.Errorf("fingerprint of a short id: %q", got)
	}
}

func TestDescribe(t *testing.T) {
	dir := t.TempDir()
	info := plant(t, dir, "root", password, signing.Ed25519)
	for _, path := range []string{info.Source, filepath.Join(dir, "root.pub")} {
		got, err := signing.Describe(path)
		if err != nil || got.ID != info.ID || got.Name != "root" || got.Source != path {
			t.Errorf("%s: %+v, %v", path, got, err)
		}
	}
	_, err := signing.Describe(filepath.Join(dir, "none.key"))
	wantErr(t, err, os.ErrNotExist, "none.pub")
}

func canonical(t *testing.T, data []byte) []byte {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	out, err := cjson.EncodeCanonical(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
