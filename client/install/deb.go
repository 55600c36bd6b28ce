package install

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/patchkeep/patchkeep/repo/patch"
)

// dpkg is the program and the flags that say which system is meant. With an
// own root it works for any user, and maintainer scripts are run with
// DPKG_ROOT set instead of in a chroot, which an image has no programs for.
func (in *Installer) dpkg(program string) []string {
	argv := []string{program}
	if in.System != "" {
		argv = append(argv, "--root="+in.System)
		if program == "dpkg" {
			argv = append(argv, "--log="+filepath.Join(in.System, "var/log/dpkg.log"), "--force-not-root", "--force-script-chrootless")
		}
	}
	return argv
}

// debRecipe keeps configuration files that were changed, and never asks.
func (in *Installer) debRecipe() *patch.Recipe {
	return &patch.Recipe{Argv: append(in.dpkg("dpkg"), "--force-confdef", "--force-confold", "-i", "{file}")}
}

// busyDpkg turns a failure for want of dpkg's lock into "try again later".
func busyDpkg(p *patch.Patch, out Outcome) Outcome {
	if p.Kind == patch.KindDeb && p.InstallsItself() && out.Exit == 2 && strings.Contains(out.Output, "locked by another process") {
		out.Result, out.Why = patch.Retry, "another program is using dpkg"
	}
	return out
}

var packagePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{0,127}$`)

// Inspect reads from the file what a package calls itself. Other kinds have
// no more to say than the patch.
func (in *Installer) Inspect(ctx context.Context, job Job) (Known, error) {
	k := Known{Version: job.Patch.Version}
	if job.Patch.Kind != patch.KindDeb || !job.Patch.InstallsItself() {
		return k, nil
	}
	out, stdout, err := in.capture(ctx, job, &patch.Recipe{
		Argv: []string{"dpkg-deb", "--show", "--showformat=${Package}\n${Version}\n", "{file}"}, Timeout: 60,
	})
	if err != nil {
		return k, fmt.Errorf("inspect %s: %w", job.Patch.ID, err)
	}
	name, rest, _ := strings.Cut(stdout, "\n")
	version, _, _ := strings.Cut(rest, "\n")
	if out.Result != patch.Success || !packagePattern.MatchString(name) || !versionPattern.MatchString(version) {
		return k, fmt.Errorf("inspect %s: it is not a Debian package", job.Patch.ID)
	}
	k.Package, k.PackageVersion = name, version
	return k, nil
}

// GuessPackage is the name of the Debian package in a file, by the custom of
// calling it <package>_<version>_<arch>.deb; else the product's name.
func GuessPackage(file, product string) string {
	if name, _, ok := strings.Cut(file, "_"); ok && packagePattern.MatchString(name) {
		return name
	}
	return strings.ToLower(product)
}

// detectDeb asks dpkg for the package's version. It is given as the patch
// called it, if the patch put it there; else without epoch, as no version of
// a patch has one.
func (in *Installer) detectDeb(ctx context.Context, p *patch.Patch, known Known) (string, error) {
	name := known.Package
	if name == "" {
		name = GuessPackage("", p.Product)
	}
	if !packagePattern.MatchString(name) {
		return "", nil
	}
	if in.System != "" {
		// Without a database there is nothing installed; dpkg-query would fail.
		if _, err := os.Stat(filepath.Join(in.System, "var/lib/dpkg/status")); err != nil {
			return "", nil //nolint:nilerr // as it says
		}
	}
	if _, err := lookPath("dpkg-query"); err != nil {
		return "", nil //nolint:nilerr // no dpkg, no packages
	}
	out, stdout, err := in.capture(ctx, Job{Patch: p}, &patch.Recipe{
		Argv: append(in.dpkg("dpkg-query"), "-W", "-f", "${db:Status-Status} ${Version}\n", name), Timeout: 60,
	})
	if err != nil {
		return "", fmt.Errorf("detect %s: %w", p.Product, err)
	}
	if out.Result != patch.Success {
		if out.Exit == 1 {
			return "", nil // no such package
		}
		return "", fmt.Errorf("detect %s: %s", p.Product, out.Why)
	}
	line, _, _ := strings.Cut(stdout, "\n")
	status, version, _ := strings.Cut(line, " ")
	if status != "installed" || !versionPattern.MatchString(version) {
		return "", nil // removed, or stuck half-way
	}
	if version == known.PackageVersion {
		return known.Version, nil
	}
	if _, v, ok := strings.Cut(version, ":"); ok {
		version = v
	}
	return version, nil
}

// prepareSystem makes the least that dpkg needs of another root.
func (in *Installer) prepareSystem() error {
	db := filepath.Join(in.System, "var/lib/dpkg")
	for _, dir := range []string{filepath.Join(db, "info"), filepath.Join(db, "updates"), filepath.Join(db, "triggers"), filepath.Join(in.System, "var/log")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	status := filepath.Join(db, "status")
	if _, err := os.Stat(status); err == nil {
		return nil
	}
	return writeFile(status, bytes.NewReader(nil), 0o644)
}
