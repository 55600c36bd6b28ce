// Package install hands a verified file to the installer that its patch names:
// an own recipe, dpkg, rpm, msiexec, a script, or a versioned directory that
// is switched at once.
//
// Nothing is run through a shell. A program gets a fixed PATH and an
// environment made anew, its own process group, no input, a time limit, and a
// capped record of what it said. The file is hashed again through its open
// handle right before, and must lie in a directory that only this user and
// root can write, under the very path that the installer is given.
//
// archive and file patches go into
//
//	<Root>/<product>/versions/<version>/…
//	<Root>/<product>/current → versions/<version>
//
// current is replaced by one rename; the version before stays for rolling back.
package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/patchkeep/patchkeep/repo/patch"
)

// What errors of this package wrap. All others are of the system.
var (
	ErrChanged     = errors.New("file is not the one that was verified")
	ErrUnsafe      = errors.New("directory is not safe")
	ErrUnsupported = errors.New("not supported on this system")
	ErrBadArchive  = errors.New("bad archive")
)

// Installer runs installers. Root and Dir must be set, absolute paths both.
type Installer struct {
	// Root is where archives and delivered files go; {root} in recipes.
	Root string

	// Dir is for logs and temporary files; made with mode 0700.
	Dir string

	// System is the root of the system that packages are installed into,
	// "" for the running one. dpkg and rpm get it as --root.
	System string

	Timeout time.Duration // of recipes that name none; default 30 min
	Grace   time.Duration // from SIGTERM to SIGKILL; default 10 s
	Output  int           // bytes kept of what a program says, its end; default 64 KiB
	Archive ArchiveLimits // of what an archive may unpack to
}

// Job is one patch to install, check or roll back.
type Job struct {
	Patch    *patch.Patch
	File     *os.File // open for reading; not needed by Verify
	Path     string   // of the same file, absolute
	Length   int64
	SHA256   string // lower-case hex
	Previous string // version installed before; "" if none

	// Lock, if set, is inherited by the programs that are run, so that a lock
	// on it lasts as long as any of them. Unix only.
	Lock *os.File
}

// Outcome is what came of a program.
type Outcome struct {
	Result patch.Outcome `json:"result"`
	Exit   int           `json:"exit"`
	Why    string        `json:"why,omitempty"`    // for people, when Result is no success
	Output string        `json:"output,omitempty"` // the end of stdout and stderr
	Log    string        `json:"log,omitempty"`    // path of the file that holds it too
	Took   time.Duration `json:"took"`
}

// Known is what was noted about a product when a patch of it was installed.
type Known struct {
	Version        string `json:"version"`                   // as the patch called it
	Package        string `json:"package,omitempty"`         // name in the system's package manager
	PackageVersion string `json:"package_version,omitempty"` // its version there
}

// Run installs the patch. An error means that nothing was started; what the
// installer itself had to say, a time-out included, is in the outcome.
func (in *Installer) Run(ctx context.Context, job Job) (Outcome, error) {
	if err := in.checkFile(job); err != nil {
		return Outcome{}, fmt.Errorf("install %s: %w", job.Patch.ID, err)
	}
	var out Outcome
	var err error
	if job.Patch.InstallsItself() && versioned(job.Patch.Kind) {
		out, err = in.place(ctx, job)
	} else {
		var r *patch.Recipe
		if job.Patch.Kind == patch.KindDeb && in.System != "" {
			err = in.prepareSystem()
		}
		if err == nil {
			r, err = in.recipe(job.Patch)
		}
		if err == nil {
			out, err = in.runRecipe(ctx, job, "install", r)
		}
		out = busyDpkg(job.Patch, out)
	}
	if err != nil {
		return Outcome{}, fmt.Errorf("install %s: %w", job.Patch.ID, err)
	}
	return out, nil
}

// Verify runs the verify recipe. It returns nil if the patch has none.
func (in *Installer) Verify(ctx context.Context, job Job) (*Outcome, error) {
	if job.Patch.Verify == nil {
		return nil, nil
	}
	out, err := in.runRecipe(ctx, job, "verify", job.Patch.Verify)
	if errors.Is(err, exec.ErrNotFound) {
		return &Outcome{Result: patch.Failure, Exit: -1, Why: err.Error()}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("verify %s: %w", job.Patch.ID, err)
	}
	return &out, nil
}

// Rollback undoes the installation: by the patch's rollback recipe, or by
// switching back to the version before. It returns nil if there is no way.
func (in *Installer) Rollback(ctx context.Context, job Job) (*Outcome, error) {
	var out Outcome
	var err error
	switch p := job.Patch; {
	case p.Rollback != nil:
		out, err = in.runRecipe(ctx, job, "rollback", p.Rollback)
	case p.InstallsItself() && versioned(p.Kind):
		out, err = in.switchBack(job)
	default:
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("roll back %s: %w", job.Patch.ID, err)
	}
	return &out, nil
}

// CanDetect reports whether what is installed can be seen on the machine
// itself, so that Detect needs no record.
func CanDetect(p *patch.Patch) bool {
	return p.Detect != nil || p.Kind == patch.KindDeb && p.InstallsItself() || p.InstallsItself() && versioned(p.Kind)
}

