package install

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/patchkeep/patchkeep/repo/patch"
)

// packagePattern is what the name of a package may look like. It never begins
// with a dash, so that no program takes it for a flag.
var packagePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9+._-]{0,127}$`)

// Inspect reads from the file what a package calls itself. Other kinds have
// no more to say than the patch.
func (in *Installer) Inspect(ctx context.Context, job Job) (Known, error) {
	k := Known{Version: job.Patch.Version}
	var argv []string
	var what string
	switch {
	case in.own(job.Patch) != nil || !job.Patch.InstallsItself():
		return k, nil
	case job.Patch.Kind == patch.KindDeb:
		what, argv = "a Debian package", []string{"dpkg-deb", "--show", "--showformat=${Package}\n${Version}\n", "{file}"}
	case job.Patch.Kind == patch.KindRPM:
		what, argv = "an rpm package", []string{"rpm", "-qp", "--nosignature", "--qf", rpmFormat, "{file}"}
	default:
		return k, nil
	}
	if _, err := lookPath(argv[0]); err != nil {
		return k, fmt.Errorf("inspect %s: %s is not on this machine: %w", job.Patch.ID, argv[0], ErrUnsupported)
	}
	out, stdout, err := in.capture(ctx, job, &patch.Recipe{Argv: argv, Timeout: 60})
	if err != nil {
		return k, fmt.Errorf("inspect %s: %w", job.Patch.ID, err)
	}
	name, rest, _ := strings.Cut(stdout, "\n")
	version, _, _ := strings.Cut(rest, "\n")
	if out.Result != patch.Success || !packagePattern.MatchString(name) || !versionPattern.MatchString(version) {
		return k, fmt.Errorf("inspect %s: it is not %s", job.Patch.ID, what)
	}
	k.Package, k.PackageVersion = name, version
	return k, nil
}

// called is an installed version as the patch called it, if the patch put it
// there; else without epoch, as no version of a patch has one.
func (k Known) called(version string) string {
	if version == k.PackageVersion {
		return k.Version
	}
	if _, v, ok := strings.Cut(version, ":"); ok {
		return v
	}
	return version
}

// rpmFile is <name>-<version>-<release>.<arch>.rpm, by rpm's custom.
var rpmFile = regexp.MustCompile(`^(.+)-[^-]+-[^-]+\.[^.-]+\.rpm$`)

// GuessPackage is the name of the package in a file of a kind, by the customs
// of calling it <package>_<version>_<arch>.deb and
// <package>-<version>-<release>.<arch>.rpm; else the product's name. It is "" for
// kinds that have no packages with names.
func GuessPackage(kind patch.Kind, file, product string) string {
	switch kind {
	case patch.KindDeb:
		if name, _, ok := strings.Cut(file, "_"); ok && packagePattern.MatchString(name) {
			return name
		}
		return strings.ToLower(product)
	case patch.KindRPM:
		if m := rpmFile.FindStringSubmatch(file); m != nil && packagePattern.MatchString(m[1]) {
			return m[1]
		}
		return product
	}
	return ""
}
