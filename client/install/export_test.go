package install

import (
	"context"
	"io"
	"os"

	"github.com/patchkeep/patchkeep/repo/patch"
)

// Extract is extract, for fuzzing without syncing each result.
func Extract(ctx context.Context, root *os.Root, r *io.SectionReader, l ArchiveLimits) error {
	return extract(ctx, root, r, l)
}

// AfterCheck sets what is done between the check of a file and what it is for.
func AfterCheck(f func()) (undo func()) {
	before := afterCheck
	afterCheck = f
	return func() { afterCheck = before }
}

// Search lets programs be found in a directory before all others.
func Search(dir string) (undo func()) {
	before := searchPath
	searchPath = func() []string { return append([]string{dir}, before()...) }
	return func() { searchPath = before }
}

var (
	LogText    = logText
	PkgTeam    = pkgTeam
	RPMSigners = rpmSigners
)

// Meaning is what an exit code of a patch's installer comes to, with its words.
func Meaning(p *patch.Patch, n int) (patch.Outcome, string) {
	out := Outcome{Exit: n, Result: (&patch.Recipe{Exit: exits(p)}).OutcomeOf(n)}
	explain(p.Kind, &out)
	return out.Result, out.Why
}
