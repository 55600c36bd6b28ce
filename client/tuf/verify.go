package tuf

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// maxSignatures bounds the work that unsigned bytes can cause: go-tuf compares
// each signature's key id with all others.
const maxSignatures = 128

// distrust is an error about a role's metadata.
func distrust(role, format string, args ...any) error {
	return fmt.Errorf("%w: %s: %w", ErrNotTrusted, role, fmt.Errorf(format, args...))
}

// guard runs f, which feeds hostile bytes to go-tuf, and turns a panic of it
// into an error. go-tuf dereferences members that are null.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("malformed metadata (%v)", p)
		}
	}()
	return f()
}

// parse reads the metadata of a role, a top-level one or a delegated one, and
// checks all that can be checked without keys: afterwards no member that this
// package uses is nil, the type fits, the version is positive.
func parse[T metadata.Roles](role string, data []byte) (*metadata.Metadata[T], error) {
	if err := checkEnvelope(data); err != nil {
		return nil, distrust(role, "%w", err)
	}
	md := &metadata.Metadata[T]{}
	err := guard(func() error {
		if _, err := md.FromBytes(data); err != nil {
			return err
		}
		return checkMembers(any(&md.Signed))
	})
	if err != nil {
		return nil, distrust(role, "%w", err)
	}
	return md, nil
}

// checkEnvelope refuses what is not TUF metadata at all (a login page, half a
// file), names its members twice, or brings an absurd number of signatures.
func checkEnvelope(data []byte) error {
	notMetadata := func(why string) error {
		start := string(bytes.TrimSpace(data[:min(len(data), 80)]))
		if len(start) > 40 {
			start = start[:40] + "…"
		}
		return fmt.Errorf("not TUF metadata: %s; it begins with %q", why, start)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return notMetadata("no JSON object")
	}
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return notMetadata("broken JSON")
		}
		name, _ := t.(string)
		fold := strings.ToLower(name)
		if seen[fold] {
			return fmt.Errorf("malformed metadata: member %q twice", name)
		}
		seen[fold] = true
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return notMetadata("broken JSON")
		}
		if fold != "signatures" {
			continue
		}
		var signatures []json.RawMessage
		if err := json.Unmarshal(value, &signatures); err != nil {
			return fmt.Errorf("malformed metadata: signatures are no list")
		}
		if len(signatures) > maxSignatures {
			return fmt.Errorf("malformed metadata: %d signatures, at most %d are allowed", len(signatures), maxSignatures)
		}
	}
	if _, err := dec.Token(); err != nil {
		return notMetadata("it is cut off")
	}
	if _, err := dec.Token(); err != io.EOF {
		return notMetadata("something follows the JSON object")
	}
	if !seen["signed"] || !seen["signatures"] {
		return notMetadata("no members signed and signatures")
	}
	return nil
}

func checkMembers(signed any) error {
	var spec string
	var version int64
	switch s := signed.(type) {
	case *metadata.RootType:
		spec, version = s.SpecVersion, s.Version
		for _, name := range metadata.TOP_LEVEL_ROLE_NAMES {
			if s.Roles[name] == nil {
				return fmt.Errorf("malformed metadata: no role %s", name)
			}
		}
		for name, r := range s.Roles {
			if r == nil {
				return fmt.Errorf("malformed metadata: role %q is null", name)
			}
		}
	case *metadata.TimestampType:
		spec, version = s.SpecVersion, s.Version
		if s.Meta[snapshotFile] == nil {
			return fmt.Errorf("malformed metadata: no entry for %s", snapshotFile)
		}
		if err := checkMeta(s.Meta); err != nil {
			return err
		}
	case *metadata.SnapshotType:
		spec, version = s.SpecVersion, s.Version
		if err := checkMeta(s.Meta); err != nil {
			return err
		}
	case *metadata.TargetsType:
		spec, version = s.SpecVersion, s.Version
		for path, t := range s.Targets {
			if t == nil || t.Length < 0 {
				return fmt.Errorf("malformed metadata: target %q has no valid entry", path)
			}
		}
		if d := s.Delegations; d != nil && d.Roles != nil && d.SuccinctRoles != nil {
			return fmt.Errorf("malformed metadata: both roles and succinct_roles")
		}
	}
	if version < 1 {
		return fmt.Errorf("malformed metadata: version %d", version)
	}
	if major, _, _ := strings.Cut(spec, "."); major != "1" {
		return fmt.Errorf("written for TUF specification %q, only 1.x is understood", spec)
	}
	return nil
}

