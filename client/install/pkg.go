package install

import (
	"context"
	"errors"
	"strings"

	"github.com/patchkeep/patchkeep/repo/patch"
)

// receiptName is the id by which macOS keeps the receipt of a package. A patch
// tells it by calling its product so: com.example.tool. It is "" if the
// product's name is none.
func receiptName(p *patch.Patch) string {
	if strings.Count(p.Product, ".") < 1 || !packagePattern.MatchString(p.Product) {
		return ""
	}
	return p.Product
}

// detectPkg reads the version from the package's receipt.
func (in *Installer) detectPkg(ctx context.Context, p *patch.Patch, known Known) (string, error) {
	if _, err := lookPath("pkgutil"); err != nil {
		return "", nil // no pkgutil, no receipts
	}
	out, stdout, err := in.capture(ctx, Job{Patch: p}, &patch.Recipe{Argv: []string{"pkgutil", "--pkg-info", receiptName(p)}, Timeout: 60})
	if err != nil {
		return "", err
	}
	if out.Result != patch.Success {
		if out.Exit < 0 {
			return "", errors.New(out.Why)
		}
		return "", nil // no receipt
	}
	for line := range strings.SplitSeq(stdout, "\n") {
		if v, ok := strings.CutPrefix(line, "version: "); ok && versionPattern.MatchString(strings.TrimSpace(v)) {
			return known.called(strings.TrimSpace(v)), nil
		}
	}
	return "", errors.New("pkgutil names no version")
}
