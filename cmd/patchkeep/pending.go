package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/signing"
)

// waitFlags gives each command that publishes, which are those with --dry-run,
// the flags that say whether its change may wait for signatures of others.
func waitFlags(a *app, cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		waitFlags(a, sub)
	}
	if cmd.Flags().Lookup("dry-run") != nil {
		addWaitFlags(a, cmd)
	}
}

func addWaitFlags(a *app, cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.pending, "pending", false, "let the change wait for signatures of others, even if the keys at hand suffice")
	cmd.Flags().BoolVar(&a.noPending, "no-pending", false, "refuse the change if the keys at hand do not suffice, instead of letting it wait")
	cmd.MarkFlagsMutuallyExclusive("pending", "no-pending")
}

func (a *app) waiting() repo.Waiting {
	switch {
	case a.pending:
		return repo.WaitAlways
	case a.noPending:
		return repo.WaitNever
	}
	return repo.WaitIfNeeded
}

func newPending(a *app) *cobra.Command {
	cmd := newPendingList(a)
	cmd.Use = "pending"
	cmd.Short = "List the changes that wait for signatures"
	cmd.Long = `pending lists the changes that wait in the repository because a role needs more
signatures than whoever made them holds. Others read them with pending show, add
their signatures with sign, and whoever has the keys of snapshot and timestamp
publishes them once they are complete.`
	cmd.Example = `  patchkeep pending
  patchkeep pending show 20261124-6f1d3c0a9be2447a1c05d8e27b3a9f10
  patchkeep pending rebase 20261124-6f1d3c0a9be2447a1c05d8e27b3a9f10`
	list := newPendingList(a)
	cmd.AddCommand(list, newPendingShow(a), newPendingRebase(a), newPendingAbandon(a))
	return cmd
}

func newPendingList(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the changes that wait, and who is missing",
		Example: `  patchkeep pending list --all`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, ring, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			list, err := r.Pendings(cmd.Context(), all)
			if err != nil {
				return err
			}
			return cli.Print(cmd, list, func(w io.Writer) error { return printPendings(w, list, ring) })
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "list published, abandoned and rebased ones too")
	return cmd
}

func printPendings(w io.Writer, list []*repo.Pending, ring *signing.Keyring) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "Nothing waits for signatures.")
		return err
	}
	t := cli.Table(w)
	fmt.Fprintln(t, "ID\tSTATE\tSIGNATURES\tWHAT")
	for _, p := range list {
		var have []string
		for _, r := range p.Roles {
			have = append(have, fmt.Sprintf("%s %d of %d", r.Role, len(r.Signed), r.Threshold))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", p.ID, p.State, orDash(strings.Join(have, ", ")), p.Title)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, p := range list {
		for _, why := range p.Why {
			fmt.Fprintf(w, "%s: %s\n", p.ID, why)
		}
		if p.State == repo.PendingWaiting && asksFor(p, ring) {
			fmt.Fprintf(w, "%s waits for a key of yours: patchkeep sign %s\n", p.ID, p.ID)
		}
		if p.State == repo.PendingReady {
			fmt.Fprintf(w, "%s has all signatures: patchkeep publish %s\n", p.ID, p.ID)
		}
	}
	return nil
}

// asksFor reports whether a key at hand may sign the change.
func asksFor(p *repo.Pending, ring *signing.Keyring) bool {
	for _, info := range ring.Keys() {
		for _, r := range p.Roles {
			if r.Missing > 0 && slices.Contains(r.Unsigned, info.ID) {
				return true
			}
		}
	}
	return false
}

func newPendingShow(a *app) *cobra.Command {
	var exact bool
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Say in words what a change does, who has signed it and who is missing",
		Long: `show reads the metadata that is to be signed and compares it with what is
published now. What it says comes from there, not from whoever made the change.`,
		Example:           `  patchkeep pending show 20261124-6f1d3c0a9be2447a1c05d8e27b3a9f10`,
		Args:              oneID,
		ValidArgsFunction: a.completeIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, ring, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			p, err := r.Pending(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return cli.Print(cmd, p, func(w io.Writer) error {
				if err := printPending(w, p, ring); err != nil || !exact {
					return err
				}
				return printExact(w, p)
			})
		},
	}
	cmd.Flags().BoolVar(&exact, "exact", false, "list each field of the metadata that differs too")
	return cmd
}

// printPending prints the page that a signer reads.
func printPending(w io.Writer, p *repo.Pending, ring *signing.Keyring) error {
	fmt.Fprintf(w, "Change %s: %s\n", p.ID, stateWords(p))
	for _, why := range p.Why {
		fmt.Fprintf(w, "  %s\n", why)
	}
	by := ""
	if p.By != "" {
		by = " by " + p.By
	}
	fmt.Fprintf(w, "  staged%s at %s, as it says itself\n", by, p.Created.Format(time.RFC3339))
	if p.Rebased != "" {
		fmt.Fprintf(w, "  takes the place of change %s\n", p.Rebased)
	}
	if p.Compared.Timestamp == 0 {
		fmt.Fprintln(w, "  nothing is published here yet; compare the keys below with their owners")
	} else {
		fmt.Fprintf(w, "  compared with what is published: timestamp %d, valid until %s\n", p.Compared.Timestamp, p.Compared.Expires.Format(time.RFC3339))
	}
	for _, r := range p.Roles {
		fmt.Fprintf(w, "\n%s: version %d, after %d, valid until %s\n", r.Role, r.To, r.From, r.Expires.Format(time.RFC3339))
		for _, line := range r.Words {
			fmt.Fprintf(w, "  %s\n", line)
		}
		if len(r.Words) == 0 {
			fmt.Fprintln(w, "  the content stays as it is; it is signed anew")
		}
		fmt.Fprintf(w, "  to be signed: sha256 %s\n", r.SHA256)
		fmt.Fprintf(w, "  signatures: %d of %d\n", len(r.Signed), r.Threshold)
		for _, id := range r.Signed {
			fmt.Fprintf(w, "    signed by %s\n", keyWords(id, ring))
		}
		for _, id := range r.Unsigned {
			fmt.Fprintf(w, "    may sign: %s\n", keyWords(id, ring))
		}
	}
	for _, note := range p.Notes {
		fmt.Fprintf(w, "note: %s\n", note)
	}
	return nil
}

