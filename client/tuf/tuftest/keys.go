package tuftest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Kind is a type and scheme of keys.
type Kind struct{ Type, Scheme string }

// The kinds of the TUF specification and some that clients meet.
var (
	Ed25519    = Kind{"ed25519", "ed25519"}
	ECDSA256   = Kind{"ecdsa", "ecdsa-sha2-nistp256"}
	ECDSA384   = Kind{"ecdsa", "ecdsa-sha2-nistp384"}
	OldECDSA   = Kind{"ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256"}
	OldECDSA38 = Kind{"ecdsa-sha2-nistp384", "ecdsa-sha2-nistp384"}
	RSAPSS     = Kind{"rsa", "rsassa-pss-sha256"}
	Unknown    = Kind{"sphincs", "sphincs-shake-128s"}
)

// Key is a key pair that signs for a simulated repository.
type Key struct {
	ID     string
	Public *metadata.Key
	Sign   func(payload []byte) []byte
}

// NewKey makes a key. A key of an unknown kind signs rubbish.
func NewKey(kind Kind) *Key {
	k := &Key{Public: &metadata.Key{Type: kind.Type, Scheme: kind.Scheme}}
	switch kind {
	case Ed25519:
		pub, priv := must2(ed25519.GenerateKey(rand.Reader))
		k.Public.Value.PublicKey = hex.EncodeToString(pub)
		k.Sign = func(p []byte) []byte { return ed25519.Sign(priv, p) }
	case ECDSA256, OldECDSA:
		priv := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		k.Public.Value.PublicKey = pemKey(priv.Public())
		k.Sign = func(p []byte) []byte {
			sum := sha256.Sum256(p)
			return must(ecdsa.SignASN1(rand.Reader, priv, sum[:]))
		}
	case ECDSA384, OldECDSA38:
		priv := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
		k.Public.Value.PublicKey = pemKey(priv.Public())
		k.Sign = func(p []byte) []byte {
			sum := sha512.Sum384(p)
			return must(ecdsa.SignASN1(rand.Reader, priv, sum[:]))
		}
	case RSAPSS:
		priv := must(rsa.GenerateKey(rand.Reader, 2048))
		k.Public.Value.PublicKey = pemKey(priv.Public())
		k.Sign = func(p []byte) []byte {
			sum := sha256.Sum256(p)
			return must(rsa.SignPSS(rand.Reader, priv, crypto.SHA256, sum[:], nil))
		}
	default:
		k.Public.Value.PublicKey = hex.EncodeToString(make([]byte, 32))
		k.Sign = func([]byte) []byte { return make([]byte, 64) }
	}
	k.Recompute()
	return k
}

// Recompute sets the id to that of the public part, after a change to it.
func (k *Key) Recompute() {
	fresh := *k.Public
	fresh = metadata.Key{Type: fresh.Type, Scheme: fresh.Scheme, Value: fresh.Value, UnrecognizedFields: fresh.UnrecognizedFields}
	k.Public, k.ID = &fresh, must(fresh.ID())
}

// WithID returns the same key under another id.
func (k *Key) WithID(id string) *Key { return &Key{ID: id, Public: k.Public, Sign: k.Sign} }

// Edit changes published metadata as generic JSON, without signing it anew.
func Edit(data []byte, change func(md map[string]any)) []byte {
	var md map[string]any
	if err := json.Unmarshal(data, &md); err != nil {
		panic(err)
	}
	change(md)
	return must(json.Marshal(md))
}

func pemKey(pub crypto.PublicKey) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(pub))}))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func must2[T, U any](a T, b U, err error) (T, U) {
	if err != nil {
		panic(err)
	}
	return a, b
}

// Canonical is the canonical JSON of a generic value: what signatures cover.
func Canonical(v any) []byte { return must(cjson.EncodeCanonical(v)) }
