package install

import (
	"context"
	"io"
	"os"
)

// Extract is extract, for fuzzing without syncing each result.
func Extract(ctx context.Context, root *os.Root, r *io.SectionReader, l ArchiveLimits) error {
	return extract(ctx, root, r, l)
}