func checkMeta(meta map[string]*metadata.MetaFiles) error {
	for name, m := range meta {
		if m == nil || m.Version < 1 || m.Length < 0 {
			return fmt.Errorf("malformed metadata: no valid entry for %q", name)
		}
	}
	return nil
}

// delegation is what a delegator says about who signs a role.
type delegation struct {
	keys      map[string]*metadata.Key
	keyIDs    []string
	threshold int
}

func rootDelegation(root *metadata.Metadata[metadata.RootType], role string) delegation {
	r := root.Signed.Roles[role]
	return delegation{root.Signed.Keys, r.KeyIDs, r.Threshold}
}

// verifySignatures checks that a threshold of the delegation's keys signed md.
//
// Each key is tried on its own, so one that go-tuf does not know, that is
// missing, or on which it panics takes nothing from the others; and keys are
// told apart by their bytes, so one key under several ids counts once.
func verifySignatures[T metadata.Roles](role string, d delegation, md *metadata.Metadata[T]) error {
	if d.threshold < 1 {
		return distrust(role, "the delegation's threshold is %d", d.threshold)
	}
	signed := make(map[string]bool, len(md.Signatures))
	for _, s := range md.Signatures {
		signed[s.KeyID] = true
	}
	good := map[[sha256.Size]byte]bool{}
	for _, id := range d.keyIDs {
		if !signed[id] {
			continue
		}
		signed[id] = false // the same id again adds nothing
		key := usableKey(d.keys[id])
		if key == nil {
			continue
		}
		only := &metadata.Metadata[metadata.RootType]{Signed: metadata.RootType{
			Keys:  map[string]*metadata.Key{id: key},
			Roles: map[string]*metadata.Role{role: {KeyIDs: []string{id}, Threshold: 1}},
		}}
		var print [sha256.Size]byte
		err := guard(func() error {
			pub, err := key.ToPublicKey()
			if err != nil {
				return err
			}
			if k, ok := pub.(ed25519.PublicKey); ok && len(k) != ed25519.PublicKeySize {
				return fmt.Errorf("ed25519 key of %d bytes", len(k))
			}
			der, err := x509.MarshalPKIXPublicKey(pub)
			if err != nil {
				return err
			}
			print = sha256.Sum256(der)
			return only.VerifyDelegate(role, md)
		})
		if err != nil {
			continue
		}
		good[print] = true
		if len(good) >= d.threshold {
			return nil
		}
	}
	return distrust(role, "signed by %d trusted keys, %d are needed", len(good), d.threshold)
}

// usableKey returns the key as go-tuf wants it, or nil for a type and scheme
// that we do not verify.
func usableKey(k *metadata.Key) *metadata.Key {
	if k == nil {
		return nil
	}
	out := *k
	switch k.Type + " " + k.Scheme {
	case "ed25519 ed25519",
		"rsa rsassa-pss-sha256",
		"ecdsa ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256 ecdsa-sha2-nistp256",
		"ecdsa ecdsa-sha2-nistp384":
	case "ecdsa-sha2-nistp384 ecdsa-sha2-nistp384":
		out.Type = metadata.KeyTypeECDSA_SHA2_P256 // go-tuf's name for any curve; the scheme decides
	default:
		return nil
	}
	return &out
}

// verifyFile checks the length and the hashes that the role above gives for a
// file, if any.
func verifyFile(role string, m *metadata.MetaFiles, data []byte) error {
	if err := guard(func() error { return m.VerifyLengthHashes(data) }); err != nil {
		return distrust(role, "not the file that is listed: %w", err)
	}
	return nil
}

// signedAt reads SignedAtField; zero if it is absent or no time.
func signedAt(unrecognized map[string]any) time.Time {
	s, _ := unrecognized[SignedAtField].(string)
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}
