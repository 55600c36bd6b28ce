package signing_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/youmark/pkcs8"

	"github.com/patchkeep/patchkeep/signing"
)

const password = "correct horse battery staple"

var payload = []byte(`{"_type":"snapshot"}`)

func open(t testing.TB, opts signing.Options, locations ...string) *signing.Keyring {
	t.Helper()
	kr, err := signing.Open(t.Context(), locations, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kr.Close)
	return kr
}

func create(t testing.TB, dir, name string, alg signing.Algorithm) signing.KeyInfo {
	t.Helper()
	info, err := open(t, locked(), dir).Create(t.Context(), name, alg)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// plant lays down key files like those of create, encrypted so weakly that
// tests need not wait for them.
func plant(t testing.TB, dir, name, password string, alg signing.Algorithm) signing.KeyInfo {
	t.Helper()
	info, err := open(t, signing.Options{AllowUnencrypted: true}, dir).Create(t.Context(), name, alg)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := os.ReadFile(info.Source)
	if err != nil {
		t.Fatal(err)
	}
	priv, err := cryptoutils.UnmarshalPEMToPrivateKey(plain, nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := pkcs8.MarshalPrivateKey(priv, []byte(password), &pkcs8.Opts{
		Cipher:  pkcs8.AES128CBC,
		KDFOpts: pkcs8.ScryptOpts{SaltSize: 8, CostParameter: 16, BlockSize: 1, ParallelizationParameter: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	sealed := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: der})
	if err := os.WriteFile(info.Source, sealed, 0o600); err != nil {
		t.Fatal(err)
	}
	return info
}

func locked() signing.Options { return signing.Options{Password: signing.StaticPassword(password)} }

func wantErr(t *testing.T, err, target error, words ...string) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error %v, want %v", err, target)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
	if strings.Contains(err.Error(), password) {
		t.Errorf("error %q shows the password", err)
	}
}

func verify(t *testing.T, pub crypto.PublicKey, payload, sig []byte) {
	t.Helper()
	ok := false
	switch pub := pub.(type) {
	case ed25519.PublicKey:
		ok = ed25519.Verify(pub, payload, sig)
	case *ecdsa.PublicKey:
		digest := sha256.Sum256(payload)
		ok = ecdsa.VerifyASN1(pub, digest[:], sig)
	}
	if !ok {
		t.Error("the signature does not verify")
	}
}

func TestSign(t *testing.T) {
	for _, alg := range []signing.Algorithm{signing.Ed25519, signing.ECDSAP256} {
		t.Run(string(alg), func(t *testing.T) {
			dir := t.TempDir()
			made := plant(t, dir, "root", password, alg)
			if made.Algorithm != alg || made.Name != "root" || made.Example {
				t.Errorf("created %+v", made)
			}

			kr := open(t, locked(), dir)
			infos := kr.Keys()
			if len(infos) != 1 || infos[0].ID != made.ID || infos[0].Algorithm != alg || infos[0].Source != filepath.Join(dir, "root.key") {
				t.Fatalf("keys %+v, want %+v", infos, made)
			}
			key, err := kr.Signer(t.Context(), made.ID)
			if err != nil {
				t.Fatal(err)
			}
			sig, err := key.Sign(t.Context(), payload)
			if err != nil {
				t.Fatal(err)
			}
			verify(t, made.Public, payload, sig)
			if key.KeyID() != made.ID {
				t.Errorf("key id %s, want %s", key.KeyID(), made.ID)
			}
			if _, id, err := signing.TUFKey(key.Public()); err != nil || id != made.ID {
				t.Errorf("TUF key id %s, %v; want %s", id, err, made.ID)
			}

			cancelled, cancel := context.WithCancel(t.Context())
			cancel()
			_, err = key.Sign(cancelled, payload)
			wantErr(t, err, context.Canceled)
		})
	}
}

// Here, and in few other tests, a key is encrypted as users have it.
func TestCreate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "here")
	info := create(t, dir, "root", signing.Ed25519)
	data, err := os.ReadFile(info.Source)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(data), "-----BEGIN ENCRYPTED PRIVATE KEY-----\n") {
		t.Errorf("written as %.40q", data)
	}
	if fi, err := os.Stat(info.Source); err != nil || runtime.GOOS != "windows" && fi.Mode().Perm() != 0o600 {
		t.Errorf("private key: mode %v, %v; want 0600", fi.Mode(), err)
	}
	// Other programs of this ecosystem read it with the standard reader.
	priv, err := cryptoutils.UnmarshalPEMToPrivateKey(data, cryptoutils.StaticPasswordFunc([]byte(password)))
	if err != nil {
		t.Fatal(err)
	}
	if !priv.(ed25519.PrivateKey).Public().(ed25519.PublicKey).Equal(info.Public) {
		t.Error("cryptoutils reads another key")
	}
	if _, err := open(t, locked(), dir).Signer(t.Context(), info.ID); err != nil {
		t.Error(err)
	}
	pubPEM, err := os.ReadFile(filepath.Join(dir, "root.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if pub, err := signing.ParsePublic(pubPEM); err != nil || !pub.(ed25519.PublicKey).Equal(info.Public) {
		t.Errorf("public key %v, %v", pub, err)
	}
}

