package main

import (
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
	"github.com/patchkeep/patchkeep/signing"
)

func newRollout(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "rollout", Short: "Let patches go to rings of machines"}
	cmd.AddCommand(
		newRolloutStart(a), newRolloutPreview(a), newRolloutList(a), newRolloutPause(a), newRolloutResume(a), newRolloutPromote(a),
		newRolloutExpedite(a), newRolloutHold(a), newRolloutRemove(a), newRolloutMinimumSafe(a),
	)
	return cmd
}

func newRolloutStart(a *app) *cobra.Command {
	var ring, at, steps, expedite string
	var times schedule
	cmd := &cobra.Command{
		Use:   "start PRODUCT@VERSION --ring RING",
		Short: "Have a ring approve a version, by path and by content",
		Long: `start puts a version into the signed plan of a ring. The ring's machines then
install it: as --steps says, or the ring's policy, or else all of them at once.`,
		Example: `  patchkeep rollout start hello@1.0 --ring users
  patchkeep rollout start hello@1.0 --ring servers --at 2026-12-01T22:00:00Z --steps 10%@0h,50%@24h,100%@72h
  patchkeep rollout start hello@1.0 --ring users --window 'mon-fri 12:00-13:00' --missed-window install --deadline 7d`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&ring, "ring", "", "ring of machines")
	cmd.Flags().StringVar(&at, "at", "", "start time, RFC 3339 (default: now)")
	cmd.Flags().StringVar(&steps, "steps", "", "share of the machines over time, such as 10%@0h,50%@24h,100%@3d or 0%@0h..100%@72h (default: as the ring's policy says, or all at once)")
	cmd.Flags().StringVar(&expedite, "expedite", "", "an emergency, and why: everyone at once, past steps, windows and the ring before")
	times.add(cmd)
	dryRun := dryRunFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ro := repo.Rollout{Ring: ring, Expedite: expedite != "", ExpediteReason: expedite}
		var err error
		if ro.Product, ro.Version, err = patch.ParseRef(args[0]); err != nil {
			return &cli.UsageError{Err: err}
		}
		if err := layout.CheckName(ring); err != nil {
			return cli.Usagef("--ring: %v", err)
		}
		if at != "" {
			if ro.At, err = time.Parse(time.RFC3339, at); err != nil {
				return cli.Usagef("--at %q is not a time like 2026-12-01T22:00:00Z", at)
			}
		}
		words := "everyone in ring " + ring
		if steps != "" {
			if ro.Steps, err = rollout.ParseSteps(steps); err != nil {
				return &cli.UsageError{Err: err}
			}
			words = "ring " + ring + " in steps " + steps
		}
		when, err := times.set(&ro)
		if err != nil {
			return err
		}
		words += when
		r, _, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		if entries, _, _, err := r.Preview(cmd.Context(), ro); err == nil && steps == "" && len(entries) > 0 && len(entries[0].Steps) > 0 && !ro.Expedite {
			words = "ring " + ring + " in the steps of its policy, " + rollout.FormatSteps(entries[0].Steps) + when
		}
		change, err := r.StartRollout(cmd.Context(), ro, *dryRun)
		if err != nil {
			return err
		}
		when = "from now on"
		if !ro.At.IsZero() {
			when = "from " + ro.At.Format(time.RFC3339)
		}
		return printChange(cmd, published{Change: *change}, fmt.Sprintf("%s for %s, %s", args[0], words, when),
			"machines take it at their next poll; to stop it: patchkeep halt add "+args[0]+" --reason …")
	}
	return cmd
}

func newHalt(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "halt", Short: "Stop patches: anyone on call can"}
	cmd.AddCommand(newHaltAdd(a), newHaltLift(a), newHaltList(a))
	return cmd
}

func newHaltAdd(a *app) *cobra.Command {
	var reason, by string
	cmd := &cobra.Command{
		Use:   "add PRODUCT@VERSION|PRODUCT|'*' --reason TEXT",
		Short: "Stop a version, a product, or everything, on all machines",
		Long: `add stops patches. One halt key is enough. Machines obey at their next poll,
before and between installations; what is installed stays. To go on needs the
signatures of each ring: see halt lift.`,
		Example: `  patchkeep halt add hello@1.1 --reason "crashes on start, ticket 4711"
  patchkeep halt add '*' --reason "network trouble"`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for everyone to read")
	cmd.Flags().StringVar(&by, "by", "", "who (default: this user on this host)")
	dryRun := dryRunFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		scope, err := repo.ParseScope(args[0])
		if err != nil {
			return &cli.UsageError{Err: err}
		}
		if strings.TrimSpace(reason) == "" {
			return cli.Usagef("--reason is missing: whoever finds its patch stopped wants to know why")
		}
		if by == "" {
			by = whoAmI()
		}
		r, _, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		halts, change, err := r.AddHalt(cmd.Context(), scope, reason, by, *dryRun)
		if err != nil {
			return err
		}
		var next []string
		for _, h := range halts {
			next = append(next, "to go on later: patchkeep halt lift "+h.ID)
		}
		return printChange(cmd, published{Change: *change, Halts: halts}, args[0]+" is stopped: "+reason, next...)
	}
	return cmd
}

