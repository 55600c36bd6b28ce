package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/client"
	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// ApplyOptions say what of the offered patches to install.
type ApplyOptions struct {
	Only   string // "<product>" or "<product>@<version>", with what that requires; "": all
	DryRun bool   // download and install nothing
	Retry  bool   // also what failed too often or does not apply by its installer's word
	Now    bool   // whatever the settings of this machine hold back: its windows, battery, metered line
}

func (o *ApplyOptions) wants(product, version string) bool {
	return o.Only == "" || o.Only == product || o.Only == product+"@"+version
}

// Applied is what came of one patch.
type Applied struct {
	Path     string `json:"path"`
	Product  string `json:"product"`
	Version  string `json:"version"`
	Previous string `json:"previous,omitempty"`
	Step     Step   `json:"step"` // where it ended, or where it stands
	Attempt  int    `json:"attempt,omitempty"`
	Why      string `json:"why,omitempty"`
	Output   string `json:"output,omitempty"` // the end of what its installer said
	Log      string `json:"log,omitempty"`
	Resumed  bool   `json:"resumed,omitempty"` // begun by an earlier run that was cut off, or before a reboot

	rebooting bool // its installer is rebooting the machine
	err       error
}

// ID is "<product> <version>".
func (d *Applied) ID() string { return d.Product + " " + d.Version }

// Result of Apply.
type Result struct {
	DryRun bool      `json:"dry_run,omitempty"`
	Report *Report   `json:"report,omitempty"` // the last check
	Done   []Applied `json:"done"`
}

// Apply finishes what an earlier run began, checks, and installs each offered
// patch, one after another, what others require before those; after each it
// checks anew. A patch that fails holds up only those that require it.
//
// The error is nil if nothing failed. It wraps ErrPartial if some patches were
// installed and something failed, else what stood in the way: tuf.ErrExpired,
// tuf.ErrOffline, tuf.ErrNotTrusted, ErrFailed and so on. The result is valid
// in any case.
//
// Cancelling ctx stops downloads at once and installers never: one that runs
// is waited for.
func (a *Agent) Apply(ctx context.Context, o ApplyOptions) (*Result, error) {
	res := &Result{DryRun: o.DryRun, Done: []Applied{}}
	s, err := a.begin(ctx)
	if err != nil {
		return res, err
	}
	defer s.end()
	s.ready, s.asked = !o.DryRun, o.Now
	if o.Retry {
		s.retry = &o
	}
	if !o.DryRun {
		if err := s.resume(ctx, res); err != nil {
			return res, res.verdict(err)
		}
		if o.Retry {
			if err := s.forgive(&o); err != nil {
				return res, res.verdict(err)
			}
		}
		s.trimBases(ctx, 0)
	}
	tried := make(map[string]bool)
	for {
		rep, err := s.check(ctx)
		if rep != nil {
			res.Report = rep
		}
		if err != nil {
			return res, res.verdict(err)
		}
		next := rep.next(&o, tried)
		if o.DryRun {
			return res, nil
		}
		if next == nil {
			return res, res.verdict(s.removeStale(rep))
		}
		tried[next.Path] = true
		done := s.apply(ctx, next)
		if ctx.Err() != nil && done.err != nil {
			return res, res.verdict(context.Cause(ctx))
		}
		res.Done = append(res.Done, done)
		if done.rebooting {
			return res, res.verdict(nil) // nothing is begun that the reboot would cut off
		}
	}
}

func (r *Report) next(o *ApplyOptions, tried map[string]bool) *Item {
	for _, it := range r.Order(o.Only) {
		if it.State == StateOffered && !tried[it.Path] {
			return it
		}
	}
	return nil
}

// verdict sums up a run; err is what ended it.
func (r *Result) verdict(err error) error {
	good := make(map[string]bool)
	for i := range r.Done {
		if d := &r.Done[i]; d.err == nil && (d.Step == StepCommitted || d.Step == StepRebootPending) {
			good[d.Path] = true
		}
	}
	for i := range r.Done {
		// What failed first and then went well, as after a crash, went well.
		if d := &r.Done[i]; d.err != nil && !good[d.Path] {
			err = errors.Join(err, d.err)
		}
	}
	if err != nil && len(good) > 0 && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("%w: %w", ErrPartial, err)
	}
	return err
}

