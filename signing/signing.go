// Package signing turns references to keys into signers.
//
// A reference names a key file, or a directory of key files; services that
// keep keys join as further schemes of [ParseRef]. A [Keyring] knows the public
// half of every key it was given without unlocking anything, and unlocks a
// private half only when that key has to sign.
//
// What it guards against: a key file that others on the machine can read is
// refused; a private key that does not belong to the public key beside it is
// refused; a signature is verified before it is handed out; a key file with
// absurd decryption parameters is refused before any work is done; the example
// keys, whose password everybody knows, are refused unless asked for. What it
// cannot guard against: a process of the same user, or root, while a key is
// unlocked.
//
// Keys are ed25519 or ECDSA P-256, the two that every TUF client verifies
// alike (TUF specification 1.0.34, section 4.2).
package signing

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Errors of this package, to be found with [errors.Is]. A key that is nowhere
// to be found is [io/fs.ErrNotExist], one that exists already [io/fs.ErrExist].
var (
	// ErrPassword says that no password, or a wrong one, was given.
	ErrPassword = errors.New("password not accepted")
	// ErrKey says that a key, or a file said to hold one, cannot be used.
	ErrKey = errors.New("unusable key")
	// ErrExampleKey says that a key is one of keys-example.
	ErrExampleKey = errors.New("example key: its password is public")
)

// Algorithm says how a key signs.
type Algorithm string

// The algorithms there are.
const (
	Ed25519   Algorithm = "ed25519"    // the raw 64 bytes of RFC 8032
	ECDSAP256 Algorithm = "ecdsa-p256" // ASN.1 DER over SHA-256
)

// ParseAlgorithm reads an algorithm's name; an empty one is [Ed25519].
func ParseAlgorithm(s string) (Algorithm, error) {
	switch a := Algorithm(strings.ToLower(s)); a {
	case "":
		return Ed25519, nil
	case Ed25519, ECDSAP256:
		return a, nil
	}
	return "", fmt.Errorf("algorithm %q is not one of %s, %s", s, Ed25519, ECDSAP256)
}

// TUFKey gives a public key as TUF metadata declares it, and its key id: the
// hex SHA-256 of that declaration in canonical JSON.
func TUFKey(pub crypto.PublicKey) (*metadata.Key, string, error) {
	if _, err := algorithmOf(pub); err != nil {
		return nil, "", err
	}
	key, err := metadata.KeyFromPublicKey(pub)
	if err != nil {
		return nil, "", fmt.Errorf("declare key: %w", err)
	}
	id, err := key.ID()
	if err != nil {
		return nil, "", fmt.Errorf("name key: %w", err)
	}
	return key, id, nil
}

// Fingerprint groups the first 128 bits of a key id for reading aloud:
// "ab12 cd34 …", eight groups. An id that is too short is returned as it is.
func Fingerprint(keyID string) string {
	const groups, width = 8, 4
	if len(keyID) < groups*width {
		return keyID
	}
	parts := make([]string, groups)
	for i := range parts {
		parts[i] = keyID[i*width : (i+1)*width]
	}
	return strings.Join(parts, " ")
}

// algorithmOf refuses every key but those TUF clients agree upon. Other curves
// are refused here because go-tuf would declare them as P-256.
func algorithmOf(pub crypto.PublicKey) (Algorithm, error) {
	switch k := pub.(type) {
	case ed25519.PublicKey:
		if len(k) == ed25519.PublicKeySize {
			return Ed25519, nil
		}
		return "", fmt.Errorf("%w: ed25519 public key of %d bytes", ErrKey, len(k))
	case *ecdsa.PublicKey:
		if k == nil || k.Curve != elliptic.P256() {
			return "", fmt.Errorf("%w: ECDSA only on curve P-256, or take ed25519", ErrKey)
		}
		return ECDSAP256, nil
	case *rsa.PublicKey:
		return "", fmt.Errorf("%w: RSA is not supported, take ed25519 or ECDSA P-256", ErrKey)
	}
	return "", fmt.Errorf("%w: %T is neither ed25519 nor ECDSA P-256", ErrKey, pub)
}

// generate makes a private key.
func generate(alg Algorithm) (crypto.Signer, error) {
	switch alg {
	case Ed25519, "":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case ECDSAP256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return nil, fmt.Errorf("%w: algorithm %q", ErrKey, alg)
}
