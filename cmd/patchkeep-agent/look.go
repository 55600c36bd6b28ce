package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/cmd/internal/cli"
)

func newCheck() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Ask the repository what is there for this machine",
		Long: `check refreshes the metadata and shows each patch in the ring's plan and what
apply would do with it. It installs nothing. If the metadata cannot be refreshed
it shows the last verified state, and exits with the reason.`,
		Example: "  patchkeep-agent check",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := open(cmd, nil)
			if err != nil {
				return err
			}
			rep, err := a.Check(cmd.Context())
			if rep == nil {
				return err
			}
			if perr := cli.Print(cmd, rep, func(w io.Writer) error { return printReport(w, rep) }); perr != nil {
				return perr
			}
			return err
		},
	}
	addRoot(cmd)
	addSettings(cmd, false)
	return cmd
}

func printReport(w io.Writer, rep *agent.Report) error {
	fmt.Fprintf(w, "Ring %s, machine %s\n", rep.Ring, rep.MachineID)
	if !rep.Fresh {
		fmt.Fprintf(w, "NOT FRESH, nothing will be installed. This is the last verified state%s.\n", verified(rep))
	}
	printDamaged(w, rep.Damaged)
	if rep.NoPlan {
		fmt.Fprintf(w, "No plan is published for ring %s.\n", rep.Ring)
	}
	if len(rep.Patches) > 0 {
		fmt.Fprintln(w)
		t := cli.Table(w)
		for _, it := range rep.Patches {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", it.State, it.ID(), it.Severity, it.Why)
		}
		if err := t.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	_, err := fmt.Fprintln(w, summary(rep))
	return err
}

func printDamaged(w io.Writer, files []agent.Damage) {
	for _, d := range files {
		fmt.Fprintf(w, "DAMAGED:  %s. %s\n", d.File, d.Why)
	}
}

func verified(rep *agent.Report) string {
	if rep.Verified.IsZero() {
		return ""
	}
	return ", signed " + cli.Ago(rep.Verified, time.Now())
}

// summary is one line on a report, and what to do next.
func summary(rep *agent.Report) string {
	count := map[agent.State]int{}
	for _, it := range rep.Patches {
		count[it.State]++
	}
	var parts []string
	for _, s := range slices.Sorted(maps.Keys(count)) {
		parts = append(parts, fmt.Sprintf("%d %s", count[s], s))
	}
	text := "1 patch in the plan"
	if n := len(rep.Patches); n != 1 {
		text = fmt.Sprintf("%d patches in the plan", n)
	}
	if len(parts) > 0 {
		text += ": " + strings.Join(parts, ", ")
	}
	text += "."
	switch {
	case count[agent.StateOffered] > 0:
		text += " Next: patchkeep-agent apply"
	case count[agent.StateRebootPending] > 0:
		text += " Next: reboot this machine"
	case count[agent.StateFailed] > 0:
		text += " Next: patchkeep-agent history, mend the cause, patchkeep-agent apply --retry"
	}
	return text
}

func newWhy() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "why PRODUCT[@VERSION]",
		Short: "Explain why a patch is installed here, or why not",
		Long: `why asks each question that decides on a patch, in order, up to the first no. It
answers from the last verified state when the repository cannot be reached.`,
		Example: "  patchkeep-agent why openssl\n  patchkeep-agent why openssl@3.5.2",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := open(cmd, nil)
			if err != nil {
				return err
			}
			x, err := a.Why(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return cli.Print(cmd, x, func(w io.Writer) error { return printWhy(w, x) })
		},
	}
	addRoot(cmd)
	addSettings(cmd, false)
	return cmd
}

func printWhy(w io.Writer, x *agent.Explanation) error {
	if x.Note != "" {
		fmt.Fprintf(w, "NOTE: %s\n\n", x.Note)
	}
	for i, it := range x.Items {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "%s: %s: %s\n", strings.TrimSpace(it.ID()), it.State, it.Why)
		t := cli.Table(w)
		for _, c := range it.Trace {
			mark := "yes"
			if !c.OK {
				mark = "NO"
			}
			fmt.Fprintf(t, "  %s\t%s\t%s\n", mark, c.Name, c.Why)
		}
		if err := t.Flush(); err != nil {
			return err
		}
		if !it.Until.IsZero() {
			fmt.Fprintf(w, "  It may be yes from %s on.\n", clock(it.Until))
		}
		if !it.Deadline.IsZero() {
			fmt.Fprintf(w, "  Its deadline is %s.\n", clock(it.Deadline))
		}
	}
	return nil
}

func newStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show the enrolment, the metadata and what is under way",
		Long:    "status asks nobody: it shows what this machine knows. It works while another agent is at work.",
		Example: "  patchkeep-agent status --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := open(cmd, nil)
			if err != nil {
				return err
			}
			st, err := a.Status()
			if err != nil {
				return err
			}
			return cli.Print(cmd, st, func(w io.Writer) error { return printStatus(w, st, time.Now()) })
		},
	}
	addSettings(cmd, false)
	return cmd
}

