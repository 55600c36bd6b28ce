package repo

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// sign puts signatures of the role's keys on md: of as many keys at hand as
// the threshold asks for. Signatures by other keys go, since the content is
// new; go-tuf's own Sign would append and leave a file that no longer loads.
func sign[T metadata.Roles](ctx context.Context, md *metadata.Metadata[T], role string, keyIDs []string, threshold int, keys Keys) ([]string, error) {
	payload, err := cjson.EncodeCanonical(md.Signed)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", role, err)
	}
	var missing []string
	md.Signatures, missing, err = signPayload(ctx, payload, role, keyIDs, threshold, keys)
	if err != nil {
		return nil, err
	}
	signers := make([]string, 0, len(md.Signatures))
	for _, s := range md.Signatures {
		signers = append(signers, s.KeyID)
	}
	if len(signers) < threshold {
		for i := range missing {
			missing[i] = missing[i][:min(8, len(missing[i]))]
		}
		return nil, fmt.Errorf("%w: role %s needs %d signature(s), and the keys at hand give %d; missing are keys %s",
			ErrKeys, role, threshold, len(signers), strings.Join(missing, ", "))
	}
	return signers, nil
}

// signPayload signs with the keys at hand, until there are enough signatures.
// It returns them, and the keys that are not at hand.
func signPayload(ctx context.Context, payload []byte, role string, keyIDs []string, enough int, keys Keys) (sigs []metadata.Signature, missing []string, err error) {
	for _, id := range keyIDs {
		if len(sigs) >= enough {
			break
		}
		if slices.ContainsFunc(sigs, func(s metadata.Signature) bool { return s.KeyID == id }) {
			continue
		}
		s, err := keys(ctx, id)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrKeys) {
			missing = append(missing, id)
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("sign %s: %w", role, err)
		}
		sig, err := s.Sign(ctx, payload)
		if err != nil {
			return nil, nil, fmt.Errorf("sign %s with key %.8s: %w", role, id, err)
		}
		sigs = append(sigs, metadata.Signature{KeyID: id, Signature: sig})
	}
	return sigs, missing, nil
}

// verifySignature checks one signature over payload, as clients will.
func verifySignature(key *metadata.Key, payload, sig []byte) error {
	if key == nil {
		return errors.New("the key is not declared")
	}
	pub, err := key.ToPublicKey()
	if err != nil {
		return fmt.Errorf("read key: %w", err)
	}
	var good bool
	switch k := pub.(type) {
	case ed25519.PublicKey:
		good = len(k) == ed25519.PublicKeySize && ed25519.Verify(k, payload, sig)
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(payload)
		good = k.Curve == elliptic.P256() && ecdsa.VerifyASN1(k, sum[:], sig)
	default:
		return fmt.Errorf("keys of type %s are not supported", key.Type)
	}
	if !good {
		return errors.New("it is not that key's signature over this metadata")
	}
	return nil
}
