package repo

import (
	"context"
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
	md.Signatures = nil
	var signers, missing []string
	for _, id := range keyIDs {
		if len(signers) == threshold {
			break
		}
		s, err := keys(ctx, id)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrKeys) {
			missing = append(missing, id[:min(8, len(id))])
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("sign %s: %w", role, err)
		}
		sig, err := s.Sign(ctx, payload)
		if err != nil {
			return nil, fmt.Errorf("sign %s with key %.8s: %w", role, id, err)
		}
		if slices.Contains(signers, id) {
			continue
		}
		md.Signatures = append(md.Signatures, metadata.Signature{KeyID: id, Signature: sig})
		signers = append(signers, id)
	}
	if len(signers) < threshold {
		return nil, fmt.Errorf("%w: role %s needs %d signature(s), and the keys at hand give %d; missing are keys %s",
			ErrKeys, role, threshold, len(signers), strings.Join(missing, ", "))
	}
	return signers, nil
}