func stateWords(p *repo.Pending) string {
	missing := 0
	for _, r := range p.Roles {
		missing += r.Missing
	}
	switch p.State {
	case repo.PendingWaiting:
		return fmt.Sprintf("waiting for %d more signature(s)", missing)
	case repo.PendingReady:
		return "all signatures are there; it can be published"
	case repo.PendingStale:
		return "STALE, so it cannot be published"
	}
	return string(p.State)
}

// keyWords names a key for reading aloud, and by its file if it is at hand.
func keyWords(id string, ring *signing.Keyring) string {
	words := signing.Fingerprint(id)
	if ring == nil {
		return words
	}
	for _, info := range ring.Keys() {
		if info.ID == id {
			return words + "  (" + info.Name + ", at hand)"
		}
	}
	return words
}

func printExact(w io.Writer, p *repo.Pending) error {
	lines, err := p.Exact()
	if err != nil {
		return err
	}
	for _, r := range p.Roles {
		fmt.Fprintf(w, "\nfields of %s that differ:\n", r.Role)
		for _, line := range lines[r.Role] {
			fmt.Fprintf(w, "  %s\n", line)
		}
	}
	return nil
}

// printWaiting says that a change was not published but waits, and what is to
// be done.
func printWaiting(w io.Writer, p *repo.Pending, words string) error {
	fmt.Fprintf(w, "Waiting for signatures, NOT published: %s\n", words)
	fmt.Fprintf(w, "  change %s\n", p.ID)
	for _, r := range p.Roles {
		fmt.Fprintf(w, "  %s %d → %d: %d of %d signatures\n", r.Role, r.From, r.To, len(r.Signed), r.Threshold)
		for _, id := range r.Signed {
			fmt.Fprintf(w, "    signed by %s\n", signing.Fingerprint(id))
		}
		if r.Missing > 0 {
			for _, id := range r.Unsigned {
				fmt.Fprintf(w, "    may sign: %s\n", signing.Fingerprint(id))
			}
		}
	}
	if p.Complete() {
		_, err := fmt.Fprintf(w, "Next: patchkeep publish %s   (needs the keys of snapshot and timestamp)\n", p.ID)
		return err
	}
	fmt.Fprintf(w, "Next: tell them to run: patchkeep sign %s\n", p.ID)
	fmt.Fprintf(w, "      on a machine without network: patchkeep export %s > FILE, there patchkeep sign --file FILE, and back with patchkeep import\n", p.ID)
	_, err := fmt.Fprintf(w, "      and when all have signed: patchkeep publish %s\n", p.ID)
	return err
}

func newPendingAbandon(a *app) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:               "abandon ID",
		Short:             "Give a change up: nobody signs or publishes it any more",
		Example:           `  patchkeep pending abandon 20261124-6f1d3c0a9be2447a1c05d8e27b3a9f10 --reason "1.1 comes instead"`,
		Args:              oneID,
		ValidArgsFunction: a.completeIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, _, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			p, err := r.AbandonPending(cmd.Context(), args[0], reason)
			if err != nil {
				return err
			}
			return cli.Print(cmd, p, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "Abandoned change %s.\n", p.ID)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for everyone to read")
	return cmd
}

func newPendingRebase(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rebase ID",
		Short: "Make a stale change anew on top of what is published now",
		Long: `rebase makes a new change that does to what is published now what the stale one
did to what was published when it was made. Roles that still fit keep their
signatures; the others are to be read and signed again, by you too.`,
		Example:           `  patchkeep pending rebase 20261124-6f1d3c0a9be2447a1c05d8e27b3a9f10`,
		Args:              oneID,
		ValidArgsFunction: a.completeIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, _, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			p, err := r.RebasePending(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return cli.Print(cmd, p, func(w io.Writer) error {
				return printWaiting(w, p, p.Title+" (in the place of change "+args[0]+")")
			})
		},
	}
}

func newPublish(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "publish ID",
		Short: "Publish a change that has all its signatures",
		Long: `publish brings a waiting change to the machines. It needs the keys of snapshot
and timestamp. It can be run again after it was cut off.`,
		Example:           `  patchkeep publish 20261124-6f1d3c0a9be2447a1c05d8e27b3a9f10`,
		Args:              oneID,
		ValidArgsFunction: a.completeIDs,
	}
	dryRun := dryRunFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, _, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		change, err := r.PublishPending(cmd.Context(), args[0], *dryRun)
		if err != nil {
			return err
		}
		return printChange(cmd, published{Change: *change}, "change "+args[0])
	}
	return cmd
}

// oneID wants the id of a change as the only argument.
func oneID(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("name one change by its id: see patchkeep pending")
	}
	return layout.CheckPendingID(args[0])
}

// completeIDs completes the ids of changes that wait.
func (a *app) completeIDs(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if a.repoRef == "" {
		a.repoRef = os.Getenv("PATCHKEEP_REPO")
	}
	if len(args) > 0 || a.repoRef == "" {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Second)
	defer cancel()
	s, err := a.openStore(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	list, err := repo.Open(s, repo.Config{}).Pendings(ctx, false)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var ids []string
	for _, p := range list {
		ids = append(ids, cobra.CompletionWithDesc(p.ID, p.Title))
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
