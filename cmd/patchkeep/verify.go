package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/mirror/upstream"
	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/layout"
)

func newVerify(a *app) *cobra.Command {
	var rootFile string
	var quick bool
	var access fetch.CredentialFiles
	cmd := &cobra.Command{
		Use:   "verify [REPOSITORY|URL]",
		Short: "Walk a repository as an outsider and name each fault",
		Long: `verify reads everything that clients would read: every role and its signatures,
every target and its hash, every block list, plan and halt. It needs no keys.
It looks at --repo, or at a directory, an s3:// bucket, or the URL of an origin
or a mirror. Without --root, the repository's first root is taken at its word.`,
		Example: `  patchkeep verify --repo ./repo
  patchkeep verify https://patches.example.com --root root.json
  patchkeep verify https://patches.example.com --root root.json --token-file token`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref := a.repoRef
			if len(args) == 1 {
				ref = args[0]
			}
			if ref == "" {
				return cli.Usagef("name a repository: --repo, or an argument")
			}
			cfg := repo.VerifyConfig{Quick: quick}
			if rootFile != "" {
				var err error
				if cfg.Root, err = os.ReadFile(rootFile); err != nil {
					return err
				}
			}
			creds, err := access.Load()
			if err != nil {
				return err
			}
			if access != (fetch.CredentialFiles{}) && !upstream.IsHTTP(ref) {
				return cli.Usagef("tokens, certificates and authorities are for servers, and %s is none", ref)
			}
			src, err := upstream.Credentials(creds).Open(cmd.Context(), ref, upstream.Limits{})
			if err != nil {
				return err
			}
			bar := cli.Progress(cmd, "verify", -1)
			cfg.Progress = func(_ string, done, _ int64) { bar.Set(done) }
			report, err := repo.Verify(cmd.Context(), src, cfg)
			bar.Close()
			if err != nil {
				return err
			}
			if err := cli.Print(cmd, report, func(w io.Writer) error { return printReport(w, report) }); err != nil {
				return err
			}
			return report.Err()
		},
	}
	cmd.Flags().StringVar(&rootFile, "root", "", "pinned root metadata")
	cmd.Flags().StringVar(&access.Token, "token-file", "", "file with the bearer token for the server, sent over https only")
	cmd.Flags().StringVar(&access.Certificate, "client-cert", "", "certificate for a server that asks for one, PEM")
	cmd.Flags().StringVar(&access.Key, "client-key", "", "its key, PEM")
	cmd.Flags().StringVar(&access.Authorities, "ca-file", "", "authorities of the server's certificate, PEM (default: the system's)")
	cmd.Flags().BoolVar(&quick, "quick", false, "look at the size of targets, but do not read them")
	return cmd
}

func printReport(w io.Writer, r *repo.Report) error {
	fmt.Fprintf(w, "Looked at %s\n", r.Source)
	if len(r.Roles) > 0 {
		t := cli.Table(w)
		fmt.Fprintln(t, "  ROLE\tVERSION\tEXPIRES")
		for _, e := range r.Roles {
			fmt.Fprintf(t, "  %s\t%d\t%s (%s)\n", e.Role, e.Version, e.Expires.Format(time.RFC3339), cli.Ago(e.Expires, r.Moment))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	fmt.Fprintf(w, "%d patches, %d deltas, %d targets, %s read\n", r.Patches, r.Deltas, r.Targets, cli.Bytes(r.Bytes))
	for _, f := range r.Warnings {
		fmt.Fprintf(w, "warning: %s: %s\n", f.Where, f.What)
	}
	for _, f := range r.Faults {
		fmt.Fprintf(w, "FAULT: %s: %s\n", f.Where, f.What)
	}
	if len(r.Faults) == 0 {
		fmt.Fprintln(w, "No faults.")
	}
	return nil
}

func newRenew(a *app) *cobra.Command {
	var roles []string
	var watch bool
	cmd := &cobra.Command{
		Use:   "renew",
		Short: "Sign timestamp and snapshot anew before they expire",
		Long: `renew signs timestamp and snapshot anew, so that they are valid for another
lifetime. Run it from a timer, or leave it running with --watch, which renews
when a third of the timestamp's life is left. --role renews other roles too.`,
		Example: `  patchkeep renew
  patchkeep renew --role product-hello --role ring-users
  patchkeep renew --watch`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringSliceVar(&roles, "role", nil, "further role to sign anew; may be repeated")
	cmd.Flags().BoolVar(&watch, "watch", false, "stay, and renew timestamp and snapshot whenever it is time")
	dryRun := dryRunFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if watch && (*dryRun || len(roles) > 0) {
			return cli.Usagef("--watch goes with neither --dry-run nor --role")
		}
		r, _, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		if watch {
			return watchExpiry(cmd.Context(), r)
		}
		change, err := r.Renew(cmd.Context(), roles, *dryRun)
		if err != nil {
			return err
		}
		words := "nothing but new signatures"
		for _, c := range change.Roles {
			if c.Role == layout.RoleTimestamp {
				words = "valid until " + c.Expires.Format(time.RFC3339) + " at least"
			}
		}
		return printChange(cmd, published{Change: *change}, words)
	}
	return cmd
}

// watchExpiry renews timestamp and snapshot until ctx ends. What fails is tried
// again: a store that is down for an hour must not end it.
func watchExpiry(ctx context.Context, r *repo.Repository) error {
	const retry = time.Minute
	log := zerolog.Ctx(ctx)
	for {
		wait, err := renewIfDue(ctx, r)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, repo.ErrKeys) || errors.Is(err, repo.ErrNoRepository) {
				return err // no use in waiting
			}
			log.Error().Err(err).Dur("again_in", retry).Msg("renewal failed")
			wait = retry
		}
		select {
		case <-ctx.Done():
			return nil // told to stop
		case <-time.After(wait):
		}
	}
}

// renewIfDue renews if less than a third of timestamp's or snapshot's life is
// left, and returns when to look again.
func renewIfDue(ctx context.Context, r *repo.Repository) (time.Duration, error) {
	list, err := r.Expiries(ctx)
	if err != nil {
		return 0, err
	}
	wait := time.Hour
	for _, e := range list {
		if e.Role != layout.RoleTimestamp && e.Role != layout.RoleSnapshot {
			continue
		}
		left := time.Until(e.Expires)
		if left > e.Lifetime/3 {
			wait = min(wait, left-e.Lifetime/3)
			continue
		}
		change, err := r.Renew(ctx, nil, false)
		if err != nil {
			return 0, err
		}
		zerolog.Ctx(ctx).Info().Int64("timestamp", change.Timestamp).Msg("renewed")
		return min(time.Hour, e.Lifetime/3), nil
	}
	return max(wait, time.Second), nil
}
