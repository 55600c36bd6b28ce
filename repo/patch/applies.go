package patch

import (
	"fmt"
	"slices"
)

// Device is what applicability asks of a machine.
type Device struct {
	OS, Arch string // GOOS and GOARCH names

	// Installed returns the installed version of a product, "" if there is
	// none.
	Installed func(product string) string
}

// AppliesTo reports whether the patch is for this machine as it is now, and if
// not, why not, in words for people.
func (p *Patch) AppliesTo(d Device) (ok bool, why string) {
	os, arch := SplitPlatform(p.Platform)
	a := p.Applies
	if os != "" && os != d.OS || len(a.OS) > 0 && !slices.Contains(a.OS, d.OS) {
		return false, fmt.Sprintf("it is not for %s", d.OS)
	}
	if arch != "" && arch != d.Arch || len(a.Arch) > 0 && !slices.Contains(a.Arch, d.Arch) {
		return false, fmt.Sprintf("it is not for %s machines", d.Arch)
	}
	have := d.Installed(p.Product)
	switch {
	case have == "":
		if a.MinVersion != "" {
			return false, fmt.Sprintf("%s is not installed, and it needs at least %s to be put on", p.Product, a.MinVersion)
		}
	case a.MinVersion != "" && p.Compare(have, a.MinVersion) < 0:
		return false, fmt.Sprintf("%s %s is installed, and it needs at least %s to be put on", p.Product, have, a.MinVersion)
	case a.MaxVersion != "" && p.Compare(have, a.MaxVersion) > 0:
		return false, fmt.Sprintf("%s %s is installed, and it can be put on %s at most", p.Product, have, a.MaxVersion)
	}
	for _, r := range a.Requires {
		product, version, err := ParseRequirement(r)
		if err != nil {
			return false, err.Error()
		}
		got := d.Installed(product)
		if got == "" {
			return false, fmt.Sprintf("it requires %s, which is not installed", r)
		}
		if version != "" && CompareVersions(got, version) < 0 {
			return false, fmt.Sprintf("it requires %s, and %s is installed", r, got)
		}
	}
	return true, ""
}

// Compare orders two versions of the patch's product: -1, 0 or +1.
func (p *Patch) Compare(a, b string) int {
	switch p.Kind {
	case KindDeb:
		return compareDebian(a, b)
	case KindRPM:
		return compareRPM(a, b)
	}
	return CompareVersions(a, b)
}
