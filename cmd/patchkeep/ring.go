package main

import (
	"crypto"
	"crypto/ed25519"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/rollout"
	"github.com/patchkeep/patchkeep/signing"
)

func newRing(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "ring", Short: "Make and list rings of machines, and say what is demanded of them"}
	cmd.AddCommand(newRingAdd(a), newRingSet(a), newRingList(a), newRingShow(a))
	return cmd
}

// policyFlags are the flags of a ring's policy.
type policyFlags struct {
	authorMayNotApprove, changeRequired, rollbackPlan, evidence bool
	failureBudget, steps, after, soak                           string
}

func (in *policyFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&in.authorMayNotApprove, "author-may-not-approve", false, "the signature of a change's author does not count")
	f.BoolVar(&in.changeRequired, "change-required", false, "no rollout without a change record")
	f.BoolVar(&in.rollbackPlan, "rollback-plan-required", false, "a change record has a rollback plan")
	f.BoolVar(&in.evidence, "evidence-required", false, "a change record has test evidence")
	f.StringVar(&in.failureBudget, "failure-budget", "", "share of the machines that may fail before a patch is stopped, such as 2%")
	f.StringVar(&in.steps, "steps", "", "steps of a rollout that names none, such as 10%@0h,50%@24h,100%@3d or 0%@0h..100%@72h")
	f.StringVar(&in.after, "after", "", "ring that a patch must have been in before")
	f.StringVar(&in.soak, "soak", "", "how long it must have been out to everyone there, such as 24h or 7d")
}

// apply puts what was given on the command line over a policy.
func (in *policyFlags) apply(cmd *cobra.Command, p *rollout.Policy) error {
	given := cmd.Flags().Changed
	for _, f := range []struct {
		name string
		from bool
		to   *bool
	}{
		{"author-may-not-approve", in.authorMayNotApprove, &p.AuthorMayNotApprove},
		{"change-required", in.changeRequired, &p.ChangeRequired},
		{"rollback-plan-required", in.rollbackPlan, &p.RollbackPlanRequired},
		{"evidence-required", in.evidence, &p.EvidenceRequired},
	} {
		if given(f.name) {
			*f.to = f.from
		}
	}
	for _, f := range []struct {
		name, from string
		to         *string
	}{
		{"failure-budget", in.failureBudget, &p.FailureBudget},
		{"steps", in.steps, &p.Steps},
		{"after", in.after, &p.After},
	} {
		if given(f.name) {
			*f.to = f.from
		}
	}
	if given("soak") {
		p.Soak = 0
		if in.soak != "" {
			d, err := rollout.ParseDuration(in.soak)
			if err != nil || d < 0 {
				return cli.Usagef("--soak %q is not a time like 24h or 7d", in.soak)
			}
			p.Soak = int64(d / time.Second)
		}
	}
	if err := p.Check(); err != nil {
		return &cli.UsageError{Err: err}
	}
	return nil
}

func newRingAdd(a *app) *cobra.Command {
	var in policyFlags
	var keys []string
	var threshold int
	cmd := &cobra.Command{
		Use:   "add RING",
		Short: "Make a ring, with its approvers and its policy; needs the signatures of targets",
		Long: `add makes a ring of machines. Its approvers hold the keys of --key, and as many as
--threshold must sign what goes to it. The policy says what is demanded of its
rollouts. It is signed by targets, so that the ring cannot loosen it by itself.
The new ring signs an empty plan, so its keys must be at hand too.`,
		Example: `  patchkeep ring add lab
  patchkeep ring add servers-eu --key anna.pub --key ben.pub --key cem.pub --threshold 2 \
      --after key-users --soak 7d --steps 5%@0h,5%@24h..100%@5d --change-required --author-may-not-approve`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringArrayVar(&keys, "key", nil, "public key (NAME.pub) of an approver; may be repeated (default: a new key)")
	cmd.Flags().IntVar(&threshold, "threshold", 1, "how many of them must sign")
	in.register(cmd)
	dryRun := dryRunFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := layout.CheckName(args[0]); err != nil {
			return &cli.UsageError{Err: err}
		}
		policy := rollout.Policy{Ring: args[0]}
		if err := in.apply(cmd, &policy); err != nil {
			return err
		}
		if threshold < 1 || threshold > max(len(keys), 1) {
			return cli.Usagef("--threshold %d: the ring has %d key(s): name further ones with --key", threshold, max(len(keys), 1))
		}
		cfg := repo.RoleConfig{Threshold: threshold}
		for _, file := range keys {
			pub, err := publicKey(file)
			if err != nil {
				return err
			}
			cfg.Keys = append(cfg.Keys, pub)
		}
		r, ring, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		role := layout.RingRole(args[0])
		switch {
		case len(keys) > 0:
		case *dryRun:
			note(cmd, "a key is made for ring %s unless one named %s is at hand", args[0], role)
			pub, _, err := ed25519.GenerateKey(nil)
			if err != nil {
				return err
			}
			cfg.Keys = []crypto.PublicKey{pub}
		default:
			if _, err := r.AddRing(cmd.Context(), repo.RoleConfig{Keys: []crypto.PublicKey{placeholder()}}, policy, true); err != nil {
				return err // before a key is made
			}
			info, err := findOrMake(cmd.Context(), ring, role, signing.Ed25519, len(a.keyRefs) > 0)
			if err != nil {
				return err
			}
			note(cmd, "ring %s is approved for by key %s (%s)", args[0], info.Fingerprint(), info.Source)
			cfg.Keys = []crypto.PublicKey{info.Public}
		}
		change, err := r.AddRing(cmd.Context(), cfg, policy, *dryRun)
		if err != nil {
			return err
		}
		return printChange(cmd, published{Change: *change}, "ring "+args[0]+", "+policy.String(),
			"patchkeep rollout start PRODUCT@VERSION --ring "+args[0])
	}
	return cmd
}

