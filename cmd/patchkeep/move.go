package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// move is a command that changes a rollout of PRODUCT@VERSION in a ring.
type move struct {
	use, short, long, example string
	needsReason               bool
	act                       func(ctx context.Context, r *repo.Repository, product, version, ring, reason string, dryRun bool) (*repo.Change, error)
	words                     func(ref, ring, reason string) string
	next                      func(ref, ring string) []string
}

func (m move) command(a *app) *cobra.Command {
	var ring, reason string
	cmd := &cobra.Command{Use: m.use, Short: m.short, Long: m.long, Example: m.example, Args: cobra.ExactArgs(1)}
	cmd.Flags().StringVar(&ring, "ring", "", "ring of machines")
	if m.needsReason {
		cmd.Flags().StringVar(&reason, "reason", "", "why, for everyone to read; it is signed")
	}
	dryRun := dryRunFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		product, version, err := patch.ParseRef(args[0])
		if err != nil {
			return &cli.UsageError{Err: err}
		}
		if err := layout.CheckName(ring); err != nil {
			return cli.Usagef("--ring: %v", err)
		}
		if m.needsReason && strings.TrimSpace(reason) == "" {
			return cli.Usagef("--reason is missing: whoever waits for the patch, or gets it, wants to know why")
		}
		r, _, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		change, err := m.act(cmd.Context(), r, product, version, ring, reason, *dryRun)
		if err != nil {
			return err
		}
		var next []string
		if m.next != nil {
			next = m.next(args[0], ring)
		}
		return printChange(cmd, published{Change: *change}, m.words(args[0], ring, reason), next...)
	}
	return cmd
}

func newRolloutPause(a *app) *cobra.Command {
	return move{
		use: "pause PRODUCT@VERSION --ring RING --reason TEXT", short: "Let no further machine of a ring begin; needs the ring's signatures",
		long: `pause stops a rollout where it is. What is installed stays, and no further machine
begins. To stop a bad patch at once and everywhere, halt add is quicker: any one
halt key is enough.`,
		example:     `  patchkeep rollout pause hello@1.1 --ring users --reason "help desk is swamped, ticket 4711"`,
		needsReason: true,
		act: func(ctx context.Context, r *repo.Repository, product, version, ring, reason string, dryRun bool) (*repo.Change, error) {
			return r.Pause(ctx, product, version, ring, reason, dryRun)
		},
		words: func(ref, ring, reason string) string {
			return fmt.Sprintf("%s is paused in ring %s: %s", ref, ring, reason)
		},
		next: func(ref, ring string) []string {
			return []string{"to go on later: patchkeep rollout resume " + ref + " --ring " + ring}
		},
	}.command(a)
}

func newRolloutResume(a *app) *cobra.Command {
	var catchUp bool
	cmd := move{
		use: "resume PRODUCT@VERSION --ring RING", short: "Let a paused rollout go on; needs the ring's signatures",
		long: `resume lets a paused rollout go on where it stood: the steps that were to come are
put off by the length of the pause, so that its end lets nobody in by itself. With
--catch-up they keep their first times, and all machines whose time has passed
meanwhile are in at once.`,
		example: `  patchkeep rollout resume hello@1.1 --ring users
  patchkeep rollout resume hello@1.1 --ring users --catch-up --dry-run`,
		act: func(ctx context.Context, r *repo.Repository, product, version, ring, _ string, dryRun bool) (*repo.Change, error) {
			return r.Resume(ctx, product, version, ring, catchUp, dryRun)
		},
		words: func(ref, ring, _ string) string { return fmt.Sprintf("%s goes on in ring %s", ref, ring) },
		next: func(ref, ring string) []string {
			return []string{"patchkeep rollout preview " + ref + " --ring " + ring + " --machines N"}
		},
	}.command(a)
	cmd.Flags().BoolVar(&catchUp, "catch-up", false, "keep the first times of the steps, whatever has passed meanwhile")
	return cmd
}

func newRolloutExpedite(a *app) *cobra.Command {
	return move{
		use: "expedite PRODUCT@VERSION --ring RING --reason TEXT", short: "Send a started rollout out to a whole ring at once; needs the ring's signatures",
		long: `expedite is for emergencies: everyone in the ring is in at once, and neither steps,
nor maintenance windows, nor a start that is still to come hold the patch back any
more. A halt still does.`,
		example:     `  patchkeep rollout expedite hello@1.2 --ring users --reason "CVE-2026-12345 is being exploited"`,
		needsReason: true,
		act: func(ctx context.Context, r *repo.Repository, product, version, ring, reason string, dryRun bool) (*repo.Change, error) {
			return r.Expedite(ctx, product, version, ring, reason, dryRun)
		},
		words: func(ref, ring, reason string) string {
			return fmt.Sprintf("%s goes out to everyone in ring %s at once: %s", ref, ring, reason)
		},
		next: func(ref, _ string) []string {
			return []string{"to stop it: patchkeep halt add " + ref + " --reason …"}
		},
	}.command(a)
}

func newRolloutHold(a *app) *cobra.Command {
	return move{
		use: "hold PRODUCT@VERSION --ring RING --reason TEXT", short: "Say that a ring leaves a patch as it is for now, and why; needs the ring's signatures",
		long: `hold writes into the ring's signed plan that a version is not taken for now, and why,
so that exposure shows a decision and not an oversight. rollout start takes it
back.`,
		example:     `  patchkeep rollout hold hello@1.2 --ring servers --reason "frozen until the audit is over, 12 December"`,
		needsReason: true,
		act: func(ctx context.Context, r *repo.Repository, product, version, ring, reason string, dryRun bool) (*repo.Change, error) {
			return r.Hold(ctx, product, version, ring, reason, dryRun)
		},
		words: func(ref, ring, reason string) string { return fmt.Sprintf("ring %s leaves %s: %s", ring, ref, reason) },
	}.command(a)
}

