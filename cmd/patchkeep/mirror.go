package main

import (
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo/mirrors"
)

func newMirror(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "mirror", Short: "Tell machines which mirrors there are"}
	cmd.AddCommand(newMirrorAdd(a), newMirrorList(a), newMirrorRemove(a))
	return cmd
}

func newMirrorAdd(a *app) *cobra.Command {
	var m mirrors.Mirror
	var networks []string
	cmd := &cobra.Command{
		Use:   "add URL",
		Short: "Put a mirror into the signed list",
		Long: `add puts a mirror into the list that machines read. A machine takes the mirrors
whose --network holds one of its addresses first, then those of its region, then
those without a network, and the origin last. Mirrors of other networks it leaves
alone. Among equals it takes the one that answers fastest, or several at once.

The list only says where to ask. What comes from there is verified as always.`,
		Example: `  patchkeep mirror add https://updates.example.org --origin
  patchkeep mirror add http://mirror.berlin.example.org --network 10.20.0.0/16 --network 2001:db8:20::/48
  patchkeep mirror add https://eu.example.org --region eu --weight 3`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringSliceVar(&networks, "network", nil, "network of the machines that it is for, such as 10.20.0.0/16; may be repeated (default: for all)")
	cmd.Flags().StringVar(&m.Region, "region", "", "region of the machines that take it before others")
	cmd.Flags().IntVar(&m.Weight, "weight", 1, "its share beside others that are as near")
	cmd.Flags().BoolVar(&m.Origin, "origin", false, "it is an origin: asked when no mirror answers")
	dryRun := dryRunFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		if m.URL, err = mirrors.CanonicalURL(args[0]); err != nil {
			return &cli.UsageError{Err: err}
		}
		for _, n := range networks {
			p, err := netip.ParsePrefix(n)
			if err != nil {
				return cli.Usagef("--network %q is not a network like 10.20.0.0/16 or 2001:db8::/32", n)
			}
			m.Networks = append(m.Networks, p)
		}
		if m.Weight < 1 {
			return cli.Usagef("--weight %d: it must be 1 or more", m.Weight)
		}
		if m.Weight == 1 {
			m.Weight = 0 // as the format has it
		}
		if err := m.Check(); err != nil {
			return &cli.UsageError{Err: err}
		}
		r, _, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		change, err := r.AddMirror(cmd.Context(), m, *dryRun)
		if err != nil {
			return err
		}
		return printChange(cmd, published{Change: *change}, "mirror "+m.URL+" "+forWhom(m),
			"machines use it after their next poll")
	}
	return cmd
}

func forWhom(m mirrors.Mirror) string {
	var parts []string
	if len(m.Networks) > 0 {
		parts = append(parts, "for "+networksOf(m))
	}
	if m.Region != "" {
		parts = append(parts, "for region "+m.Region)
	}
	if m.Origin {
		parts = append(parts, "as an origin, asked last")
	}
	if len(parts) == 0 {
		return "for all machines"
	}
	return strings.Join(parts, ", ")
}

func networksOf(m mirrors.Mirror) string {
	var s []string
	for _, n := range m.Networks {
		s = append(s, n.String())
	}
	return strings.Join(s, ", ")
}

func newMirrorRemove(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove URL",
		Short: "Take a mirror out of the signed list",
		Long: `remove takes a mirror out of the list. Machines that were enrolled with it go on
asking it after all others.`,
		Example: `  patchkeep mirror remove http://mirror.berlin.example.org`,
		Args:    cobra.ExactArgs(1),
	}
	dryRun := dryRunFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		u, err := mirrors.CanonicalURL(args[0])
		if err != nil {
			return &cli.UsageError{Err: err}
		}
		r, _, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		change, err := r.RemoveMirror(cmd.Context(), u, *dryRun)
		if err != nil {
			return err
		}
		return printChange(cmd, published{Change: *change}, "mirror "+u+" is no longer listed",
			"stop it when machines have polled; those that cannot reach it ask the next")
	}
	return cmd
}

func newMirrorList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the mirrors that machines know of",
		Example: `  patchkeep mirror list`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, _, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			list, err := r.Mirrors(cmd.Context())
			if err != nil {
				return err
			}
			return cli.Print(cmd, list, func(w io.Writer) error { return printMirrors(w, list) })
		},
	}
}

func printMirrors(w io.Writer, list []mirrors.Mirror) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "No mirror is listed: machines ask the servers that they were enrolled with.")
		return err
	}
	t := cli.Table(w)
	fmt.Fprintln(t, "URL\tNETWORKS\tREGION\tWEIGHT\tORIGIN")
	for _, m := range list {
		networks, origin := "all", "-"
		if len(m.Networks) > 0 {
			networks = networksOf(m)
		}
		if m.Origin {
			origin = "origin"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\n", m.URL, networks, orDash(m.Region), max(m.Weight, 1), origin)
	}
	return t.Flush()
}
