package install

import (
	"context"
	"fmt"
	"time"

	"github.com/patchkeep/patchkeep/repo/patch"
)

// Runner is an installer of a program's own, for the kinds of patches that
// Installer.Own gives to it.
//
// Install is called when all has been checked: job.File is open for reading at
// the verified content, which also lies at job.Path. It is not called again for
// the same attempt; but the machine may lose its power in the middle, and then
// the patch may be offered once more, so it should bear repetition. ctx ends when
// the patch's time is over, and nobody can stop Install but itself.
//
// The outcome says what came of it, and Why in words for people, unless it is
// success. An error means that nothing was done to the machine. If it wraps
// ErrUnsupported, this machine cannot take the patch.
//
// A Runner may also be a Detector or a RollBacker.
type Runner interface {
	Install(ctx context.Context, job Job) (Outcome, error)
}

// A Detector tells which version of the patch's product is installed, "" if
// none. It is asked if the patch has no detect recipe, often, and before each
// decision: it should be quick, and must change nothing.
type Detector interface {
	Detect(ctx context.Context, p *patch.Patch, known Known) (string, error)
}

// A RollBacker undoes an installation: job.Previous is to be there again. It
// is asked if the patch has no rollback recipe. job.File is nil.
type RollBacker interface {
	RollBack(ctx context.Context, job Job) (Outcome, error)
}

// own returns the runner of a patch's kind, nil if it is one of ours.
func (in *Installer) own(p *patch.Patch) Runner { return in.Own[p.Kind] }

// runOwn lets an own runner install.
func (in *Installer) runOwn(ctx context.Context, r Runner, job Job) (Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, in.Limit(job.Patch))
	defer cancel()
	start := time.Now()
	out, err := r.Install(ctx, job)
	return in.owned(out, start), err
}

// owned takes an own runner's word, within bounds.
func (in *Installer) owned(out Outcome, start time.Time) Outcome {
	if !known(out.Result) {
		out.Why = fmt.Sprintf("the program's own installer says %q, which is no outcome", out.Result)
		out.Result = patch.Failure
	}
	if out.Took == 0 {
		out.Took = time.Since(start).Round(time.Millisecond)
	}
	said := &tail{limit: in.output()}
	_, _ = said.Write([]byte(out.Output)) // it never fails
	out.Output = said.String()
	return out
}

func known(o patch.Outcome) bool {
	for _, k := range patch.Outcomes {
		if o == k {
			return true
		}
	}
	return false
}
