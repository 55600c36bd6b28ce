package signing

import (
	"bytes"
	"context"
	"crypto"
	"fmt"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"
)

// Key is an unlocked key. It may be used by several goroutines at once.
type Key struct {
	id       string
	pub      crypto.PublicKey
	signer   signature.Signer
	verifier signature.Verifier
}

// newKey wraps a private key of one of our algorithms.
func newKey(priv crypto.PrivateKey) (*Key, error) {
	s, ok := priv.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%w: %T cannot sign", ErrKey, priv)
	}
	pub := s.Public()
	_, id, err := TUFKey(pub)
	if err != nil {
		return nil, err
	}
	signer, err := signature.LoadSigner(priv, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	verifier, err := signature.LoadVerifier(pub, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return &Key{id: id, pub: pub, signer: signer, verifier: verifier}, nil
}

// KeyID is the key's TUF key id, 64 hex digits.
func (k *Key) KeyID() string { return k.id }

// Public is the key's public half: ed25519.PublicKey or *ecdsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.pub }

// String names the key, so that printing one shows nothing secret.
func (k *Key) String() string { return "key " + k.id }

// GoString is [Key.String] for %#v.
func (k *Key) GoString() string { return k.String() }

// Sign signs payload, the canonical JSON of the signed part of metadata, and
// verifies the signature before it returns it. An error wraps the signer's own.
func (k *Key) Sign(ctx context.Context, payload []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("sign with key %s: %w", k.id, err)
	}
	sig, err := k.signer.SignMessage(bytes.NewReader(payload), options.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("sign with key %s: %w", k.id, err)
	}
	// A faulty signer must not publish: a bad signature breaks every client.
	if err := k.verifier.VerifySignature(bytes.NewReader(sig), bytes.NewReader(payload)); err != nil {
		return nil, fmt.Errorf("verify own signature of key %s: %w", k.id, err)
	}
	return sig, nil
}
