//go:build unix

package install_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// plugins is an installer of a program's own: it keeps what it was given.
type plugins struct {
	now, before string
	out         install.Outcome
	err         error
	limited     bool
}

func (p *plugins) Install(ctx context.Context, job install.Job) (install.Outcome, error) {
	_, p.limited = ctx.Deadline()
	if p.err != nil {
		return install.Outcome{}, p.err
	}
	data, err := io.ReadAll(io.NewSectionReader(job.File, 0, job.Length))
	if err != nil {
		return install.Outcome{}, err
	}
	p.before, p.now = p.now, string(data)
	return p.out, nil
}

func (p *plugins) Detect(context.Context, *patch.Patch, install.Known) (string, error) {
	return p.now, nil
}

func (p *plugins) RollBack(_ context.Context, job install.Job) (install.Outcome, error) {
	p.now = job.Previous
	return install.Outcome{Result: patch.Success}, nil
}

// simple can install and nothing else.
type simple struct{ p *plugins }

func (s simple) Install(ctx context.Context, job install.Job) (install.Outcome, error) {
	return s.p.Install(ctx, job)
}

func TestOwnInstaller(t *testing.T) {
	b := newBench(t)
	own := &plugins{out: install.Outcome{Result: patch.Success, Output: "put in"}}
	b.Own = map[patch.Kind]install.Runner{patch.KindArchive: own, patch.KindCommand: simple{own}}
	job := b.job(t, patch.KindArchive, "1.1", "p.tar", []byte("1.1"))
	job.Previous = "1.0"
	if k, err := b.Inspect(t.Context(), job); err != nil || k.Version != "1.1" {
		t.Errorf("Inspect = %+v, %v", k, err)
	}
	if out := run(t, b, job); out.Result != patch.Success || out.Output != "put in" || own.now != "1.1" || !own.limited {
		t.Errorf("outcome %+v, %+v", out, own)
	}
	if !b.CanDetect(job.Patch) || !b.CanRollBack(job.Patch) {
		t.Error("it can detect and roll back")
	}
	if v, err := b.Detect(t.Context(), job.Patch, install.Known{Version: "9"}); v != "1.1" || err != nil {
		t.Errorf("Detect = %q, %v", v, err)
	}
	if out, err := b.Rollback(t.Context(), job); err != nil || out.Result != patch.Success || own.now != "1.0" {
		t.Errorf("Rollback = %+v, %v; %s is there", out, err, own.now)
	}

	// A patch's own recipes for the rest go first, its install recipe does not.
	job = b.job(t, patch.KindCommand, "1.2", "p", []byte("1.2"), recipe("false"), func(p *patch.Patch) { p.Detect = &patch.Recipe{Argv: []string{"echo", "7"}} })
	if out := run(t, b, job); out.Result != patch.Success || own.now != "1.2" {
		t.Errorf("outcome %+v", out)
	}
	if v, err := b.Detect(t.Context(), job.Patch, install.Known{}); v != "7" || err != nil {
		t.Errorf("Detect = %q, %v", v, err)
	}
	job.Patch.Detect = nil
	if b.CanDetect(job.Patch) || b.CanRollBack(job.Patch) {
		t.Error("it can neither detect nor roll back")
	}
	if v, err := b.Detect(t.Context(), job.Patch, install.Known{Version: "9"}); v != "9" || err != nil {
		t.Errorf("Detect by the record = %q, %v", v, err)
	}
	if out, err := b.Rollback(t.Context(), job); out != nil || err != nil {
		t.Errorf("Rollback = %+v, %v", out, err)
	}
}

// An own installer is not believed more than others.
func TestOwnInstallerWithinBounds(t *testing.T) {
	b := newBench(t)
	b.Output = 100
	own := &plugins{}
	b.Own = map[patch.Kind]install.Runner{patch.KindFile: own}
	job := b.job(t, patch.KindFile, "1.1", "p", []byte("x"))
	if out := run(t, b, job); out.Result != patch.Failure || !strings.Contains(out.Why, "no outcome") {
		t.Errorf("no outcome: %+v", out)
	}
	own.out = install.Outcome{Result: patch.Success, Output: strings.Repeat("x", 5000)}
	if out := run(t, b, job); len(out.Output) > 200 {
		t.Errorf("%d bytes of output", len(out.Output))
	}
	own.err = fmt.Errorf("no such slot: %w", install.ErrUnsupported)
	if _, err := b.Run(t.Context(), job); !errors.Is(err, install.ErrUnsupported) {
		t.Errorf("Run = %v", err)
	}
	own.err, own.now = nil, ""
	mustDo(t, os.WriteFile(job.Path, []byte("y"), 0o600))
	if _, err := b.Run(t.Context(), job); !errors.Is(err, install.ErrChanged) || own.now != "" {
		t.Errorf("Run with a changed file = %v; it got %q", err, own.now)
	}
}