// whoAmI names this user for a record that people read. It proves nothing; the
// signature does.
func whoAmI() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}

func newHaltLift(a *app) *cobra.Command {
	var rings []string
	cmd := &cobra.Command{
		Use:   "lift ID…",
		Short: "Let rings go on in spite of a halt; needs each ring's signatures",
		Example: `  patchkeep halt lift h20261123-084512-3fa2b01c
  patchkeep halt lift h20261123-084512-3fa2b01c --ring users`,
		Args: cobra.MinimumNArgs(1),
	}
	cmd.Flags().StringSliceVar(&rings, "ring", nil, "ring that goes on; may be repeated (default: all)")
	dryRun := dryRunFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for _, n := range slices.Concat(args, rings) {
			if err := layout.CheckName(n); err != nil {
				return &cli.UsageError{Err: err}
			}
		}
		r, _, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		change, err := r.LiftHalts(cmd.Context(), args, rings, *dryRun)
		if err != nil {
			return err
		}
		who := "all rings"
		if len(rings) > 0 {
			who = "ring " + strings.Join(rings, ", ")
		}
		return printChange(cmd, published{Change: *change}, fmt.Sprintf("%s: lifted for %s", strings.Join(args, ", "), who))
	}
	return cmd
}

func newHaltList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List halts, who made them and why",
		Example: `  patchkeep halt list`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, _, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			list, err := r.Halts(cmd.Context())
			if err != nil {
				return err
			}
			return cli.Print(cmd, list, func(w io.Writer) error {
				if len(list) == 0 {
					_, err := fmt.Fprintln(w, "Nothing is stopped.")
					return err
				}
				t := cli.Table(w)
				fmt.Fprintln(t, "ID\tSTOPS\tSINCE\tBY\tREASON\tLIFTED FOR")
				for _, h := range list {
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", h.ID, stops(h), h.Since.Format(time.RFC3339), h.By, h.Reason, orDash(strings.Join(h.Lifted, ",")))
				}
				return t.Flush()
			})
		},
	}
}

func stops(h repo.HaltStatus) string {
	switch {
	case h.All:
		return "everything"
	case h.Product != "":
		return "product " + h.Product
	case len(h.Patches) > 0:
		return strings.Join(h.Patches, ",")
	}
	return fmt.Sprintf("sha256 %.16s…", h.SHA256)
}

func newProduct(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "product", Short: "Make and list products"}
	cmd.AddCommand(newProductAdd(a), newRoleList(a, "list", "List products, and who signs for them", layout.ProductOfRole))
	return cmd
}

func newProductAdd(a *app) *cobra.Command {
	var keys []string
	var threshold int
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Make a product; needs the signatures of targets",
		Example: `  patchkeep product add hello
  patchkeep product add kernel --key anna.pub --key ben.pub --threshold 2`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringArrayVar(&keys, "key", nil, "public key (NAME.pub) of a release engineer; may be repeated (default: a new key)")
	cmd.Flags().IntVar(&threshold, "threshold", 1, "how many of them must sign")
	dryRun := dryRunFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := layout.CheckName(args[0]); err != nil {
			return &cli.UsageError{Err: err}
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
		if len(keys) == 0 {
			in := patchAdd{app: a}
			if cfg, err = in.newProduct(cmd.Context(), cmd, ring, *dryRun)(args[0]); err != nil {
				return err
			}
		}
		change, err := r.AddProduct(cmd.Context(), args[0], cfg, *dryRun)
		if err != nil {
			return err
		}
		return printChange(cmd, published{Change: *change}, "product "+args[0])
	}
	return cmd
}

// newRoleList lists the roles of one kind.
func newRoleList(a *app, use, short string, name func(role string) (string, bool)) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, _, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			all, err := r.RoleInfos(cmd.Context())
			if err != nil {
				return err
			}
			list := []repo.RoleInfo{}
			for _, info := range all {
				if n, ok := name(info.Name); ok {
					info.Name = n
					list = append(list, info)
				}
			}
			return cli.Print(cmd, list, func(w io.Writer) error {
				t := cli.Table(w)
				fmt.Fprintln(t, "NAME\tVERSION\tSIGNATURES NEEDED\tKEYS")
				for _, r := range list {
					var ids []string
					for _, id := range r.KeyIDs {
						ids = append(ids, signing.Fingerprint(id))
					}
					fmt.Fprintf(t, "%s\t%d\t%d of %d\t%s\n", r.Name, r.Version, r.Threshold, len(r.KeyIDs), strings.Join(ids, ", "))
				}
				return t.Flush()
			})
		},
	}
}
