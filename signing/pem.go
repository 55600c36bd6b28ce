package signing

import (
	"context"
	"crypto"
	"crypto/aes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/youmark/pkcs8"
)

// PEM types of private keys that are read. Written are the first, and the
// second where an unencrypted key was asked for.
const (
	pemEncrypted = "ENCRYPTED PRIVATE KEY"
	pemPlain     = "PRIVATE KEY"
	pemEC        = "EC PRIVATE KEY"
	pemSigstore  = "ENCRYPTED SIGSTORE PRIVATE KEY"
	pemCosign    = "ENCRYPTED COSIGN PRIVATE KEY"
	pemPublic    = "PUBLIC KEY"
)

// encryption of written keys: PBES2 (RFC 8018) with scrypt (RFC 7914) at a
// strength that OWASP lists, chosen for its 8 MiB of memory; see
// docs/decisions/0001-key-file-encryption.md.
var encryption = &pkcs8.Opts{
	Cipher: pkcs8.AES256CBC,
	KDFOpts: pkcs8.ScryptOpts{
		SaltSize:                 16,
		CostParameter:            1 << 13,
		BlockSize:                8,
		ParallelizationParameter: 10,
	},
}

// Bounds on what a key file may cost to decrypt: whoever can plant a file must
// not be able to make us eat the machine.
const (
	maxScryptMemory   = 256 << 20 // bytes: 128 · N · r
	maxScryptWork     = 1 << 25   // N · r · p; OWASP's strongest is 1<<20
	maxPBKDF2Rounds   = 10_000_000
	maxEncryptedBytes = 16 << 10
)

// encodePrivate encrypts a private key; an empty password leaves it plain.
func encodePrivate(priv crypto.PrivateKey, password []byte) ([]byte, error) {
	der, err := pkcs8.MarshalPrivateKey(priv, password, encryption)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	kind := pemEncrypted
	if len(password) == 0 {
		kind = pemPlain
	}
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), nil
}

// encodePublic gives a public key as PKIX PEM.
func encodePublic(pub crypto.PublicKey) ([]byte, error) {
	return cryptoutils.MarshalPublicKeyToPEM(pub)
}

// ParsePublic reads a public key from PKIX PEM ("PUBLIC KEY"), of one of this
// package's algorithms. Errors are [ErrKey].
func ParsePublic(data []byte) (crypto.PublicKey, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != pemPublic {
		return nil, fmt.Errorf("%w: no PEM block of type %q", ErrKey, pemPublic)
	}
	pub, err := cryptoutils.UnmarshalPEMToPublicKey(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	if _, err := algorithmOf(pub); err != nil {
		return nil, err
	}
	return pub, nil
}

// lockedKey is a private key as read, perhaps encrypted.
type lockedKey struct {
	pem       []byte
	encrypted bool
}

// parseLocked looks at a private key without decrypting it, and refuses what
// could not, or should not, be decrypted.
func parseLocked(data []byte) (*lockedKey, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%w: no whole PEM block", ErrKey)
	}
	if block.Headers["DEK-Info"] != "" {
		return nil, fmt.Errorf("%w: old OpenSSL encryption; convert it with: openssl pkcs8 -topk8 -in OLD -out NEW", ErrKey)
	}
	switch block.Type {
	case pemPlain, pemEC:
		return &lockedKey{pem: data}, nil
	case pemSigstore, pemCosign: // its reader admits three fixed parameter sets only
		return &lockedKey{pem: data, encrypted: true}, nil
	case pemEncrypted:
		if err := checkPBES2(block.Bytes); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrKey, err)
		}
		return &lockedKey{pem: data, encrypted: true}, nil
	}
	return nil, fmt.Errorf("%w: PEM block of type %q is not a private key that is supported", ErrKey, block.Type)
}

