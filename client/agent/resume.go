package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/rs/zerolog"
)

// resume finishes what earlier runs began and could not end: because they were
// killed, or because a reboot had to come first. It needs no network: what it
// does was allowed when it began, and a machine is not left half-way.
func (s *session) resume(ctx context.Context, res *Result) error {
	records, _, err := s.journal.all()
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
	if !free {
		if err := s.stillRunning(records); err != nil {
			return err
		}
	}
	for _, r := range records {
		if r.final() || r.Step == StepRebootPending && !s.rebooted(r) && !(r.Boot == "" && s.retry != nil && s.retry.wants(r.Patch.Product, r.Patch.Version)) {
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

// stillRunning is an error if an installer outlived the run that started it, and
// what it came to must be known before anything else is done.
func (s *session) stillRunning(records []*Record) error {
	i := slices.IndexFunc(records, func(r *Record) bool { return !r.final() && r.Step != StepRebootPending })
	if i < 0 {
		return nil
	}
	r := records[i]
	limit := s.installer.Limit(r.Patch)
	since := s.opts.Now().Sub(r.Begun).Round(time.Second)
	if since > limit {
		return fmt.Errorf("%w: the installer of %s, which an earlier run started %s ago, is still running, and its time limit was %s: "+
			"end it (it has %s open), or reboot this machine", ErrBusy, r.Patch.ID, since, limit, s.runLock())
	}
	return fmt.Errorf("%w: the installer of %s, which an earlier run started, is still running; its time limit is %s", ErrBusy, r.Patch.ID, limit)
}

func (at *attempt) resume(ctx context.Context) error {
	rec := at.rec
	if rec.Step != StepRebootPending { // after a reboot nothing was cut off
		rec.Resumes++
		if rec.Resumes > MaxResumes {
			rec.Attempts = MaxAttempts
			return at.end(StepFailed, fmt.Sprintf("the agent was cut off %d times while it was %s: something about it ends the agent, or the machine; "+
				"look at the machine, then apply --retry", MaxResumes, rec.Step.Words()), ErrFailed)
		}
		if err := at.journal.save(rec, rec.Step, rec.Why); err != nil {
			return err
		}
	}
	switch rec.Step {
	case StepInstalling:
		return at.interrupted(ctx)
	case StepRollingBack:
		return at.rollBack(ctx, rec.Why)
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
	no, asked := at.judge(ctx)
	switch {
	case asked && no == "":
		return at.commit(ctx)
	case asked:
		rec.Attempts-- // it was not its fault; Resumes counts
		return at.undo(ctx, cut+", and "+no)
	case rec.Patch.Rollback != nil:
		return at.rollBack(ctx, cut+", and nothing tells whether it is installed")
	}
	rec.Attempts = MaxAttempts
	return at.end(StepFailed, cut+", and the patch has no verify, detect or rollback recipe: look at the machine, then apply --retry", ErrFailed)
}

// undo rolls back where there is a way. Where there is none because a package
// manager is to bring things in order, the patch is simply offered again.
func (at *attempt) undo(ctx context.Context, why string) error {
	if at.rec.Patch.InstallsItself() && !at.installer.CanRollBack(at.rec.Patch) {
		return at.end(StepFailed, why, nil)
	}
	return at.rollBack(ctx, why)
}
