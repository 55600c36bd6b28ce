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

	// Own has installers of the program's own. They take over the patches of
	// their kind whole, whatever install recipe one has; all that comes before
	// is done as ever.
	Own map[patch.Kind]Runner

	Timeout time.Duration // of recipes that name none; default 30 min
	Grace   time.Duration // from SIGTERM to SIGKILL; default 10 s
	Output  int           // bytes kept of what a program says, its end; default 64 KiB
	Archive ArchiveLimits // of what an archive may unpack to
}

// Job is one patch to install, check or roll back.
type Job struct {
	Patch    *patch.Patch
	File     *os.File // open for reading, by Open; not needed by Verify and Rollback
	Path     string   // of the same file, absolute
	Length   int64
	SHA256   string // lower-case hex
	Previous string // version installed before; "" if none

	// Lock, if set, is inherited by the programs that are run, so that a lock
	// on it (on Windows: what it does not share) lasts as long as any of them.
	Lock *os.File
}

// Outcome is what came of a program.
type Outcome struct {
	Result patch.Outcome `json:"result"`
	Exit   int           `json:"exit"`
	Why    string        `json:"why,omitempty"`    // for people, unless Result is success
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
	out, err := in.install(ctx, job)
	if err != nil {
		return Outcome{}, fmt.Errorf("install %s: %w", job.Patch.ID, err)
	}
	return out, nil
}

func (in *Installer) install(ctx context.Context, job Job) (Outcome, error) {
	p := job.Patch
	if err := in.checkSignature(ctx, job); err != nil {
		return Outcome{}, err
	}
	var r *patch.Recipe
	if in.own(p) == nil && !in.places(p) {
		var err error
		if r, err = in.recipe(job); err != nil {
			return Outcome{}, err
		}
	}
	if p.Kind == patch.KindDeb && in.System != "" {
		if err := in.prepareSystem(); err != nil {
			return Outcome{}, err
		}
	}
	h, err := in.hold(job)
	if err != nil {
		return Outcome{}, err
	}
	defer h.release()
	if r == nil && in.own(p) == nil {
		return in.place(ctx, h)
	}
	var out Outcome
	if own := in.own(p); own != nil {
		out, err = in.runOwn(ctx, own, job)
	} else {
		out, err = in.runRecipe(ctx, job, "install", r)
		explain(p.Kind, &out)
	}
	if err != nil {
		return Outcome{}, err
	}
	if err := h.changed(); err != nil && out.Result != patch.Failure {
		out.Result = patch.Failure
		out.Why = fmt.Sprintf("it was perhaps not the signed file that was installed: %v", err)
		return out, nil
	}
	return in.packages(ctx, job, out), nil
}

// packages adds what is to be said of a package manager's failure.
func (in *Installer) packages(ctx context.Context, job Job, out Outcome) Outcome {
	if !job.Patch.InstallsItself() {
		return out
	}
	switch job.Patch.Kind {
	case patch.KindDeb:
		return in.judgeDeb(ctx, out)
	case patch.KindRPM:
		return judgeRPM(out)
	}
	return out
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
	start := time.Now()
	switch p := job.Patch; {
	case p.Rollback != nil:
		out, err = in.runRecipe(ctx, job, "rollback", p.Rollback)
	case in.own(p) != nil:
		back, ok := in.own(p).(RollBacker)
		if !ok {
			return nil, nil
		}
		out, err = back.RollBack(ctx, job)
		out = in.owned(out, start)
	case in.places(p):
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
func (in *Installer) CanDetect(p *patch.Patch) bool {
	if p.Detect != nil {
		return true
	}
	if own := in.own(p); own != nil {
		_, ok := own.(Detector)
		return ok
	}
	switch p.Kind {
	case patch.KindDeb, patch.KindRPM:
		return p.InstallsItself()
	case patch.KindPkg:
		return p.InstallsItself() && receiptName(p) != ""
	}
	return in.places(p)
}

// CanRollBack reports whether Rollback has a way.
func (in *Installer) CanRollBack(p *patch.Patch) bool {
	if p.Rollback != nil {
		return true
	}
	if own := in.own(p); own != nil {
		_, ok := own.(RollBacker)
		return ok
	}
	return in.places(p)
}

// versionPattern is what a version that a program prints may look like.
var versionPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.:_+~-]{0,127}$`)

// Detect returns the version of the patch's product that is installed, "" if
// none: by the detect recipe, by the kind's own way, or else from the record.
// A detect recipe prints the version alone; any exit but success, or a program
// that is not there, means that the product is not installed.
func (in *Installer) Detect(ctx context.Context, p *patch.Patch, known Known) (string, error) {
	version, err := in.detect(ctx, p, known)
	if err != nil {
		return "", fmt.Errorf("detect %s: %w", p.Product, err)
	}
	return version, nil
}

func (in *Installer) detect(ctx context.Context, p *patch.Patch, known Known) (string, error) {
	if p.Detect != nil {
		return in.detectRecipe(ctx, p)
	}
	if own := in.own(p); own != nil {
		if d, ok := own.(Detector); ok {
			return d.Detect(ctx, p, known)
		}
		return known.Version, nil
	}
	if in.places(p) {
		return in.current(p.Product)
	}
	ask := map[patch.Kind]func(context.Context, *patch.Patch, Known) (string, error){
		patch.KindDeb: in.detectDeb, patch.KindRPM: in.detectRPM, patch.KindPkg: in.detectPkg,
	}[p.Kind]
	if ask == nil || p.Kind == patch.KindPkg && receiptName(p) == "" {
		return known.Version, nil
	}
	version, err := ask(ctx, p, known)
	if err != nil || version != "" || p.InstallsItself() {
		return version, err
	}
	return known.Version, nil // what an own recipe installs need not be a package of that name
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
func (in *Installer) recipe(job Job) (*patch.Recipe, error) {
	p := job.Patch
	r := &patch.Recipe{Exit: exits(p)} // a patch's own codes and time-out go for its kind's way too
	if p.Install != nil {
		r.Argv, r.Timeout = p.Install.Argv, p.Install.Timeout
	}
	if !p.InstallsItself() {
		return r, nil
	}
	switch p.Kind {
	case patch.KindScript:
		r.Argv = []string{ownScript}
		return r, nil
	case patch.KindDeb:
		r.Argv = in.debArgv()
	case patch.KindRPM:
		r.Argv = in.rpmArgv()
	case patch.KindPkg:
		r.Argv = []string{"installer", "-pkg", "{file}", "-target", "/"}
	case patch.KindMSI:
		r.Argv = msiArgv(job.Path)
	default:
		return nil, fmt.Errorf("kind %s needs an install recipe", p.Kind)
	}
	if _, err := lookPath(r.Argv[0]); err != nil {
		return nil, fmt.Errorf("kind %s: %s is not on this machine (%s/%s): %w", p.Kind, r.Argv[0], runtime.GOOS, runtime.GOARCH, ErrUnsupported)
	}
	return r, nil
}

// places reports whether a patch goes into a versioned directory below Root.
func (in *Installer) places(p *patch.Patch) bool {
	return in.own(p) == nil && p.InstallsItself() && (p.Kind == patch.KindArchive || p.Kind == patch.KindFile)
}

// values are what the placeholders of a recipe stand for.
func (in *Installer) values(job Job, log string) map[string]string {
	return map[string]string{
		"file":     job.Path,
		"product":  job.Patch.Product,
		"version":  job.Patch.Version,
		"previous": job.Previous,
		"root":     in.Root,
		"log":      log,
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