func TestCreateRefuses(t *testing.T) {
	dir := t.TempDir()
	before := plant(t, dir, "taken", password, signing.Ed25519)
	old, _ := os.ReadFile(before.Source)

	kr := open(t, locked(), dir)
	_, err := kr.Create(t.Context(), "taken", signing.Ed25519)
	wantErr(t, err, fs.ErrExist, "taken.key")
	if now, _ := os.ReadFile(before.Source); string(now) != string(old) {
		t.Error("an existing key was changed")
	}

	if err := os.WriteFile(filepath.Join(dir, "half.pub"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = kr.Create(t.Context(), "half", signing.Ed25519)
	wantErr(t, err, fs.ErrExist, "half.pub")

	for _, name := range []string{"", "../up", "a/b", ".hidden", "root.key", "root.pub", "a b", strings.Repeat("n", 65)} {
		_, err := kr.Create(t.Context(), name, signing.Ed25519)
		wantErr(t, err, signing.ErrKey, "name")
	}
	_, err = kr.Create(t.Context(), "new", "rsa")
	wantErr(t, err, signing.ErrKey)

	for name, pf := range map[string]signing.PasswordFunc{"none": nil, "empty": signing.StaticPassword("")} {
		_, err = open(t, signing.Options{Password: pf}, dir).Create(t.Context(), name, signing.Ed25519)
		wantErr(t, err, signing.ErrPassword, "unprotected")
	}
	_, err = open(t, locked()).Create(t.Context(), "nowhere", signing.Ed25519)
	wantErr(t, err, signing.ErrRef)

	files, _ := filepath.Glob(filepath.Join(dir, "*.key"))
	if len(files) != 1 {
		t.Errorf("refused keys left files: %v", files)
	}
}

func TestUnencryptedByChoiceOnly(t *testing.T) {
	dir := t.TempDir()
	info, err := open(t, signing.Options{AllowUnencrypted: true}, dir).Create(t.Context(), "plain", signing.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, signing.Options{}, dir).Signer(t.Context(), info.ID); err != nil {
		t.Error(err)
	}
}

func TestPasswords(t *testing.T) {
	dir := t.TempDir()
	first := plant(t, dir, "first", password, signing.Ed25519)
	second := plant(t, dir, "second", password, signing.Ed25519)
	third := plant(t, dir, "third", "another", signing.Ed25519)

	t.Run("asked once for all", func(t *testing.T) {
		asked := 0
		kr := open(t, signing.Options{Password: func(_ context.Context, what string, confirm bool) ([]byte, error) {
			asked++
			if confirm || !strings.Contains(what, ".key") {
				t.Errorf("asked for %q, confirm %v", what, confirm)
			}
			return []byte(password), nil
		}}, dir)
		for _, id := range []string{first.ID, second.ID, first.ID} {
			if _, err := kr.Signer(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := kr.Create(t.Context(), "fourth", signing.Ed25519); err != nil {
			t.Fatal(err)
		}
		if asked != 1 {
			t.Errorf("asked %d times", asked)
		}
	})
	t.Run("asked again for a key with another one", func(t *testing.T) {
		answers := []string{password, "mistyped", "another"}
		kr := open(t, signing.Options{Password: func(context.Context, string, bool) ([]byte, error) {
			pw := answers[0]
			answers = answers[1:]
			return []byte(pw), nil
		}}, dir)
		for _, id := range []string{first.ID, third.ID} {
			if _, err := kr.Signer(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("wrong", func(t *testing.T) {
		_, err := open(t, locked(), dir).Signer(t.Context(), third.ID)
		wantErr(t, err, signing.ErrPassword, "third.key", "wrong")
	})
	t.Run("none", func(t *testing.T) {
		_, err := open(t, signing.Options{}, dir).Signer(t.Context(), first.ID)
		wantErr(t, err, signing.ErrPassword, "none")
		_, err = open(t, signing.Options{Password: signing.StaticPassword("")}, dir).Signer(t.Context(), first.ID)
		wantErr(t, err, signing.ErrPassword, "empty")
	})
	t.Run("cancelled", func(t *testing.T) {
		kr := open(t, signing.Options{Password: func(context.Context, string, bool) ([]byte, error) {
			return nil, context.Canceled
		}}, dir)
		_, err := kr.Signer(t.Context(), first.ID)
		wantErr(t, err, context.Canceled)
	})
}

func TestMissingKeySaysWhereItLooked(t *testing.T) {
	dir := t.TempDir()
	plant(t, dir, "root", password, signing.Ed25519)
	id := strings.Repeat("ab", 32)
	_, err := open(t, locked(), dir, filepath.Join(dir, "absent")).Signer(t.Context(), id)
	wantErr(t, err, fs.ErrNotExist, id, dir, "absent (does not exist)")
	_, err = open(t, locked()).Signer(t.Context(), id)
	wantErr(t, err, fs.ErrNotExist, "no place of keys")
}

func TestKeyWithoutPublicHalf(t *testing.T) {
	dir := t.TempDir()
	info := plant(t, dir, "lonely", password, signing.Ed25519)
	if err := os.Remove(filepath.Join(dir, "lonely.pub")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "junk.key"), []byte("not a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	kr := open(t, locked(), dir)
	if got := kr.Keys(); len(got) != 2 || got[1].ID != "" || got[1].Name != "lonely" {
		t.Errorf("keys before unlocking: %+v", got)
	}
	if _, err := kr.Signer(t.Context(), info.ID); err != nil {
		t.Fatal(err)
	}
	if got := kr.Keys(); got[1].ID != info.ID {
		t.Errorf("keys after unlocking: %+v", got)
	}
	_, err := kr.Signer(t.Context(), strings.Repeat("00", 32))
	wantErr(t, err, fs.ErrNotExist, "junk.key")
}

func TestReferenceToOneKey(t *testing.T) {
	dir := t.TempDir()
	info := plant(t, dir, "one", password, signing.Ed25519)
	plant(t, dir, "two", password, signing.Ed25519)
	for _, ref := range []string{info.Source, "file:" + info.Source} {
		kr := open(t, locked(), ref, ref)
		if got := kr.Keys(); len(got) != 1 || got[0].ID != info.ID {
			t.Errorf("%s: keys %+v", ref, got)
		}
		if _, err := kr.Signer(t.Context(), info.ID); err != nil {
			t.Error(err)
		}
	}
	_, err := signing.Open(t.Context(), []string{"awskms:///alias/root"}, signing.Options{})
	wantErr(t, err, signing.ErrRef, "awskms", "file:PATH")
}

func TestPermissiveModeIsRefused(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // modes say nothing there
	}
	dir := filepath.Join(t.TempDir(), "it's")
	info := plant(t, dir, "root", password, signing.Ed25519)
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o620, 0o601} {
		if err := os.Chmod(info.Source, mode); err != nil {
			t.Fatal(err)
		}
		_, err := open(t, locked(), dir).Signer(t.Context(), info.ID)
		wantErr(t, err, signing.ErrKey, "chmod 600 '", `it'\''s/root.key'`)
	}
}

func TestDamagedFiles(t *testing.T) {
	dir := t.TempDir()
	info := plant(t, dir, "root", password, signing.Ed25519)
	good, err := os.ReadFile(info.Source)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(good)
	encode := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	cut := func(n int) []byte { return encode(block.Type, block.Bytes[:n]) }
	flipped := append([]byte(nil), block.Bytes...)
	flipped[len(flipped)-1] ^= 1
	seed := append([]byte(nil), block.Bytes...)
	seed[len(seed)-20] ^= 1
	legacy := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte("x"), Headers: map[string]string{"DEK-Info": "AES-128-CBC,00"}})

	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"empty":             {nil, signing.ErrKey},
		"no PEM":            {[]byte("ssh-ed25519 AAAA"), signing.ErrKey},
		"cut in the middle": {good[:len(good)/2], signing.ErrKey},
		"no content":        {cut(0), signing.ErrKey},
		"cut DER":           {cut(len(block.Bytes) - 5), signing.ErrKey},
		"last byte":         {encode(block.Type, flipped), nil}, // padding only, or seed: either refused or harmless
		"seed":              {encode(block.Type, seed), nil},
		"public key":        {encode("PUBLIC KEY", block.Bytes), signing.ErrKey},
		"plain, but is not": {encode("PRIVATE KEY", block.Bytes), signing.ErrKey},
		"cosign, but is not": {
			encode("ENCRYPTED SIGSTORE PRIVATE KEY", []byte(`{"kdf":{"name":"scrypt","params":{"N":1073741824,"r":8,"p":1}}}`)), signing.ErrPassword,
		},
		"old encryption": {legacy, signing.ErrKey},
		"too large":      {make([]byte, 65<<10), signing.ErrKey},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(info.Source, c.data, 0o600); err != nil {
				t.Fatal(err)
			}
			key, err := open(t, locked(), dir).Signer(t.Context(), info.ID)
			if c.want != nil {
				wantErr(t, err, c.want, "root.key")
			} else if err == nil && key.KeyID() != info.ID {
				t.Error("another key was taken for this one")
			}
		})
	}

	if err := os.Remove(info.Source); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(info.Source, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = signing.Open(t.Context(), []string{info.Source}, locked())
	if err != nil { // a directory named like a key is one that holds keys
		t.Error(err)
	}
}

// A planted key file must not cost gigabytes or hours.
func TestAbsurdDecryptionIsRefused(t *testing.T) {
	dir := t.TempDir()
	info := plant(t, dir, "root", password, signing.Ed25519)
	type algorithm struct {
		OID    asn1.ObjectIdentifier
		Params any
	}
	scrypt := func(n, r, p int) algorithm {
		return algorithm{asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 4, 11}, struct {
			Salt    []byte
			N, R, P int
		}{[]byte("saltsalt"), n, r, p}}
	}
	pbkdf2 := func(rounds int) algorithm {
		return algorithm{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}, struct {
			Salt   []byte
			Rounds int
		}{[]byte("saltsalt"), rounds}}
	}
	aes := asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
	for name, c := range map[string]struct {
		kdf    algorithm
		cipher algorithm
		data   []byte
	}{
		"memory":      {scrypt(1<<30, 8, 1), algorithm{aes, make([]byte, 16)}, make([]byte, 64)},
		"overflow":    {scrypt(1<<62, 1<<62, 1<<62), algorithm{aes, make([]byte, 16)}, make([]byte, 64)},
		"work":        {scrypt(1<<14, 8, 1<<20), algorithm{aes, make([]byte, 16)}, make([]byte, 64)},
		"negative":    {scrypt(-2, 8, 1), algorithm{aes, make([]byte, 16)}, make([]byte, 64)},
		"rounds":      {pbkdf2(1 << 40), algorithm{aes, make([]byte, 16)}, make([]byte, 64)},
		"zero rounds": {pbkdf2(0), algorithm{aes, make([]byte, 16)}, make([]byte, 64)},
		"vector":      {scrypt(1<<4, 8, 1), algorithm{aes, make([]byte, 5)}, make([]byte, 64)},
		"odd length":  {scrypt(1<<4, 8, 1), algorithm{aes, make([]byte, 16)}, make([]byte, 63)},
		"no data":     {scrypt(1<<4, 8, 1), algorithm{aes, make([]byte, 16)}, nil},
		"cipher":      {scrypt(1<<4, 8, 1), algorithm{asn1.ObjectIdentifier{1, 2, 3}, make([]byte, 16)}, make([]byte, 64)},
		"function":    {algorithm{asn1.ObjectIdentifier{1, 2, 3}, make([]byte, 1)}, algorithm{aes, make([]byte, 16)}, make([]byte, 64)},
	} {
		t.Run(name, func(t *testing.T) {
			der, err := asn1.Marshal(struct {
				Algorithm struct {
					OID    asn1.ObjectIdentifier
					Params struct{ KDF, Cipher algorithm }
				}
				Data []byte
			}{
				struct {
					OID    asn1.ObjectIdentifier
					Params struct{ KDF, Cipher algorithm }
				}{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}, struct{ KDF, Cipher algorithm }{c.kdf, c.cipher}}, c.data,
			})
			if err != nil {
				t.Fatal(err)
			}
			data := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: der})
			if err := os.WriteFile(info.Source, data, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err = open(t, locked(), dir).Signer(t.Context(), info.ID)
			wantErr(t, err, signing.ErrKey, "root.key")
		})
	}
}

