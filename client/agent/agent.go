// Package agent decides and does what patches a machine gets: it checks with
// the repository, asks rollout.Decide, installs by package install, verifies,
// rolls back, and remembers.
//
// A patch is installed only when all of this holds: the product's role vouches
// for the bytes; the plan of the machine's own ring, pinned at enrolment,
// approves that path with that SHA-256; nobody has stopped it, now or ever
// before; the rollout says that this machine's time has come; it applies here;
// and the metadata was refreshed a moment ago. No server decides any of it.
//
// Each step is written down and synced before it is taken:
//
//	offered → fetched → verified → installing → checking → committed
//	                                   │            └→ rolling-back → rolled-back | failed
//	                                   └→ reboot-pending | retry-later | not-applicable | failed
//
// so that the next run, after a crash or a power cut at any moment, finishes
// the job or undoes it. Nothing is started a second time without knowing what
// the first came to.
//
// The state directory, mode 0700:
//
//	agent.json      the enrolment        root.json     the pinned root
//	metadata/       trusted metadata     downloads/    files on their way, and
//	                                                   installed ones for deltas
//	patches/        one journal a patch  history.json  what came of them
//	halts.json      every halt ever seen seen.json     when patches were first seen
//	installed.json  what was installed   report.json   the last check
//	install/        logs of installers   agent.lock
//	looks.json      when it looked       reboots.json  that it asked for
//
// A file that a power cut damaged is set aside as <name>.damaged, and the agent
// goes on; but not without its enrolment, nor if it cannot know any more what
// was stopped.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"

	"github.com/patchkeep/patchkeep/client"
	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/client/internal/boot"
	"github.com/patchkeep/patchkeep/client/internal/host"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// What errors of this package wrap, besides those of client/tuf and
// client/install.
var (
	ErrNotEnrolled = errors.New("this machine is not enrolled")
	ErrEnrolled    = errors.New("this machine is enrolled already")
	ErrUnknownRing = errors.New("the repository knows no such ring")
	ErrBusy        = errors.New("another patchkeep-agent is at work")
	ErrFailed      = errors.New("not installed")
	ErrPartial     = errors.New("some patches were installed, others were not")
	ErrDamaged     = errors.New("damaged")
)

// Options of an agent. Only Dir is needed.
type Options struct {
	Dir string // state directory

	// System and InstallRoot override the enrolment.
	System, InstallRoot string

	// Installers of the program's own, by kind: see install.Runner.
	Installers map[patch.Kind]install.Runner

	Fetch     fetch.Options // patience with mirrors
	HTTP      *http.Client  // nil: package client's
	UserAgent string
	Now       func() time.Time       // nil: time.Now; its location is the machine's
	BootID    func() (string, error) // names the time since the last boot; nil: asks the system
	Progress  func(Progress)         // told at most some ten times a second; nil: none

	Settings Settings // this machine's own wishes; zero: none

	// What the system is asked for; nil: ask it. An error means that it does
	// not tell.
	Power   func(context.Context) (Power, error) // what feeds the machine
	Metered func(context.Context) (bool, error)  // does the line cost by volume?

	// MaxBases is how many bytes of installed files are kept, so that the next
	// version needs only what changed. 0: 1 GiB; less: none.
	MaxBases int64
}

// Progress is how far a download is.
type Progress struct {
	What        string // "<product> <version>", or a target path
	Done, Total int64  // bytes
}

// Agent works on one state directory.
type Agent struct {
	opts   Options
	config *Config
	root   []byte

	settings atomic.Pointer[Settings] // nil: those of opts
}

// Open reads the enrolment. ErrNotEnrolled if there is none.
func Open(opts Options) (*Agent, error) {
	dir, err := filepath.Abs(opts.Dir)
	if err != nil {
		return nil, err
	}
	opts.Dir = dir
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.BootID == nil {
		opts.BootID = boot.ID
	}
	if opts.Power == nil {
		opts.Power = host.PowerNow
	}
	if opts.Metered == nil {
		opts.Metered = host.Metered
	}
	if err := opts.Settings.Check(); err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	a := &Agent{opts: opts}
	if a.config, err = readConfig(dir); err != nil {
		return nil, err
	}
	if a.root, err = readFile(a.path(rootFile), maxRoot); err != nil {
		return nil, fmt.Errorf("read pinned root: %w", err)
	}
	if !json.Valid(a.root) {
		return nil, fmt.Errorf("the pinned root %s is %w: enroll this machine again, with --force", a.path(rootFile), ErrDamaged)
	}
	if opts.System != "" {
		a.config.System = opts.System
	}
	if opts.InstallRoot != "" {
		a.config.InstallRoot = opts.InstallRoot
	}
	return a, nil
}

