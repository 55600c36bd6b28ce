//go:build unix

package agent_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// keeper is an installer of a program that embeds the agent.
type keeper struct{ content string }

func (k *keeper) Install(_ context.Context, job install.Job) (install.Outcome, error) {
	data, err := io.ReadAll(io.NewSectionReader(job.File, 0, job.Length))
	k.content = string(data)
	return install.Outcome{Result: patch.Success}, err
}

func TestOwnInstaller(t *testing.T) {
	f := newFixture(t)
	k := &keeper{}
	f.opts.Installers = map[patch.Kind]install.Runner{patch.KindFile: k}
	f.add("hello", "1.1", "hello.bin", []byte("plug-in"))
	f.publish()
	f.enroll()
	f.wantApply("hello 1.1 committed", nil)
	if k.content != "plug-in" {
		t.Errorf("it got %q", k.content)
	}
	f.wantApply("", nil)
}

// A patch that demands a signature which this system cannot check is not run, and
// people are told.
func TestDemandedSignature(t *testing.T) {
	f := newFixture(t)
	dir := t.TempDir()
	f.add("hello", "1.1", "hello.bin", []byte("x"), counted(dir), func(p *patch.Patch) {
		p.OSSignature = &patch.OSSignature{Scheme: patch.Authenticode, Signers: []string{"cn:Example"}}
	})
	f.publish()
	f.enroll()
	_, res, err := f.apply(agent.ApplyOptions{})
	if !errors.Is(err, install.ErrSignature) || len(res.Done) != 1 || res.Done[0].Step != agent.StepFailed || !strings.Contains(res.Done[0].Why, "only Windows can check Authenticode") {
		t.Errorf("Apply = %+v, %v", res.Done, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "runs")); err == nil {
		t.Error("it was run")
	}
}
