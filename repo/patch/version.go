package patch

import (
	"cmp"
	"strings"

	"github.com/Masterminds/semver/v3"
	debian "github.com/knqyf263/go-deb-version"
	rpm "github.com/knqyf263/go-rpm-version"
)

// CompareVersions orders two versions: as semantic versions if both are
// (leading v and missing parts allowed), else part by part as Debian does,
// where "~" sorts before everything and numbers count as numbers.
func CompareVersions(a, b string) int {
	va, errA := semver.NewVersion(a)
	vb, errB := semver.NewVersion(b)
	if errA == nil && errB == nil {
		if c := va.Compare(vb); c != 0 {
			return c
		}
		return compareDebian(va.Metadata(), vb.Metadata())
	}
	return compareDebian(a, b)
}

// compareDebian puts what is no Debian version before all that are.
func compareDebian(a, b string) int {
	if a == b {
		return 0
	}
	va, errA := debian.NewVersion(a)
	vb, errB := debian.NewVersion(b)
	switch {
	case errA == nil && errB == nil:
		return cmp.Compare(va.Compare(vb), 0)
	case errA == nil:
		return 1
	case errB == nil:
		return -1
	}
	return strings.Compare(a, b)
}

// compareRPM orders as rpm does. A version without a release is the same as
// that version with any, as in rpm's own dependencies.
func compareRPM(a, b string) int {
	va, vb := rpm.NewVersion(a), rpm.NewVersion(b)
	if va.Release() == "" || vb.Release() == "" {
		a, _, _ = strings.Cut(a, "-")
		b, _, _ = strings.Cut(b, "-")
		va, vb = rpm.NewVersion(a), rpm.NewVersion(b)
	}
	return va.Compare(vb)
}