func newRolloutRemove(a *app) *cobra.Command {
	return move{
		use: "remove PRODUCT@VERSION --ring RING", short: "Take a version out of a ring's plan; needs the ring's signatures",
		long: `remove takes back a ring's approval. No further machine installs the version; where
it is installed it stays, unless the ring asks to go back with rollout minimum-safe.`,
		example: `  patchkeep rollout remove hello@1.1 --ring users`,
		act: func(ctx context.Context, r *repo.Repository, product, version, ring, _ string, dryRun bool) (*repo.Change, error) {
			return r.RemoveRollout(ctx, product, version, ring, dryRun)
		},
		words: func(ref, ring, _ string) string {
			return fmt.Sprintf("ring %s does not approve %s any more", ring, ref)
		},
	}.command(a)
}

func newRolloutMinimumSafe(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "minimum-safe PRODUCT[@VERSION] --ring RING",
		Short: "Say what a product must not fall below in a ring: the only way back; needs the ring's signatures",
		Long: `minimum-safe names the version that a product must not fall below on a ring's
machines. Nothing older is installed there. It is also the only way back: machines
with a newer version that the plan does not hold go back to the newest approved
one that is not below it. Without @VERSION the demand is taken back.`,
		Example: `  patchkeep rollout remove hello@1.1 --ring users
  patchkeep rollout minimum-safe hello@1.0 --ring users
  patchkeep rollout minimum-safe hello --ring users`,
		Args: cobra.ExactArgs(1),
	}
	var ring string
	cmd.Flags().StringVar(&ring, "ring", "", "ring of machines")
	dryRun := dryRunFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		product, version := args[0], ""
		if strings.Contains(args[0], "@") {
			var err error
			if product, version, err = patch.ParseRef(args[0]); err != nil {
				return &cli.UsageError{Err: err}
			}
		}
		for _, n := range []string{product, ring} {
			if err := layout.CheckName(n); err != nil {
				return &cli.UsageError{Err: err}
			}
		}
		r, _, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		change, err := r.SetMinimumSafe(cmd.Context(), product, version, ring, *dryRun)
		if err != nil {
			return err
		}
		words := fmt.Sprintf("%s does not fall below %s in ring %s", product, version, ring)
		if version == "" {
			words = fmt.Sprintf("%s has no minimum-safe version in ring %s any more", product, ring)
		}
		return printChange(cmd, published{Change: *change}, words)
	}
	return cmd
}

func newRolloutPromote(a *app) *cobra.Command {
	var from, to, at, steps string
	cmd := &cobra.Command{
		Use:   "promote PRODUCT@VERSION --from RING --to RING",
		Short: "Carry a patch on from one ring to the next; needs the next ring's signatures",
		Long: `promote starts a rollout in one ring of what another has had: the same content, out
to everyone there for as long as the next ring's policy asks (its soak time), and
neither paused nor halted. Steps are those of the next ring's policy, unless
--steps says otherwise.`,
		Example: `  patchkeep rollout promote hello@1.1 --from users --to key-users
  patchkeep rollout promote hello@1.1 --from key-users --to servers --at 2026-12-05T20:00:00Z --steps 10%@0h..100%@3d --dry-run`,
		Args: cobra.ExactArgs(1),
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "ring that has had it")
	f.StringVar(&to, "to", "", "ring that takes it over")
	f.StringVar(&at, "at", "", "start time, RFC 3339 (default: now)")
	f.StringVar(&steps, "steps", "", "share of the machines over time (default: as the ring's policy says)")
	dryRun := dryRunFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ro, err := parseRollout(args[0], to, at, steps)
		if err != nil {
			return err
		}
		if err := layout.CheckName(from); err != nil {
			return cli.Usagef("--from: %v", err)
		}
		ro.From = from
		r, _, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		entries, _, _, err := r.Preview(cmd.Context(), *ro)
		if err != nil {
			return err
		}
		change, err := r.StartRollout(cmd.Context(), *ro, *dryRun)
		if err != nil {
			return err
		}
		return printChange(cmd, published{Change: *change},
			fmt.Sprintf("%s goes on from ring %s to ring %s, %s", args[0], from, to, startWords(entries)),
			"to stop it: patchkeep halt add "+args[0]+" --reason …")
	}
	return cmd
}

// parseRollout reads what start, preview and promote have in common.
func parseRollout(ref, ring, at, steps string) (*repo.Rollout, error) {
	ro := &repo.Rollout{Ring: ring}
	var err error
	if ro.Product, ro.Version, err = patch.ParseRef(ref); err != nil {
		return nil, &cli.UsageError{Err: err}
	}
	if err := layout.CheckName(ring); err != nil {
		return nil, cli.Usagef("ring: %v", err)
	}
	if at != "" {
		if ro.At, err = time.Parse(time.RFC3339, at); err != nil {
			return nil, cli.Usagef("--at %q is not a time like 2026-12-01T22:00:00Z", at)
		}
	}
	if steps != "" {
		if ro.Steps, err = rollout.ParseSteps(steps); err != nil {
			return nil, &cli.UsageError{Err: err}
		}
	}
	return ro, nil
}

func startWords(entries []rollout.Entry) string {
	if len(entries) == 0 {
		return ""
	}
	e := &entries[0]
	who := rollout.FormatSteps(e.Steps)
	if e.Expedite {
		who = "everyone at once"
	}
	return who + ", from " + e.NotBefore.Format(time.RFC3339)
}
