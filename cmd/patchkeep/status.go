package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

func newRolloutList(a *app) *cobra.Command {
	var ring string
	cmd := &cobra.Command{
		Use:     "list [PRODUCT[@VERSION]]",
		Aliases: []string{"status"},
		Short:   "List what each ring approves, how far it is, and who approved it",
		Example: `  patchkeep rollout list
  patchkeep rollout status hello@1.1 --ring users`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.Flags().StringVar(&ring, "ring", "", "of this ring alone")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, _, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		rings, err := r.Status(cmd.Context())
		if err != nil {
			return err
		}
		if ring != "" {
			rings = slices.DeleteFunc(rings, func(s repo.RingStatus) bool { return s.Ring != ring })
			if len(rings) == 0 {
				return fmt.Errorf("%w %s", repo.ErrUnknownRing, ring)
			}
		}
		product, version, _ := strings.Cut(strings.Join(args, ""), "@")
		if product != "" {
			for i := range rings {
				rings[i].Rollouts = slices.DeleteFunc(rings[i].Rollouts, func(s repo.RolloutStatus) bool {
					return s.Product != product || version != "" && s.Version != version
				})
			}
		}
		return cli.Print(cmd, rings, func(w io.Writer) error { return printStatus(w, rings, product != "") })
	}
	return cmd
}

func printStatus(w io.Writer, rings []repo.RingStatus, filtered bool) error {
	t := cli.Table(w)
	fmt.Fprintln(t, "RING\tPATCH\tFROM\tSTEPS\tWHEN\tSTATE\tIN NOW\tNEXT\tLEFT\tAPPROVED BY")
	for _, r := range rings {
		if len(r.Rollouts) == 0 && !filtered {
			fmt.Fprintf(t, "%s\t(nothing approved)\t\t\t\t\t\t\t\t\n", r.Ring)
		}
		for _, s := range r.Rollouts {
			e := r.Entry(s.Path)
			steps := rollout.FormatSteps(e.Steps)
			if e.Expedite {
				steps = "everyone"
			}
			state := map[repo.RolloutState]string{repo.NotBegun: "not begun", repo.Running: "running"}[s.State]
			if state == "" {
				state = string(s.State)
			}
			if s.Reason != "" {
				state += ": " + plain(s.Reason)
			}
			next, left := "-", "-"
			if s.Next != nil {
				at := "at"
				if s.Next.Ramp {
					at = "by"
				}
				next = fmt.Sprintf("%s %% %s %s", s.Next.Percent, at, s.Next.At.Format(time.RFC3339))
			}
			if s.Left > 0 && (s.State == repo.Running || s.State == repo.NotBegun) {
				left = (time.Duration(s.Left) * time.Second).Round(time.Minute).String()
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s %%\t%s\t%s\t%s\n", r.Ring, s.Patch, e.NotBefore.Format(time.RFC3339), steps, whenWords(e), state, s.Share, next, left,
				fmt.Sprintf("%s (%d needed)", fingerprints(r.ApprovedBy), r.Threshold))
		}
		if !filtered {
			for _, h := range r.Holds {
				product, version, platform, _, _ := layout.SplitPatchPath(h.Patch)
				fmt.Fprintf(t, "%s\t%s\t%s\t-\t-\theld: %s\t0 %%\t-\t-\t%s\n", r.Ring, patch.MakeID(product, version, platform), h.Since.Format(time.RFC3339), plain(h.Reason), fingerprints(r.ApprovedBy))
			}
		}
	}
	return t.Flush()
}

// plain makes a signed text fit for one line of a terminal.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return ' '
		}
		return r
	}, s)
}