// forgive lets patches be tried again.
func (s *session) forgive(o *ApplyOptions) error {
	records, _, err := s.journal.all()
	if err != nil {
		return err
	}
	for _, r := range records {
		if !r.final() || !o.wants(r.Patch.Product, r.Patch.Version) {
			continue
		}
		if r.Step == StepCommitted && r.Returned > 0 {
			r.Returned = 0
			err = s.journal.save(r, StepCommitted, r.Why)
		} else if r.Step != StepCommitted {
			err = s.journal.remove(r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// attempt is one patch on its way.
type attempt struct {
	*session
	rec     *Record
	resumed bool
	out     install.Outcome // of the last program
}

// apply takes an offered patch as far as it gets.
func (s *session) apply(ctx context.Context, it *Item) Applied {
	key := recordKey(it.Path, it.SHA256)
	rec, err := s.journal.load(key)
	lost := s.journal.lost(key)
	if err == nil && (rec == nil || rec.Step == StepCommitted) {
		fresh := &Record{Path: it.Path, SHA256: it.SHA256}
		if rec != nil {
			fresh.Returned = rec.returned(s.opts.Now())
		}
		rec = fresh
	}
	if err != nil {
		return Applied{Path: it.Path, Product: it.Product, Version: it.Version, Step: StepOffered, Why: err.Error(), err: err}
	}
	rec.Length, rec.Patch, rec.Previous = it.Length, it.patch, it.Installed
	at := &attempt{session: s, rec: rec}
	if lost && !at.installer.CanDetect(rec.Patch) {
		// An earlier run may have installed it, and what came of that was lost.
		if no, asked := at.judge(ctx); asked && no == "" {
			rec.Known, rec.Begun = install.Known{Version: rec.Patch.Version}, s.opts.Now().UTC()
			return at.applied(at.commit(ctx))
		}
	}
	return at.applied(at.run(ctx, it))
}

// applied turns the end of an attempt into words, for the caller and for the
// history.
func (at *attempt) applied(err error) Applied {
	r := at.rec
	d := Applied{
		Path: r.Path, Product: r.Patch.Product, Version: r.Patch.Version, Previous: r.Previous,
		Step: r.Step, Attempt: r.Attempts, Why: r.Why, Output: at.out.Output, Log: at.out.Log, Resumed: at.resumed,
		rebooting: at.out.Result == patch.RebootStarted,
	}
	if err != nil {
		if !errors.Is(err, ErrFailed) {
			d.Why = err.Error()
		}
		d.err = fmt.Errorf("%s: %w", d.ID(), err)
	}
	return d
}

func (at *attempt) run(ctx context.Context, it *Item) error {
	rec := at.rec
	log := zerolog.Ctx(ctx).With().Str("patch", it.ID()).Logger()
	if err := at.journal.save(rec, StepOffered, ""); err != nil {
		return err
	}
	path, err := at.fetch(ctx, it)
	if err != nil {
		return fmt.Errorf("download: %w", err)
	}
	if err := at.journal.save(rec, StepFetched, ""); err != nil {
		return err
	}
	file, err := install.Open(path, rec.Length, rec.SHA256)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := at.journal.save(rec, StepVerified, ""); err != nil {
		return err
	}
	// The download may have taken hours. Whatever was decided before it is
	// asked again, of metadata fetched now.
	rep, err := at.check(ctx)
	if err != nil {
		return err
	}
	again := rep.item(it.Path, it.SHA256)
	if again == nil || again.State != StateOffered {
		why := "the ring's plan does not hold it any more"
		if again != nil {
			why = string(again.State) + ": " + again.Why
		}
		log.Info().Str("why", why).Msg("not installed after all")
		return at.journal.save(rec, StepVerified, "not installed after all; "+why)
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	rec.Patch, rec.Previous = again.patch, again.Installed
	log.Info().Str("previous", rec.Previous).Msg("install")
	return at.install(context.WithoutCancel(ctx), file, path)
}

// downloads/<key, shortened>/<file>: an installer wants the file's name.
func (s *session) filePath(rec *Record) string {
	_, _, _, file, _ := layout.SplitPatchPath(rec.Path)
	return s.path("downloads", rec.key()[:16], file)
}

func (at *attempt) fetch(ctx context.Context, it *Item) (string, error) {
	rec := at.rec
	path := at.filePath(rec)
	if err := install.PrivateDir(filepath.Dir(path)); err != nil {
		return "", err
	}
	at.putBase(rec, path)
	at.makeRoom(ctx, rec, path)
	get := func() (*tuf.Target, error) {
		t, res, err := at.client.Download(ctx, it.Path, path, client.DownloadOptions{Progress: at.progress(it.ID()), Bases: at.bases(rec.Patch.Product)})
		if err == nil {
			zerolog.Ctx(ctx).Debug().Str("patch", it.ID()).Int64("fetched", res.Bytes).Int64("resumed", res.Resumed).Int64("copied", res.Copied).
				Bool("reused", res.Reused).Strs("from", res.From()).Msg("fetched")
		}
		return t, err
	}
	t, err := get()
	if errors.Is(err, fetch.ErrNoSpace) && at.dropBases(ctx) {
		t, err = get()
	}
	if errors.Is(err, fs.ErrNotExist) {
		if _, terr := at.client.Target(ctx, it.Path); terr == nil {
			return "", fmt.Errorf("%w: it is signed, and no mirror has it: %v", tuf.ErrOffline, err) //nolint:errorlint // it is no missing file of ours
		}
	}
	if err != nil {
		return "", err
	}
	if t.SHA256 != it.SHA256 {
		return "", fmt.Errorf("%w: the product's role signed other content meanwhile", tuf.ErrNotTrusted)
	}
	return path, nil
}

// install runs the installer. From here on nothing is left half done: each
// step is on disk before it is taken.
func (at *attempt) install(ctx context.Context, file *os.File, path string) error {
	rec := at.rec
	job := at.job()
	job.File, job.Path = file, path
	known, err := at.installer.Inspect(ctx, job)
	if err != nil {
		return err
	}
	rec.Known = known
	if rec.Boot, err = at.opts.BootID(); err != nil {
		zerolog.Ctx(ctx).Debug().Err(err).Msg("name this boot")
	}
	lock, _, err := lockRun(at.runLock(), true)
	if err != nil {
		return fmt.Errorf("lock installer: %w", err)
	}
	if lock != nil {
		defer lock.Close()
	}
	job.Lock = lock
	rec.Attempts++
	rec.Begun = at.opts.Now().UTC()
	if err := at.journal.save(rec, StepInstalling, ""); err != nil {
		return err
	}
	at.out, err = at.installer.Run(ctx, job)
	file.Close() // Windows lets nobody move or remove it before
	atStep("installed")
	if err != nil { // nothing was started
		return at.end(StepFailed, err.Error(), err)
	}
	if at.out.Result != patch.Retry {
		rec.Retries = 0
	}
	switch at.out.Result {
	case patch.Success:
		return at.verify(ctx)
	case patch.Reboot, patch.RebootStarted:
		return at.end(StepRebootPending, "the machine must be rebooted", nil)
	case patch.Retry:
		return at.busy()
	case patch.NotApplicable:
		return at.end(StepNotApplicable, at.out.Why, nil)
	}
	if rec.Patch.Rollback != nil {
		return at.rollBack(ctx, "the installer failed: "+at.out.Why)
	}
	return at.end(StepFailed, "the installer failed: "+at.out.Why, ErrFailed)
}

// busy puts off a patch whose installer cannot work now.
func (at *attempt) busy() error {
	rec := at.rec
	why := "the installer was busy"
	if at.out.Why != "" {
		why += ": " + at.out.Why
	}
	rec.Retries++
	if rec.Retries >= MaxRetries {
		rec.Attempts = MaxAttempts
		return at.end(StepFailed, fmt.Sprintf("%s, %d times in a row", why, rec.Retries), ErrFailed)
	}
	rec.Attempts--
	rec.Until = time.Time{}
	if wait := busyWait(rec.Retries); wait > 0 {
		rec.Until = at.opts.Now().Add(wait).UTC().Truncate(time.Second)
	}
	return at.end(StepRetryLater, why, nil)
}

func (at *attempt) job() install.Job {
	r := at.rec
	return install.Job{Patch: r.Patch, Path: at.filePath(r), Length: r.Length, SHA256: r.SHA256, Previous: r.Previous}
}

func (s *session) runLock() string { return s.path("installing.lock") }

// verify asks the machine, and commits or rolls back.
func (at *attempt) verify(ctx context.Context) error {
	if err := at.journal.save(at.rec, StepChecking, ""); err != nil {
		return err
	}
	if no, _ := at.judge(ctx); no != "" {
		return at.rollBack(ctx, no)
	}
	return at.commit(ctx)
}

// judge asks the machine itself whether the patch is on it: its verify recipe,
// and whatever detects its version. Not the installer, nor any record. no is
// what speaks against it, "" if nothing does; asked is false if there was nobody
// to ask.
func (at *attempt) judge(ctx context.Context) (no string, asked bool) {
	p := at.rec.Patch
	v, err := at.installer.Verify(ctx, at.job())
	switch {
	case err != nil:
		return "it cannot be verified: " + err.Error(), true
	case v != nil && v.Result != patch.Success:
		at.out = *v
		return "the verify recipe says no: " + v.Why, true
	}
	if !at.installer.CanDetect(p) {
		return "", v != nil
	}
	is, err := at.installer.Detect(ctx, p, at.rec.Known)
	switch {
	case err != nil:
		return "it cannot be found out what is installed: " + err.Error(), true
	case is == "":
		return fmt.Sprintf("%s is not installed, whatever its installer says", p.Product), true
	}
	// Newer is fine, unless it is what was there before a downgrade.
	if c := p.Compare(is, p.Version); c < 0 || c > 0 && is == at.rec.Previous {
		return fmt.Sprintf("%s %s is installed, whatever its installer says", p.Product, is), true
	}
	return "", true
}

func (at *attempt) commit(ctx context.Context) error {
	rec := at.rec
	if err := at.noteInstalled(rec.Patch.Product, rec.Known); err != nil {
		return err
	}
	rec.Attempts, rec.Resumes, rec.Retries = max(rec.Attempts, 1), 0, 0
	if err := at.end(StepCommitted, "", nil); err != nil {
		return err
	}
	at.keepBase(ctx, rec)
	return errors.Join(os.RemoveAll(filepath.Dir(at.filePath(rec))), at.journal.found(rec.key()), at.journal.prune())
}

// rollBack undoes an installation that is not good, if there is a way.
func (at *attempt) rollBack(ctx context.Context, why string) error {
	if err := at.journal.save(at.rec, StepRollingBack, why); err != nil {
		return err
	}
	r, err := at.installer.Rollback(ctx, at.job())
	switch {
	case err != nil:
		return at.end(StepFailed, fmt.Sprintf("%s; and it could not be rolled back: %v", why, err), ErrFailed)
	case r == nil:
		return at.end(StepFailed, why+"; and the patch has no way to roll back", ErrFailed)
	case r.Result != patch.Success:
		at.out = *r
		return at.end(StepFailed, fmt.Sprintf("%s; and the rollback recipe failed: %s", why, r.Why), ErrFailed)
	}
	return at.end(StepRolledBack, why, ErrFailed)
}

// end writes down how the attempt ended: first for people, then in the
// journal, which says that it did. It returns err with the reason.
func (at *attempt) end(step Step, why string, err error) error {
	r := at.rec
	e := Event{
		ID:   fmt.Sprintf("%.12s-%d-%s", r.key(), r.Begun.UnixNano(), step),
		Time: at.opts.Now().UTC().Truncate(time.Second), Product: r.Patch.Product, Version: r.Patch.Version, Previous: r.Previous,
		Path: r.Path, SHA256: r.SHA256, Step: step, Attempt: r.Attempts, Exit: at.out.Exit, Why: why,
		Output: at.out.Output, Log: at.out.Log, Took: at.out.Took,
	}
	if err := at.record(e); err != nil {
		return fmt.Errorf("write history: %w", err)
	}
	if err := at.journal.save(r, step, why); err != nil {
		return err
	}
	if errors.Is(err, ErrFailed) {
		return fmt.Errorf("%w: %s", ErrFailed, why)
	}
	return err
}

// removeStale removes files that were downloaded for patches which are not in
// the plan any more, unless they are under way.
func (s *session) removeStale(rep *Report) error {
	entries, err := os.ReadDir(s.path("downloads"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	keep := make(map[string]bool)
	for i := range rep.Patches {
		keep[recordKey(rep.Patches[i].Path, rep.Patches[i].SHA256)[:16]] = true
	}
	records, _, err := s.journal.all()
	if err != nil {
		return err
	}
	for _, r := range records {
		keep[r.key()[:16]] = keep[r.key()[:16]] || !r.final()
	}
	for _, e := range entries {
		if len(e.Name()) == 16 && !keep[e.Name()] {
			if err := os.RemoveAll(s.path("downloads", e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