// placeholder is a public key that nobody has, for a dry run.
func placeholder() crypto.PublicKey { return ed25519.PublicKey(make([]byte, ed25519.PublicKeySize)) }

func newRingSet(a *app) *cobra.Command {
	var in policyFlags
	cmd := &cobra.Command{
		Use:   "set RING",
		Short: "Change a ring's policy; needs the signatures of targets",
		Long: `set changes what is demanded of a ring's rollouts. What is not named stays as it
is. An empty value takes a demand back, as does --FLAG=false.`,
		Example: `  patchkeep ring set key-users --after users --soak 48h
  patchkeep ring set servers --change-required --steps 10%@0h,50%@24h,100%@3d
  patchkeep ring set users --steps ''`,
		Args: cobra.ExactArgs(1),
	}
	in.register(cmd)
	dryRun := dryRunFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := layout.CheckName(args[0]); err != nil {
			return &cli.UsageError{Err: err}
		}
		if err := in.apply(cmd, &rollout.Policy{Ring: args[0]}); err != nil { // before the repository is asked
			return err
		}
		r, _, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		var after rollout.Policy
		change, err := r.SetPolicy(cmd.Context(), args[0], func(p *rollout.Policy) error {
			err := in.apply(cmd, p)
			after = *p
			return err
		}, *dryRun)
		if err != nil {
			return err
		}
		return printChange(cmd, published{Change: *change}, "ring "+args[0]+": "+after.String())
	}
	return cmd
}

func newRingList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List rings, who approves for them, and their policies",
		Example: `  patchkeep ring list`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, _, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			rings, err := r.Rings(cmd.Context())
			if err != nil {
				return err
			}
			return cli.Print(cmd, rings, func(w io.Writer) error {
				t := cli.Table(w)
				fmt.Fprintln(t, "NAME\tVERSION\tSIGNATURES NEEDED\tKEYS\tPOLICY")
				for _, r := range rings {
					fmt.Fprintf(t, "%s\t%d\t%d of %d\t%s\t%s\n", r.Name, r.Version, r.Threshold, len(r.KeyIDs), fingerprints(r.KeyIDs), r.Policy)
				}
				return t.Flush()
			})
		},
	}
}

func fingerprints(ids []string) string {
	var list []string
	for _, id := range ids {
		list = append(list, signing.Fingerprint(id))
	}
	return strings.Join(list, ", ")
}

func newRingShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "show RING",
		Short:   "Show all that is signed about a ring",
		Example: `  patchkeep ring show servers`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := layout.CheckName(args[0]); err != nil {
				return &cli.UsageError{Err: err}
			}
			r, _, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			rings, err := r.Rings(cmd.Context())
			if err != nil {
				return err
			}
			i := slices.IndexFunc(rings, func(r repo.Ring) bool { return r.Name == args[0] })
			if i < 0 {
				return fmt.Errorf("ring %s: %w", args[0], fs.ErrNotExist)
			}
			return cli.Print(cmd, rings[i], func(w io.Writer) error { return showRing(w, &rings[i]) })
		},
	}
}

func showRing(w io.Writer, r *repo.Ring) error {
	t := cli.Table(w)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, value)
		}
	}
	yes := func(b bool) string {
		if b {
			return "yes"
		}
		return "no"
	}
	p := &r.Policy
	row("ring", r.Name)
	row("plan", fmt.Sprintf("version %d, expires %s", r.Version, r.Expires.Format(time.RFC3339)))
	row("signatures needed", fmt.Sprintf("%d of %d", r.Threshold, len(r.KeyIDs)))
	row("keys", fingerprints(r.KeyIDs))
	row("plan signed by", fingerprints(r.Signers))
	row("change record required", yes(p.ChangeRequired))
	row("  with a rollback plan", yes(p.RollbackPlanRequired))
	row("  with test evidence", yes(p.EvidenceRequired))
	row("author may approve", yes(!p.AuthorMayNotApprove))
	row("failure budget", orDash(p.FailureBudget))
	row("default steps", orDash(p.Steps))
	row("after ring", orDash(p.After))
	row("soak time", rollout.FormatSeconds(p.Soak))
	return t.Flush()
}
