package install

import (
	"context"
	"errors"
	"regexp"
	"strings"

	"github.com/patchkeep/patchkeep/repo/patch"
)

// rpmFormat asks for a package's name and its version in full.
const rpmFormat = "%{NAME}\n%|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\n"

// rpm is the program and the flags that say which system is meant.
func (in *Installer) rpm(program string) []string {
	if in.System != "" {
		return []string{program, "--root", in.System}
	}
	return []string{program}
}

// rpmArgv also goes back to an older version, which only a plan that asks for it
// ever offers, and mends the same one.
func (in *Installer) rpmArgv() []string {
	return append(in.rpm("rpm"), "-U", "--oldpackage", "--replacepkgs", "{file}")
}

var rpmBusy = regexp.MustCompile(`can't create transaction lock|cannot get exclusive lock|database is locked`)

// judgeRPM turns a failure for want of rpm's lock, for which rpm itself waits a
// while, into "try again later".
func judgeRPM(out Outcome) Outcome {
	if out.Result == patch.Failure && out.Exit > 0 && rpmBusy.MatchString(out.Output) {
		out.Result, out.Why = patch.Retry, "another program is using rpm"
	}
	return out
}

// detectRPM asks rpm for the package's version. Of a package that is there in
// several versions, such as a kernel, the newest counts.
func (in *Installer) detectRPM(ctx context.Context, p *patch.Patch, known Known) (string, error) {
	name := known.Package
	if name == "" {
		name = p.Product
	}
	if !packagePattern.MatchString(name) {
		return "", nil
	}
	if _, err := lookPath("rpm"); err != nil {
		return "", nil //nolint:nilerr // no rpm, no packages
	}
	out, stdout, err := in.capture(ctx, Job{Patch: p}, &patch.Recipe{
		Argv: append(in.rpm("rpm"), "-q", "--nosignature", "--qf", rpmFormat, name), Timeout: 60,
	})
	if err != nil {
		return "", err
	}
	if out.Result != patch.Success {
		if out.Exit == 1 && strings.Contains(stdout, "is not installed") {
			return "", nil
		}
		return "", errors.New(out.Why)
	}
	newest := ""
	lines := strings.Split(stdout, "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		if v := lines[i+1]; lines[i] == name && versionPattern.MatchString(v) && (newest == "" || p.Compare(v, newest) > 0) {
			newest = v
		}
	}
	return known.called(newest), nil
}