// CanRollBack reports whether Rollback has a way.
func CanRollBack(p *patch.Patch) bool {
	return p.Rollback != nil || p.InstallsItself() && versioned(p.Kind)
}

// versionPattern is what a version that a program prints may look like.
var versionPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.:_+~-]{0,127}$`)

// Detect returns the version of the patch's product that is installed, "" if
// none: by the detect recipe, by the kind's own way, or else from the record.
// A detect recipe prints the version alone; any exit but success, or a program
// that is not there, means that the product is not installed.
func (in *Installer) Detect(ctx context.Context, p *patch.Patch, known Known) (string, error) {
	switch {
	case p.Detect != nil:
		version, err := in.detectRecipe(ctx, p)
		if err != nil {
			return "", fmt.Errorf("detect %s: %w", p.Product, err)
		}
		return version, nil
	case p.InstallsItself() && versioned(p.Kind):
		return in.current(p.Product)
	case p.Kind == patch.KindDeb:
		version, err := in.detectDeb(ctx, p, known)
		if err != nil || version != "" || p.InstallsItself() {
			return version, err
		}
	}
	return known.Version, nil
}

func (in *Installer) detectRecipe(ctx context.Context, p *patch.Patch) (string, error) {
	out, stdout, err := in.capture(ctx, Job{Patch: p}, p.Detect)
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", nil
	case err != nil:
		return "", err
	case out.Exit < 0:
		return "", errors.New(out.Why)
	case out.Result != patch.Success:
		return "", nil
	}
	line, _, _ := strings.Cut(stdout, "\n")
	line = strings.TrimSpace(line)
	if line != "" && !versionPattern.MatchString(line) {
		return "", fmt.Errorf("%q is not a version", line)
	}
	return line, nil
}

// recipe is the patch's own way to install, or its kind's.
func (in *Installer) recipe(p *patch.Patch) (*patch.Recipe, error) {
	if !p.InstallsItself() {
		return p.Install, nil
	}
	var r *patch.Recipe
	switch p.Kind {
	case patch.KindScript:
		r = &patch.Recipe{Argv: []string{ownScript}}
	case patch.KindDeb:
		r = in.debRecipe()
	case patch.KindRPM:
		r = &patch.Recipe{Argv: []string{"rpm"}}
		if in.System != "" {
			r.Argv = append(r.Argv, "--root", in.System)
		}
		r.Argv = append(r.Argv, "-U", "--oldpackage", "{file}")
	case patch.KindPkg:
		r = &patch.Recipe{Argv: []string{"installer", "-pkg", "{file}", "-target", "/"}}
	case patch.KindMSI:
		r = &patch.Recipe{Argv: []string{"msiexec", "/i", "{file}", "/qn", "/norestart"}, Exit: msiExit}
	default:
		return nil, fmt.Errorf("kind %s needs an install recipe", p.Kind)
	}
	if p.Install != nil { // exit codes and a time-out for the kind's own way
		r.Timeout = p.Install.Timeout
		if len(p.Install.Exit) > 0 {
			r.Exit = p.Install.Exit
		}
	}
	if r.Argv[0] == ownScript {
		return r, nil
	}
	if _, err := lookPath(r.Argv[0]); err != nil {
		return nil, fmt.Errorf("kind %s: %s is not on this machine (%s/%s): %w", p.Kind, r.Argv[0], runtime.GOOS, runtime.GOARCH, ErrUnsupported)
	}
	return r, nil
}

// msiExit is the meaning of msiexec's exit codes (Windows Installer, error
// codes for MsiExec.exe); those not named here are failures.
var msiExit = map[string]patch.Outcome{
	"1601": patch.Retry,         // the service is not there
	"1605": patch.NotApplicable, // unknown product
	"1618": patch.Retry,         // another installation is in progress
	"1633": patch.NotApplicable, // not for this platform
	"1638": patch.NotApplicable, // another version is installed
	"1641": patch.RebootStarted,
	"1642": patch.NotApplicable, // nothing there to patch
	"3010": patch.Reboot,
}

func versioned(k patch.Kind) bool { return k == patch.KindArchive || k == patch.KindFile }

// values are what the placeholders of a recipe stand for.
func (in *Installer) values(job Job) map[string]string {
	return map[string]string{
		"file":     job.Path,
		"product":  job.Patch.Product,
		"version":  job.Patch.Version,
		"previous": job.Previous,
		"root":     in.Root,
	}
}

func (in *Installer) grace() time.Duration {
	if in.Grace > 0 {
		return in.Grace
	}
	return 10 * time.Second
}

func (in *Installer) timeout(r *patch.Recipe) time.Duration {
	switch {
	case r.Timeout > 0:
		return time.Duration(r.Timeout) * time.Second
	case in.Timeout > 0:
		return in.Timeout
	}
	return 30 * time.Minute
}

// Limit is how long the patch's installer may run.
func (in *Installer) Limit(p *patch.Patch) time.Duration {
	r := p.Install
	if r == nil {
		r = &patch.Recipe{}
	}
	return in.timeout(r) + in.grace()
}

func (in *Installer) output() int {
	if in.Output > 0 {
		return in.Output
	}
	return 64 << 10
}

func (in *Installer) path(parts ...string) string {
	return filepath.Join(append([]string{in.Dir}, parts...)...)
}
