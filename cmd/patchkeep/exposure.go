package main

import (
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo"
)

func newExposure(a *app) *cobra.Command {
	var file string
	var asCSV, all bool
	cmd := &cobra.Command{
		Use:   "exposure --inventory FILE",
		Short: "List which rings still lack which patch, since when, and why",
		Long: `exposure compares an inventory with what is published: which machines of which ring
have an older version of a product than a published patch brings, how severe that
is, and where the ring stands with the patch. A pause, a halt and a patch that a
ring leaves as it is show the signed reason, or that none was given.

The inventory is a CSV file with a header, or a JSON list of objects: machine, ring,
product, version, and platform if that is known; one row for each product of a
machine. It needs no keys.`,
		Example: `  patchkeep exposure --inventory machines.csv
  patchkeep exposure --inventory machines.json --csv >exposure.csv
  patchkeep exposure --inventory machines.csv --json | jq '[.missing[] | select(.severity == "critical")]'`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&file, "inventory", "", "CSV or JSON file of machines and what is installed there; - is stdin")
	cmd.Flags().BoolVar(&asCSV, "csv", false, "print CSV")
	cmd.Flags().BoolVar(&all, "all", false, "name every machine, not only the first few")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if file == "" {
			return cli.Usagef("--inventory is missing: a CSV or JSON file with machine, ring, product and version")
		}
		rows, err := readInventory(cmd, file)
		if err != nil {
			return err
		}
		r, _, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		x, err := r.Exposure(cmd.Context(), rows)
		if err != nil {
			return err
		}
		if len(x.UnknownRings) > 0 {
			note(cmd, "the repository has no ring %s", strings.Join(x.UnknownRings, ", "))
		}
		if x.NoRing > 0 {
			note(cmd, "%d machine(s) of which no ring is said are left out", x.NoRing)
		}
		if asCSV {
			return writeExposure(cmd.OutOrStdout(), x)
		}
		return cli.Print(cmd, x, func(w io.Writer) error { return printExposure(w, x, all) })
	}
	return cmd
}

// days is how long something has been so, for people.
func days(since, now time.Time) string {
	if since.IsZero() || now.Before(since) {
		return "-"
	}
	return fmt.Sprintf("%s (%d days)", since.Format(time.DateOnly), int(now.Sub(since)/(24*time.Hour)))
}

func reasonOf(m *repo.Missing) string {
	if m.Covered != "" && m.Reason == repo.NoReason {
		return m.Covered + " is approved here, which is newer"
	}
	return plain(m.Reason)
}

func printExposure(w io.Writer, x *repo.Exposure, all bool) error {
	if len(x.Missing) == 0 {
		_, err := fmt.Fprintf(w, "None of %d machines lacks a published patch.\n", x.Machines)
		return err
	}
	t := cli.Table(w)
	fmt.Fprintln(t, "RING\tPATCH\tSEVERITY\tCVES\tLACKING\tRELEASED\tSTATE\tSINCE\tIN NOW\tREASON")
	for i := range x.Missing {
		m := &x.Missing[i]
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d of %d\t%s\t%s\t%s\t%s %%\t%s\n", m.Ring, m.Patch, orDash(string(m.Severity)), orDash(strings.Join(m.CVEs, " ")),
			m.Lacking, m.Of, days(m.Released, x.Moment), m.State, days(m.Since, x.Moment), m.Share, orDash(reasonOf(m)))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for i := range x.Missing {
		m := &x.Missing[i]
		fmt.Fprintf(w, "%s in %s: %s\n", m.Patch, m.Ring, names(m.IDs, all))
	}
	return nil
}

func writeExposure(w io.Writer, x *repo.Exposure) error {
	out := csv.NewWriter(w)
	_ = out.Write([]string{"ring", "patch", "severity", "cves", "lacking", "of", "released", "state", "since", "percent", "reason", "machines"}) // Flush says
	for i := range x.Missing {
		m := &x.Missing[i]
		row := []string{
			m.Ring, m.Patch, string(m.Severity), strings.Join(m.CVEs, " "), strconv.Itoa(m.Lacking), strconv.Itoa(m.Of),
			m.Released.Format(time.RFC3339), string(m.State), m.Since.Format(time.RFC3339), m.Share.String(), reasonOf(m), strings.Join(m.IDs, " "),
		}
		for i := range row {
			// A spreadsheet takes what begins like this for a formula.
			if strings.IndexAny(row[i], "=+-@\t") == 0 {
				row[i] = "'" + row[i]
			}
		}
		_ = out.Write(row) // Flush says
	}
	out.Flush()
	return out.Error()
}