func TestPublicHalfOfAnotherKey(t *testing.T) {
	dir := t.TempDir()
	plant(t, dir, "mine", password, signing.Ed25519)
	other := plant(t, dir, "other", password, signing.Ed25519)
	if err := os.Rename(filepath.Join(dir, "other.pub"), filepath.Join(dir, "mine.pub")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(other.Source); err != nil {
		t.Fatal(err)
	}
	_, err := open(t, locked(), dir).Signer(t.Context(), other.ID)
	wantErr(t, err, signing.ErrKey, "does not belong to")
}

func TestUnsupportedKeys(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for word, priv := range map[string]crypto.Signer{"P-256": p384, "RSA": rsaKey} {
		_, _, err := signing.TUFKey(priv.Public())
		wantErr(t, err, signing.ErrKey, word)

		dir := t.TempDir()
		privPEM, err := cryptoutils.MarshalPrivateKeyToPEM(priv)
		if err != nil {
			t.Fatal(err)
		}
		_, err = open(t, locked(), dir).Import(t.Context(), "bad", privPEM)
		wantErr(t, err, signing.ErrKey, word)

		pubPEM, err := cryptoutils.MarshalPublicKeyToPEM(priv.Public())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "bad.key"), privPEM, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "bad.pub"), pubPEM, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = signing.Open(t.Context(), []string{dir}, locked())
		wantErr(t, err, signing.ErrKey, "bad.pub", word)
	}
	_, _, err = signing.TUFKey("text")
	wantErr(t, err, signing.ErrKey)
}

