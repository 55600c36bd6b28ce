package install

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
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

// debArgv keeps configuration files that were changed, and never asks. dpkg
// takes up by itself what an earlier one that was killed left of this package.
func (in *Installer) debArgv() []string {
	return append(in.dpkg("dpkg"), "--force-confdef", "--force-confold", "-i", "{file}")
}

// judgeDeb turns a failure for want of dpkg's lock into "try again later", and
// says so if dpkg has left packages half installed: this one, or another that
// it stumbled over. Those are not ours to configure.
func (in *Installer) judgeDeb(ctx context.Context, out Outcome) Outcome {
	if out.Result != patch.Failure {
		return out
	}
	if out.Exit == 2 && strings.Contains(out.Output, "locked by another process") {
		out.Result, out.Why = patch.Retry, "another program is using dpkg"
		return out
	}
	audit, said, err := in.capture(ctx, Job{Patch: &patch.Patch{}}, &patch.Recipe{Argv: append(in.dpkg("dpkg"), "--audit"), Timeout: 60})
	if err == nil && audit.Exit >= 0 && strings.TrimSpace(said) != "" {
		out.Why += "; dpkg has left packages half installed: see dpkg --audit, then run dpkg --configure -a"
	}
	return out
}

// detectDeb asks dpkg for the package's version. It is given as the patch
// called it, if the patch put it there; else without epoch, as no version of
// a patch has one.
func (in *Installer) detectDeb(ctx context.Context, p *patch.Patch, known Known) (string, error) {
	name := known.Package
	if name == "" {
		name = strings.ToLower(p.Product)
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
		return "", err
	}
	if out.Result != patch.Success {
		if out.Exit == 1 {
			return "", nil // no such package
		}
		return "", errors.New(out.Why)
	}
	line, _, _ := strings.Cut(stdout, "\n")
	status, version, _ := strings.Cut(line, " ")
	if status != "installed" || !versionPattern.MatchString(version) {
		return "", nil // removed, or stuck half-way
	}
	return known.called(version), nil
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
