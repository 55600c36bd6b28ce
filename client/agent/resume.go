package agent

import (
	"context"
	"fmt"
	"slices"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// resume finishes what earlier runs began and could not end: because they were
// killed, or because a reboot had to come first. It needs no network: what it
// does was allowed when it began, and a machine is not left half-way.
func (s *session) resume(ctx context.Context, res *Result) error {
	records, err := s.journal.all()
	if err != nil {
		return err
	}
	lock, free, err := lockRun(s.runLock(), false)
	if err != nil {
		return fmt.Errorf("lock installer: %w", err)
	}
	if lock != nil {
		defer lock.Close()
	}
	underWay := slices.ContainsFunc(records, func(r *Record) bool { return !r.final() && r.Step != StepRebootPending })
	if underWay && !free {
		return fmt.Errorf("%w: an installer that an earlier run started is still running", ErrBusy)
	}
	for _, r := range records {
		if r.final() || r.Step == StepRebootPending && !s.rebooted(r) {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		at := &attempt{session: s, rec: r, resumed: true}
		zerolog.Ctx(ctx).Info().Str("patch", r.Patch.ID).Str("step", string(r.Step)).Msg("resume")
		res.Done = append(res.Done, at.applied(at.resume(context.WithoutCancel(ctx))))
	}
	return nil
}

func (at *attempt) resume(ctx context.Context) error {
	switch at.rec.Step {
	case StepInstalling:
		return at.interrupted(ctx)
	case StepRollingBack:
		return at.rollBack(ctx, at.rec.Why)
	default: // checking, or rebooted
		return at.verify(ctx)
	}
}

// interrupted judges an installer whose end nobody saw, by what is on the
// machine. What cannot be judged is not simply started again: it might be
// installed twice.
func (at *attempt) interrupted(ctx context.Context) error {
	rec := at.rec
	const cut = "the run that installed it was cut off"
	if rec.Patch.Verify != nil {
		v, err := at.installer.Verify(ctx, at.job())
		if err == nil && v.Result == patch.Success {
			return at.commit()
		}
		return at.undo(ctx, cut+", and the verify recipe says no")
	}
	if install.CanDetect(rec.Patch) {
		v, err := at.installer.Detect(ctx, rec.Patch, rec.Known)
		if err == nil && rec.Patch.Compare(v, rec.Patch.Version) == 0 {
			return at.commit()
		}
		return at.undo(ctx, cut+", and the version is not installed")
	}
	if rec.Patch.Rollback != nil {
		return at.rollBack(ctx, cut+", and nothing tells whether it is installed")
	}
	rec.Attempts = MaxAttempts
	return at.end(StepFailed, cut+", and the patch has no verify, detect or rollback recipe: look at the machine, then apply --retry", ErrFailed)
}

// undo rolls back where there is a way. Where there is none because a package
// manager is to bring things in order, the patch is simply offered again.
func (at *attempt) undo(ctx context.Context, why string) error {
	if at.rec.Patch.InstallsItself() && !install.CanRollBack(at.rec.Patch) {
		return at.end(StepFailed, why, nil)
	}
	return at.rollBack(ctx, why)
}