func TestImport(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := cryptoutils.MarshalPrivateKeyToPEM(ec)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := encrypted.EncryptWithCustomKDFParameters(der, []byte(password), encrypted.Legacy) // the quickest it reads
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile(plant(t, t.TempDir(), "own", password, signing.ECDSAP256).Source)
	if err != nil {
		t.Fatal(err)
	}
	ask := map[string]signing.PasswordFunc{}
	for _, name := range []string{"sigstore", "cosign", "own"} {
		ask[name] = signing.StaticPassword(password)
	}
	for name, data := range map[string][]byte{
		"pkcs8":    plain,
		"sec1":     pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}),
		"sigstore": pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED SIGSTORE PRIVATE KEY", Bytes: sealed}),
		"cosign":   pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED COSIGN PRIVATE KEY", Bytes: sealed}),
		"own":      own,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			kr := open(t, signing.Options{Password: ask[name], AllowUnencrypted: true}, dir)
			info, err := kr.Import(t.Context(), name, data)
			if err != nil {
				t.Fatal(err)
			}
			kind := "-----BEGIN PRIVATE KEY"
			if ask[name] != nil {
				kind = "-----BEGIN ENCRYPTED PRIVATE KEY"
			}
			if written, err := os.ReadFile(info.Source); err != nil || !strings.HasPrefix(string(written), kind) {
				t.Errorf("written as %.40q, %v; want %s", written, err, kind)
			}
			key, err := kr.Signer(t.Context(), info.ID)
			if err != nil {
				t.Fatal(err)
			}
			sig, err := key.Sign(t.Context(), payload)
			if err != nil {
				t.Fatal(err)
			}
			verify(t, info.Public, payload, sig)

			if name == "cosign" {
				return // but for its label the same as the one of sigstore, and slow
			}
			// The same files are read where they lie, too.
			inPlace := filepath.Join(t.TempDir(), "k.key")
			if err := os.WriteFile(inPlace, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := open(t, signing.Options{Password: ask[name]}, inPlace).Signer(t.Context(), info.ID); err != nil {
				t.Error(err)
			}
		})
	}
	_, err = open(t, locked(), t.TempDir()).Import(t.Context(), "junk", []byte("junk"))
	wantErr(t, err, signing.ErrKey)
}