// Config returns the enrolment.
func (a *Agent) Config() Config { return *a.config }

func (a *Agent) path(parts ...string) string {
	return filepath.Join(append([]string{a.opts.Dir}, parts...)...)
}

// Download fetches and verifies any target file that the repository signs. bases
// are files that it may share bytes with. It asks neither ring nor halts: the
// file is for looking at.
func (a *Agent) Download(ctx context.Context, targetPath, out string, bases ...fetch.Base) (*tuf.Target, fetch.Result, error) {
	s, err := a.begin(ctx)
	if err != nil {
		return nil, fetch.Result{}, err
	}
	defer s.end()
	if err := s.client.Refresh(ctx); err != nil {
		return nil, fetch.Result{}, fmt.Errorf("refresh metadata: %w", err)
	}
	t, res, err := s.client.Download(ctx, targetPath, out, client.DownloadOptions{Progress: a.progress(targetPath), Bases: bases})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, res, fmt.Errorf("%s: the repository has no such target: %w", targetPath, err)
	}
	return t, res, err
}

func (a *Agent) progress(what string) func(done, total int64) {
	if a.opts.Progress == nil {
		return nil
	}
	return func(done, total int64) { a.opts.Progress(Progress{what, done, total}) }
}

// session is one piece of work, alone on the state directory.
type session struct {
	*Agent
	client    *client.Client
	lock      *flock.Flock
	installer *install.Installer
	journal   *journal
	retry     *ApplyOptions // what a person asked to try again; nil: nothing
	ready     bool          // to install what is offered
	asked     bool          // a person wants it now, whatever the settings say
}

// retries reports whether a person asked to try it again.
func (s *session) retries(it *Item) bool {
	return s.retry != nil && s.retry.wants(it.Product, it.Version)
}

// begin takes the lock. ErrBusy if another agent has it.
func (a *Agent) begin(ctx context.Context) (*session, error) {
	if err := install.PrivateDir(a.opts.Dir); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	lock := flock.New(a.path("agent.lock"), flock.SetPermissions(0o600))
	ok, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if !ok {
		return nil, fmt.Errorf("%w on %s", ErrBusy, a.opts.Dir)
	}
	s := &session{Agent: a, lock: lock, installer: a.installer(), journal: &journal{dir: a.path("patches"), now: a.opts.Now}}
	cfg, err := a.config.connect(client.Config{
		Dir: a.opts.Dir, Root: a.root, Mirrors: a.config.Servers, MachineID: a.config.MachineID,
		Fetch: a.opts.Fetch, HTTP: a.opts.HTTP, UserAgent: a.opts.UserAgent, Now: a.opts.Now, RateLimit: a.rate(ctx),
	})
	if err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	s.client, err = client.Open(cfg)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open trusted state: %w", err), lock.Unlock())
	}
	if err := s.heal(ctx); err != nil {
		s.end()
		return nil, err
	}
	return s, nil
}

func (s *session) end() {
	_ = s.client.Close()
	_ = s.lock.Unlock()
}

func (a *Agent) installer() *install.Installer {
	root := a.config.InstallRoot
	if a.config.System != "" {
		root = filepath.Join(a.config.System, root)
	}
	return &install.Installer{Root: root, Dir: a.path("install"), System: a.config.System, Own: a.opts.Installers}
}

// platform of this machine, as patches name it.
const (
	thisOS   = runtime.GOOS
	thisArch = runtime.GOARCH
)

// DefaultDir is the state directory when none is named: of the system for
// root, else of the user.
func DefaultDir() string {
	if dir := systemDir(); dir != "" {
		return dir
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "patchkeep")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = os.TempDir()
	}
	return filepath.Join(home, ".local", "state", "patchkeep")
}

// DefaultInstallRoot is where archives and files go when nothing else is said.
func DefaultInstallRoot() string {
	if systemDir() != "" {
		if runtime.GOOS == "windows" {
			return filepath.Join(os.Getenv("ProgramFiles"), "Patchkeep")
		}
		return "/opt/patchkeep"
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "patchkeep")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = os.TempDir()
	}
	return filepath.Join(home, ".local", "share", "patchkeep")
}

func systemDir() string {
	switch {
	case runtime.GOOS == "windows":
		return filepath.Join(os.Getenv("ProgramData"), "Patchkeep")
	case os.Geteuid() == 0:
		return "/var/lib/patchkeep"
	}
	return ""
}