// unlock decrypts the key. That takes about a fifth of a second, which cannot be
// interrupted. A wrong password is [ErrPassword].
func (l *lockedKey) unlock(ctx context.Context, password []byte) (crypto.PrivateKey, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if l.encrypted && len(password) == 0 {
		return nil, fmt.Errorf("%w: it is empty", ErrPassword)
	}
	priv, err := cryptoutils.UnmarshalPEMToPrivateKey(l.pem, cryptoutils.StaticPasswordFunc(password))
	if l.encrypted {
		// Else the scratch memory of three keys in a row adds up before it is collected.
		debug.FreeOSMemory()
	}
	switch {
	case err != nil && l.encrypted:
		// The readers cannot tell the two apart, and their words help nobody.
		return nil, fmt.Errorf("%w: it is wrong, or the file is damaged", ErrPassword)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return priv, nil
}

var (
	oidPBES2  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidPBKDF2 = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidScrypt = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 4, 11}
	oidCBC    = []asn1.ObjectIdentifier{ // AES-128, -192, -256
		{2, 16, 840, 1, 101, 3, 4, 1, 2},
		{2, 16, 840, 1, 101, 3, 4, 1, 22},
		{2, 16, 840, 1, 101, 3, 4, 1, 42},
	}
)

// checkPBES2 bounds the cost of decrypting, and refuses the lengths on which
// the CBC reader would panic.
func checkPBES2(der []byte) error {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Data      []byte
	}
	var params struct{ KDF, Scheme pkix.AlgorithmIdentifier }
	var iv []byte
	if err := unmarshalAll(der, &info); err != nil {
		return fmt.Errorf("read encrypted key: %w", err)
	}
	if !info.Algorithm.Algorithm.Equal(oidPBES2) {
		return errors.New("encrypted by something else than PBES2")
	}
	if err := unmarshalAll(info.Algorithm.Parameters.FullBytes, &params); err != nil {
		return fmt.Errorf("read encryption parameters: %w", err)
	}
	known := false
	for _, oid := range oidCBC {
		known = known || params.Scheme.Algorithm.Equal(oid)
	}
	if !known {
		return errors.New("encrypted by a cipher other than AES-CBC")
	}
	if err := unmarshalAll(params.Scheme.Parameters.FullBytes, &iv); err != nil || len(iv) != aes.BlockSize {
		return errors.New("bad initialisation vector")
	}
	if n := len(info.Data); n == 0 || n%aes.BlockSize != 0 || n > maxEncryptedBytes {
		return fmt.Errorf("bad length of encrypted key: %d bytes", n)
	}
	return checkKDF(params.KDF)
}

func checkKDF(kdf pkix.AlgorithmIdentifier) error {
	switch {
	case kdf.Algorithm.Equal(oidScrypt):
		var p struct {
			Salt    []byte
			N, R, P int
			KeyLen  int `asn1:"optional"`
		}
		if err := unmarshalAll(kdf.Parameters.FullBytes, &p); err != nil {
			return fmt.Errorf("read scrypt parameters: %w", err)
		}
		// Divisions, since the products of hostile numbers overflow.
		if p.N < 2 || p.R < 1 || p.P < 1 || p.R > maxScryptMemory/128/p.N || p.P > maxScryptWork/p.N/p.R {
			return fmt.Errorf("scrypt parameters N=%d r=%d p=%d are out of bounds", p.N, p.R, p.P)
		}
	case kdf.Algorithm.Equal(oidPBKDF2):
		var p struct {
			Salt   []byte
			Rounds int
			KeyLen int                      `asn1:"optional"`
			PRF    pkix.AlgorithmIdentifier `asn1:"optional"`
		}
		if err := unmarshalAll(kdf.Parameters.FullBytes, &p); err != nil {
			return fmt.Errorf("read PBKDF2 parameters: %w", err)
		}
		if p.Rounds < 1 || p.Rounds > maxPBKDF2Rounds {
			return fmt.Errorf("%d PBKDF2 rounds are out of bounds", p.Rounds)
		}
	default:
		return fmt.Errorf("password function %s is neither scrypt nor PBKDF2", kdf.Algorithm)
	}
	return nil
}

// unmarshalAll reads DER that must end where the value ends.
func unmarshalAll(der []byte, v any) error {
	rest, err := asn1.Unmarshal(der, v)
	if err == nil && len(rest) > 0 {
		err = errors.New("trailing bytes")
	}
	return err
}
