// Command patchkeep-mirror serves a patch repository: as the origin, over a
// bucket or a directory, or as a mirror of another one at a branch site.
package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/repo/store"
)

func main() {
	cli.Main(newRoot(), cli.Config{LogLevel: "info", Hint: hint, Rules: rules})
}

// rules give errors their exit codes; the first that fits counts.
var rules = []cli.Rule{
	{Target: tuf.ErrNotTrusted, Code: cli.NotTrusted},
	{Target: tuf.ErrExpired, Code: cli.Expired},
	{Target: mirror.ErrLocked, Code: cli.Conflict},
	{Target: tuf.ErrLocked, Code: cli.Conflict},
	{Target: tuf.ErrOffline, Code: cli.Offline},
	{Target: store.ErrUnreachable, Code: cli.Offline},
}

// hint says what to do next about errors that a command did not explain.
func hint(err error) string {
	switch {
	case errors.Is(err, mirror.ErrLocked):
		return "stop the other one, or give this one a --cache of its own"
	case errors.Is(err, store.ErrDenied):
		return "look at AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or at the profile in use; reading is enough"
	case errors.Is(err, tuf.ErrNotTrusted):
		return "--root must be a root of this very repository; a --cache that served another one cannot be used"
	}
	return ""
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "patchkeep-mirror",
		Short: "Serve a patch repository, close to those who need it",
		Long: `patchkeep-mirror serves a signed patch repository over HTTP. With a bucket or a
directory upstream it is the origin; with another mirror upstream it brings each
patch over the line once, however many machines ask. It verifies everything
against a pinned root, and serves nothing that the repository has not signed.`,
		Example: `  patchkeep-mirror serve --upstream s3://patches --root root.json --cache /var/cache/patchkeep --listen :8080
  patchkeep-mirror serve --upstream https://patches.example.com --root root.json --cache ./cache
  patchkeep-mirror status http://localhost:8080`,
	}
	root.AddCommand(newServe(), newStatus(), newVerify())
	return root
}
