package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/inventory"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// preview is the JSON result of rollout preview.
type preview struct {
	Ring     string        `json:"ring"`
	Product  string        `json:"product"`
	Version  string        `json:"version"`
	Approved bool          `json:"approved"`           // it stands in the plan
	Obstacle string        `json:"obstacle,omitempty"` // why it could not be started now, or is halted
	Files    []previewFile `json:"files"`

	changed bool // times other than those of the plan
}

type previewFile struct {
	Patch    string          `json:"patch"` // id
	Path     string          `json:"path"`
	From     time.Time       `json:"from"`
	Steps    string          `json:"steps"`
	Paused   bool            `json:"paused,omitempty"`
	Windows  bool            `json:"windows,omitempty"` // within which machines install it
	Machines int             `json:"machines"`          // in all
	Exact    bool            `json:"exact"`             // of an inventory; else about
	Points   []rollout.Point `json:"points"`
}

func newRolloutPreview(a *app) *cobra.Command {
	var ring, at, steps, file string
	var machines int
	var all bool
	cmd := &cobra.Command{
		Use:   "preview PRODUCT@VERSION --ring RING",
		Short: "Show who gets a patch when, before anything is signed",
		Long: `preview shows how many machines, and with an inventory which, are let in at each
moment: of a rollout as it stands in the plan, or as rollout start would make it. It
signs nothing and needs no keys.

An inventory is a CSV file with a header, or a JSON list of objects, with at least
the column machine; ring and platform are heeded if they are there. Each machine
decides by its id alone, so what is shown is exactly what it will do, unless its own
maintenance windows or what is installed on it say otherwise.`,
		Example: `  patchkeep rollout preview hello@1.1 --ring users --machines 12000 --steps 1%@0h,1%@24h..100%@5d
  patchkeep rollout preview hello@1.1 --ring users --inventory machines.csv
  patchkeep rollout preview hello@1.1 --ring users --inventory machines.csv --json | jq -r '.files[0].points[0].new_ids[]'`,
		Args: cobra.ExactArgs(1),
	}
	f := cmd.Flags()
	f.StringVar(&ring, "ring", "", "ring of machines")
	f.StringVar(&at, "at", "", "start time, RFC 3339 (default: that of the plan, or now)")
	f.StringVar(&steps, "steps", "", "share of the machines over time (default: those of the plan, or of the ring's policy)")
	f.StringVar(&file, "inventory", "", "CSV or JSON file of machines; - is stdin")
	f.IntVar(&machines, "machines", 100, "how many machines the ring has, if there is no inventory")
	f.BoolVar(&all, "all", false, "name every machine, not only the first few")
	cmd.MarkFlagsMutuallyExclusive("inventory", "machines")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ro, err := parseRollout(args[0], ring, at, steps)
		if err != nil {
			return err
		}
		if machines < 0 || machines > 1_000_000_000 {
			return cli.Usagef("--machines %d is not a number of machines", machines)
		}
		var rows []inventory.Row
		if file != "" {
			if rows, err = readInventory(cmd, file); err != nil {
				return err
			}
		}
		r, _, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		entries, approved, obstacle, err := r.Preview(cmd.Context(), *ro)
		if err != nil {
			return err
		}
		p := preview{Ring: ring, Product: ro.Product, Version: ro.Version, Approved: approved, Files: []previewFile{}, changed: at != "" || steps != ""}
		if obstacle != nil {
			p.Obstacle = obstacle.Error()
		}
		for i := range entries {
			p.Files = append(p.Files, forecast(&entries[i], ring, rows, file != "", machines))
		}
		return cli.Print(cmd, p, func(w io.Writer) error { return p.print(w, all) })
	}
	return cmd
}

func readInventory(cmd *cobra.Command, file string) ([]inventory.Row, error) {
	in := cmd.InOrStdin()
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	rows, err := inventory.Read(in)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return rows, nil
}

// forecast is about the machines of the ring that the file is for.
func forecast(e *rollout.Entry, ring string, rows []inventory.Row, exact bool, machines int) previewFile {
	product, version, platform, _, _ := layout.SplitPatchPath(e.Patch)
	pf := previewFile{
		Patch: patch.MakeID(product, version, platform), Path: e.Patch, From: e.NotBefore, Steps: rollout.FormatSteps(e.Steps),
		Paused: e.Paused, Windows: len(e.Windows) > 0 && !e.Expedite, Machines: machines, Exact: exact,
	}
	if e.Expedite {
		pf.Steps = "everyone"
	}
	if !exact {
		pf.Points = rollout.Forecast(e, nil, machines)
		return pf
	}
	var mine []inventory.Row
	for i := range rows {
		if repo.Fits(platform, rows[i].Platform) {
			mine = append(mine, rows[i])
		}
	}
	ids := inventory.Machines(mine, ring)
	pf.Machines = len(ids)
	pf.Points = rollout.Forecast(e, ids, 0)
	return pf
}

const barWidth = 40

func (p *preview) print(w io.Writer, all bool) error {
	switch {
	case p.Obstacle != "" && p.Approved:
		fmt.Fprintf(w, "Nobody gets it now: %s\n\n", plain(p.Obstacle))
	case p.Obstacle != "":
		fmt.Fprintf(w, "It could not be started now: %s\n\n", plain(p.Obstacle))
	}
	for i := range p.Files {
		f := &p.Files[i]
		if i > 0 {
			fmt.Fprintln(w)
		}
		state := "would go"
		if p.Approved && !p.changed {
			state = "goes"
		}
		fmt.Fprintf(w, "%s %s to ring %s, %s, from %s\n", f.Patch, state, p.Ring, f.Steps, f.From.Format(time.RFC3339))
		if f.Paused {
			fmt.Fprintln(w, "It is paused: nobody comes in until it is resumed.")
		}
		if f.Windows {
			fmt.Fprintln(w, "Machines install it within their maintenance windows from then on.")
		}
		about := "about "
		if f.Exact {
			about = ""
		}
		t := cli.Table(w)
		fmt.Fprintln(t, "FROM\tAFTER\tSHARE\tMACHINES\tNEW\t")
		for _, pt := range f.Points {
			bar := strings.Repeat("█", int(int64(pt.Percent)*barWidth/int64(rollout.All)))
			if bar == "" && pt.Percent > 0 {
				bar = "▏"
			}
			fmt.Fprintf(t, "%s\t%s\t%s %%\t%s%d of %d\t+%d\t%s\n", pt.At.Format(time.RFC3339), rollout.FormatSeconds(pt.After), pt.Percent, about, pt.Machines, f.Machines, pt.New, bar)
		}
		if err := t.Flush(); err != nil {
			return err
		}
		for _, pt := range f.Points {
			if len(pt.IDs) > 0 {
				fmt.Fprintf(w, "from %s: %s\n", pt.At.Format(time.RFC3339), names(pt.IDs, all))
			}
		}
	}
	return nil
}

// names lists machines, the first few only unless all are wanted.
func names(ids []string, all bool) string {
	const few = 8
	if all || len(ids) <= few {
		return strings.Join(ids, ", ")
	}
	return fmt.Sprintf("%s and %d more (--all names them)", strings.Join(ids[:few], ", "), len(ids)-few)
}
