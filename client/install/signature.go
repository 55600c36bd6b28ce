package install

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/patchkeep/patchkeep/repo/patch"
)

// ErrSignature is wrapped when the file does not bear the signature of the
// operating system's own kind that its patch demands.
var ErrSignature = errors.New("signature of the operating system's own kind is not as demanded")

// checkSignature checks the signature that the patch demands besides ours. The
// system's programs get to see the file only when it is known to be the
// verified one. What cannot be checked here is refused.
func (in *Installer) checkSignature(ctx context.Context, job Job) error {
	s := job.Patch.OSSignature
	if s == nil {
		return nil
	}
	h, err := in.hold(job)
	if err != nil {
		return err
	}
	defer h.release()
	switch s.Scheme {
	case patch.Authenticode:
		err = checkAuthenticode(job.File, job.Path, s.Signers)
	case patch.RPMSignature:
		err = in.checkRPM(ctx, job, s.Signers)
	case patch.PkgSignature:
		err = in.checkPkg(ctx, job, s.Signers)
	default:
		err = fmt.Errorf("scheme %q is not known: %w", s.Scheme, ErrUnsupported)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSignature, err)
	}
	return nil
}

// tool runs a program that checks signatures.
func (in *Installer) tool(ctx context.Context, job Job, argv ...string) (Outcome, string, error) {
	if _, err := lookPath(argv[0]); err != nil {
		return Outcome{}, "", fmt.Errorf("it cannot be checked here, as %s is not on this machine: %w", argv[0], ErrUnsupported)
	}
	return in.capture(ctx, job, &patch.Recipe{Argv: argv, Timeout: 300})
}

// checkRPM lets rpm check digests and signatures, against the keys that the
// machine's administrator has imported, and then looks for an expected signer.
func (in *Installer) checkRPM(ctx context.Context, job Job, signers []string) error {
	argv := append(in.rpm("rpmkeys"), "--define", "_pkgverify_level all", "--checksig", "--verbose", "{file}")
	out, said, err := in.tool(ctx, job, argv...)
	if err != nil {
		return err
	}
	if out.Result != patch.Success {
		switch {
		case strings.Contains(said, ": BAD"):
		case strings.Contains(said, "NOKEY"):
			return errors.New("the key that signed it is not among the machine's: rpm --import it")
		case strings.Contains(said, "NOTFOUND"):
			return errors.New("the package is not signed")
		}
		return fmt.Errorf("rpm says no: %s", firstLines(out.Why+"\n"+said))
	}
	// In each of the headers that can hold a signature; all of them were verified.
	const format = "%{DSAHEADER:pgpsig}\n%{RSAHEADER:pgpsig}\n%{SIGPGP:pgpsig}\n%{SIGGPG:pgpsig}\n"
	out, said, err = in.tool(ctx, job, append(in.rpm("rpm"), "-qp", "--nosignature", "--qf", format, "{file}")...)
	if err != nil {
		return err
	}
	if out.Result != patch.Success {
		return fmt.Errorf("rpm does not tell the signer: %s", firstLines(out.Why))
	}
	ids := rpmSigners(said)
	for _, id := range ids {
		for _, s := range signers {
			if ofKey(id, strings.ToLower(s)) {
				return nil
			}
		}
	}
	if len(ids) == 0 {
		return errors.New("the package is not signed")
	}
	return fmt.Errorf("it is signed by key %s, and %s is wanted", strings.Join(ids, " and "), strings.Join(signers, " or "))
}

var keyPattern = regexp.MustCompile(`(?i)\bkey (?:id|fingerprint):? ([0-9a-f]{16,64})\b`)

// rpmSigners are the ids or fingerprints of keys in what rpm says of signatures.
func rpmSigners(said string) []string {
	var ids []string
	for _, m := range keyPattern.FindAllStringSubmatch(said, 16) {
		ids = append(ids, strings.ToLower(m[1]))
	}
	return ids
}

// ofKey reports whether id is a fingerprint or its key id: the end of 40 digits
// (RFC 4880, section 12.2), or the beginning of 64 (RFC 9580, section 5.5.4.3).
func ofKey(id, fingerprint string) bool {
	if len(fingerprint) == 64 {
		return id == fingerprint || len(id) == 16 && strings.HasPrefix(fingerprint, id)
	}
	return id == fingerprint || len(id) == 16 && strings.HasSuffix(fingerprint, id)
}

// checkPkg lets macOS check the package and its certificates.
func (in *Installer) checkPkg(ctx context.Context, job Job, signers []string) error {
	out, said, err := in.tool(ctx, job, "pkgutil", "--check-signature", "{file}")
	if err != nil {
		return err
	}
	if out.Result != patch.Success {
		return fmt.Errorf("macOS says no: %s", firstLines(said+"\n"+out.Why))
	}
	team, err := pkgTeam(said)
	if err != nil {
		return err
	}
	for _, s := range signers {
		if s == team {
			return nil
		}
	}
	return fmt.Errorf("it is signed by team %s, and %s is wanted", team, strings.Join(signers, " or "))
}

var teamPattern = regexp.MustCompile(`^\s*1\. Developer ID Installer: .*\(([0-9A-Z]{10})\)\s*$`)

// pkgTeam reads from pkgutil's words who has signed with a certificate that Apple
// has given out for installers. Only the first certificate of the chain counts,
// and only below a status that macOS trusts.
func pkgTeam(said string) (string, error) {
	trusted := false
	for line := range strings.SplitSeq(said, "\n") {
		if status, ok := strings.CutPrefix(strings.TrimSpace(line), "Status: "); ok {
			trusted = status == "signed by a developer certificate issued by Apple for distribution" || status == "signed by a certificate trusted by macOS" ||
				status == "signed by a certificate trusted by Mac OS X"
			if !trusted {
				return "", fmt.Errorf("macOS says: %.200s", status)
			}
		}
		if m := teamPattern.FindStringSubmatch(line); m != nil && trusted {
			return m[1], nil
		}
	}
	return "", errors.New("it is not signed with a Developer ID for installers")
}

// firstLines are some of a program's words, on one line.
func firstLines(said string) string {
	words := strings.Join(strings.Fields(said), " ")
	if len(words) > 300 {
		words = strings.ToValidUTF8(words[:300], "") + "…"
	}
	return words
}