func TestConcurrentUse(t *testing.T) {
	dir := t.TempDir()
	a, b := plant(t, dir, "a", password, signing.Ed25519), plant(t, dir, "b", password, signing.ECDSAP256)
	kr := open(t, locked(), dir)
	var wg sync.WaitGroup
	for i := range 8 {
		info := []signing.KeyInfo{a, b}[i%2]
		wg.Go(func() {
			key, err := kr.Signer(t.Context(), info.ID)
			if err != nil {
				t.Error(err)
				return
			}
			sig, err := key.Sign(t.Context(), payload)
			if err != nil {
				t.Error(err)
				return
			}
			verify(t, info.Public, payload, sig)
			kr.Keys()
		})
	}
	wg.Wait()
}

func TestClose(t *testing.T) {
	dir := t.TempDir()
	info := plant(t, dir, "root", password, signing.Ed25519)
	kr := open(t, locked(), dir)
	kr.Close()
	_, err := kr.Signer(t.Context(), info.ID)
	wantErr(t, err, fs.ErrClosed)
	_, err = kr.Create(t.Context(), "more", signing.Ed25519)
	wantErr(t, err, fs.ErrClosed)
}

// BenchmarkUnlock measures what one key file costs: `patch add` unlocks three
// within 40 MB.
func BenchmarkUnlock(b *testing.B) {
	dir := b.TempDir()
	info := create(b, dir, "root", signing.Ed25519)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := open(b, locked(), dir).Signer(b.Context(), info.ID); err != nil {
			b.Fatal(err)
		}
	}
}