func printStatus(w io.Writer, st *agent.Status, now time.Time) error {
	c := st.Config
	fmt.Fprintf(w, "Ring:     %s\nMachine:  %s\nServers:  %s\nState:    %s\n", c.Ring, c.MachineID, strings.Join(c.Servers, ", "), st.Dir)
	for i, a := range st.Asks {
		if len(st.Asks) == 1 {
			break
		}
		label := "         "
		if i == 0 {
			label = "Asks:    "
		}
		fmt.Fprintf(w, "%s %s (%s)\n", label, a.URL, whyAsked(a))
	}
	if r, ok := st.Roles["root"]; ok {
		fmt.Fprintf(w, "Root:     version %d, %d of %s\n", r.Version, r.Threshold, plural(len(r.KeyIDs), "key"))
	}
	if st.LastCheck == nil {
		fmt.Fprintln(w, "Checked:  never. Next: patchkeep-agent check")
	} else {
		fmt.Fprintf(w, "Checked:  %s. %s\n", cli.Ago(st.LastCheck.Time, now), summary(st.LastCheck))
	}
	if !st.NextLook.IsZero() {
		fmt.Fprintf(w, "Next:     about %s, if 'patchkeep-agent run' is running\n", clock(st.NextLook))
	}
	if st.FreeSpace > 0 {
		fmt.Fprintf(w, "Disk:     %s free, %s kept for deltas\n", cli.Bytes(st.FreeSpace), cli.Bytes(st.Kept))
	}
	for _, line := range settingsWords(&st.Settings) {
		fmt.Fprintf(w, "Setting:  %s\n", line)
	}
	if r := st.Rebooting; r != nil {
		fmt.Fprintf(w, "REBOOT:   announced for %s: %s.\n", r.At.Local().Format("2006-01-02 15:04:05 MST"), r.Why)
	} else if st.Reboot {
		fmt.Fprintln(w, "REBOOT:   this machine must be rebooted to finish an installation.")
	}
	for _, r := range st.Pending {
		fmt.Fprintf(w, "Pending:  %s %s is %s since %s\n", r.Patch.Product, r.Patch.Version, r.Step.Words(), clock(r.Updated))
	}
	if st.LastCheck != nil {
		for _, it := range st.LastCheck.Patches {
			if !it.Deadline.IsZero() && (it.State == agent.StateOffered || it.State == agent.StateWaiting || it.State == agent.StateStale || it.State == agent.StateRebootPending) {
				fmt.Fprintf(w, "Deadline: %s is due by %s\n", it.ID(), clock(it.Deadline))
			}
		}
	}
	for _, text := range st.Warnings {
		fmt.Fprintf(w, "WARNING:  %s\n", text)
	}
	printDamaged(w, st.Damaged)
	t := cli.Table(w)
	if len(st.Roles) > 0 {
		fmt.Fprintln(t, "\nROLE\tVERSION\tEXPIRES")
	}
	for _, name := range slices.Sorted(maps.Keys(st.Roles)) {
		r := st.Roles[name]
		expires := cli.Ago(r.Expires, now)
		if !r.Expires.After(now) {
			expires = "EXPIRED " + expires
		}
		fmt.Fprintf(t, "%s\t%d\t%s\n", name, r.Version, expires)
	}
	if len(st.Installed) > 0 {
		fmt.Fprintln(t, "\nINSTALLED\tVERSION\t")
	}
	for _, name := range slices.Sorted(maps.Keys(st.Installed)) {
		fmt.Fprintf(t, "%s\t%s\t\n", name, st.Installed[name].Version)
	}
	return t.Flush()
}

// clock is a moment in this machine's own zone.
func clock(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05 MST") }

// whyAsked says why a server has its place.
func whyAsked(a agent.Asked) string {
	why := map[string]string{
		"network": "mirror of this network", "region": "mirror of this region", "open": "mirror for all", "origin": "origin",
		"failing": "failed of late", "elsewhere": "mirror of another network",
	}[a.Why]
	if a.Why == "open" && a.Enrolled {
		why = "enrolled"
	}
	if a.Latency > 0 {
		why += fmt.Sprintf(", %.1f ms", a.Latency)
	}
	return why
}

func newHistory() *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:     "history",
		Short:   "Show what came of patches on this machine",
		Example: "  patchkeep-agent history --limit 5",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := open(cmd, nil)
			if err != nil {
				return err
			}
			events, err := a.History()
			if err != nil {
				return err
			}
			if events == nil {
				events = []agent.Event{}
			}
			if limit > 0 && len(events) > limit {
				events = events[:limit]
			}
			return cli.Print(cmd, events, func(w io.Writer) error { return printHistory(w, events) })
		},
	}
	cmd.Flags().IntVarP(&limit, "limit", "n", 20, "show the newest so many; 0: all")
	return cmd
}

func printHistory(w io.Writer, events []agent.Event) error {
	if len(events) == 0 {
		_, err := fmt.Fprintln(w, "Nothing was installed yet.")
		return err
	}
	for _, e := range events {
		fmt.Fprintf(w, "%s  %s %s  %s\n", e.Time.Local().Format("2006-01-02 15:04:05"), e.Product, e.Version, done(e.Step, e.Previous, e.Why))
		if e.Step != agent.StepCommitted && e.Log != "" {
			fmt.Fprintf(w, "    log: %s\n", e.Log)
		}
	}
	return nil
}
