package patch

import (
	"fmt"
	"regexp"
	"slices"
)

// OSSignature is a signature of the operating system's own kind that the file
// must bear besides ours. The machine checks it with the system's own means
// right before it installs; a machine that cannot check it installs nothing.
type OSSignature struct {
	Scheme SignatureScheme `json:"scheme"`

	// Signers are who may have signed; one of them is enough. Authenticode:
	// "sha256:" and the SHA-256 of the signer's certificate in hex, or "cn:" and
	// its common name. rpm: the fingerprint of the OpenPGP key, 40 or 64 hex
	// digits. pkg: the team of the Developer ID, ten letters and digits.
	Signers []string `json:"signers"`
}

// SignatureScheme names a system's way to sign files.
type SignatureScheme string

// The schemes.
const (
	Authenticode SignatureScheme = "authenticode" // Windows
	RPMSignature SignatureScheme = "rpm"
	PkgSignature SignatureScheme = "pkg" // macOS installer packages
)

// SignatureSchemes lists all schemes.
var SignatureSchemes = []SignatureScheme{Authenticode, RPMSignature, PkgSignature}

const maxSigners = 16

// signatures says which kinds a scheme can sign, and how it names a signer.
var signatures = map[SignatureScheme]struct {
	kinds  []Kind
	signer *regexp.Regexp
	like   string
}{
	Authenticode: {
		[]Kind{KindMSI, KindEXE, KindScript, KindCommand},
		regexp.MustCompile(`^(sha256:[0-9a-f]{64}|cn:[^\x00-\x1f\x7f]{1,256})$`),
		"sha256:<64 hex digits of the certificate's SHA-256> or cn:<common name>",
	},
	RPMSignature: {
		[]Kind{KindRPM, KindCommand},
		regexp.MustCompile(`^([0-9A-Fa-f]{40}|[0-9A-Fa-f]{64})$`),
		"the fingerprint of an OpenPGP key, 40 or 64 hex digits without blanks",
	},
	PkgSignature: {
		[]Kind{KindPkg, KindCommand},
		regexp.MustCompile(`^[0-9A-Z]{10}$`),
		"the team of a Developer ID, ten capital letters and digits",
	},
}

func (s *OSSignature) check(kind Kind) error {
	if s == nil {
		return nil
	}
	known, ok := signatures[s.Scheme]
	if !ok {
		return fmt.Errorf("scheme %q is none of %v", s.Scheme, SignatureSchemes)
	}
	if !slices.Contains(known.kinds, kind) {
		return fmt.Errorf("scheme %s does not sign files of kind %s", s.Scheme, kind)
	}
	if len(s.Signers) == 0 || len(s.Signers) > maxSigners {
		return fmt.Errorf("1 to %d signers are wanted", maxSigners)
	}
	for _, signer := range s.Signers {
		if !known.signer.MatchString(signer) {
			return fmt.Errorf("%.80q is not a signer of scheme %s: %s", signer, s.Scheme, known.like)
		}
	}
	return nil
}
