// Command patchkeep makes and keeps a signed patch repository: it is what
// release engineers, approvers and people on call work with.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/store"
	"github.com/patchkeep/patchkeep/repo/store/storeurl"
	"github.com/patchkeep/patchkeep/signing"
)

func main() {
	cli.Main(newRoot(), cli.Config{Rules: rules, Hint: hint})
}

// rules give errors their exit codes; the first that fits counts.
var rules = []cli.Rule{
	{Target: repo.ErrExpired, Code: cli.Expired},
	{Target: tuf.ErrExpired, Code: cli.Expired},
	{Target: repo.ErrNotTrusted, Code: cli.NotTrusted},
	{Target: repo.ErrFaults, Code: cli.NotTrusted},
	{Target: tuf.ErrNotTrusted, Code: cli.NotTrusted},
	{Target: repo.ErrBadPending, Code: cli.NotTrusted},
	{Target: repo.ErrStale, Code: cli.Conflict},
	{Target: repo.ErrClosed, Code: cli.Conflict},
	{Target: repo.ErrExists, Code: cli.Conflict},
	{Target: repo.ErrBusy, Code: cli.Conflict},
	{Target: repo.ErrUnknownRing, Code: cli.Usage},
	{Target: store.ErrConflict, Code: cli.Conflict},
	{Target: fs.ErrExist, Code: cli.Conflict},
	{Target: store.ErrUnreachable, Code: cli.Offline},
	{Target: tuf.ErrOffline, Code: cli.Offline},
}

// hint says what to do next about errors that many commands meet.
func hint(err error) string {
	switch {
	case errors.Is(err, signing.ErrPassword):
		return "give the password with " + signing.PasswordEnv + ", with --password-fd, or at the prompt of a terminal"
	case errors.Is(err, signing.ErrExampleKey):
		return "make keys of your own with: patchkeep key new NAME --keys DIR"
	case errors.Is(err, repo.ErrStale):
		return "make it anew on top of what is published now with: patchkeep pending rebase ID"
	case errors.Is(err, repo.ErrBadPending):
		return "do not sign it; whoever made it stages it again, and this one is put away with: patchkeep pending abandon ID"
	case errors.Is(err, repo.ErrKeys):
		return "name the directory or file with the missing keys with --keys, which may be repeated; others can sign later what was staged with --pending"
	case errors.Is(err, repo.ErrPolicy):
		return "see what the ring demands with: patchkeep ring show RING"
	case errors.Is(err, repo.ErrExpired):
		return "whoever holds the role's keys signs it anew with: patchkeep renew --role ROLE"
	case errors.Is(err, repo.ErrNotTrusted):
		return "something changed the repository without its keys; look closer with: patchkeep verify"
	case errors.Is(err, store.ErrDenied):
		return "look at AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or at the profile in use, and at what it may do in the bucket"
	case errors.Is(err, store.ErrUnsupported):
		return "use a service with conditional writes: AWS S3, MinIO, Ceph, VersityGW, …, or a directory"
	}
	return ""
}

func newRoot() *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:   "patchkeep",
		Short: "Publish patches that every machine can verify",
		Long: `patchkeep makes and keeps a signed patch repository in a directory or an
S3-compatible bucket. Release engineers publish patches with it, approvers let
them go to a ring of machines, and anyone on call can stop them.`,
		Example: `  patchkeep init --repo ./repo --keys ./keys
  patchkeep patch add hello_1.0_amd64.deb --product hello --version 1.0 --platform linux-amd64
  patchkeep rollout start hello@1.0 --ring users
  patchkeep verify`,
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.repoRef, "repo", "", "repository: a directory, or s3://bucket/prefix?endpoint=host:port&region=…&insecure=true")
	flags.StringArrayVar(&a.keyRefs, "keys", nil, "directory of key files, or a key reference; may be repeated")
	flags.IntVar(&a.passwordFD, "password-fd", -1, "read the password of the keys from this file descriptor")
	cli.BindEnv(root, "repo", "PATCHKEEP_REPO")
	cli.BindEnv(root, "keys", "PATCHKEEP_KEYS")
	root.AddCommand(
		newInit(a), newKey(a), newProduct(a), newPatch(a), newRing(a), newRollout(a),
		newHalt(a), newMirror(a), newRenew(a), newRootCommand(a), newVerify(a), newExposure(a),
	)
	waitFlags(a, root)
	root.AddCommand(newPending(a), newSign(a), newPublish(a), newExport(a), newImport(a))
	return root
}

// app is what the flags common to all commands say.
type app struct {
	repoRef    string
	keyRefs    []string
	passwordFD int

	pending, noPending bool // of commands that publish; see waitFlags
}

// demoEnv lets the keys of keys-example sign. The demo sets it.
const demoEnv = "PATCHKEEP_DEMO"

func (a *app) openStore(ctx context.Context) (store.Store, error) {
	if a.repoRef == "" {
		return nil, cli.WithHint(cli.Usagef("no repository is named"), "use --repo DIR, --repo s3://BUCKET/PREFIX, or PATCHKEEP_REPO")
	}
	ref, err := storeurl.Parse(a.repoRef)
	if err != nil {
		return nil, &cli.UsageError{Err: err}
	}
	return ref.Open(ctx)
}

func (a *app) openKeys(ctx context.Context) (*signing.Keyring, error) {
	return signing.Open(ctx, a.keyRefs, signing.Options{
		Password:     signing.Passwords(a.passwordFD),
		AllowExample: os.Getenv(demoEnv) == "1",
	})
}

// open opens the repository, for signing with the given keys.
func (a *app) open(ctx context.Context) (*repo.Repository, *signing.Keyring, error) {
	s, err := a.openStore(ctx)
	if err != nil {
		return nil, nil, err
	}
	ring, err := a.openKeys(ctx)
	if err != nil {
		return nil, nil, err
	}
	return repo.Open(s, repo.Config{Keys: keysOf(ring), Pending: a.waiting(), By: whoAmI()}), ring, nil
}

// keysOf lets a repository sign with a keyring.
func keysOf(ring *signing.Keyring) repo.Keys {
	return func(ctx context.Context, id string) (repo.Signer, error) {
		key, err := ring.Signer(ctx, id)
		if err != nil {
			return nil, err // not a nil *Key in an interface
		}
		return key, nil
	}
}

// note tells a person what happens beside the result.
func note(cmd *cobra.Command, format string, args ...any) {
	if quiet, _ := cmd.Flags().GetBool("quiet"); !quiet {
		fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...)
	}
}
