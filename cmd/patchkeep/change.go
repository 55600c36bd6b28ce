package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo"
)

// dryRunFlag adds --dry-run to a command that publishes.
func dryRunFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("dry-run", false, "show what would be published, and write nothing")
}

// published is the JSON result of every command that publishes.
type published struct {
	repo.Change
	Patch *repo.Published `json:"patch,omitempty"`
	Halts any             `json:"halts,omitempty"`
}

// printChange prints what a publish did, or would do: first in words, then the
// exact change to the metadata.
func printChange(cmd *cobra.Command, result published, words string, next ...string) error {
	return cli.Print(cmd, result, func(w io.Writer) error {
		if result.Pending != nil {
			return printWaiting(w, result.Pending, words)
		}
		verb := "Published"
		if result.DryRun {
			verb = "Would publish (nothing was written)"
		}
		fmt.Fprintf(w, "%s: %s\n", verb, words)
		for _, r := range result.Roles {
			for _, t := range r.Targets {
				size := ""
				if t.Action != "remove" {
					size = fmt.Sprintf("  %s  sha256 %.16s…", cli.Bytes(t.Length), t.SHA256)
				}
				fmt.Fprintf(w, "  %s %s%s\n", map[string]string{"add": "+", "change": "~", "remove": "-"}[t.Action], t.Path, size)
			}
		}
		fmt.Fprintf(w, "  metadata: %s\n", versions(result.Roles))
		if result.Attempts > 1 {
			fmt.Fprintf(w, "  %d other publishers were faster; this is on top of theirs\n", result.Attempts-1)
		}
		if !result.DryRun {
			for _, n := range next {
				fmt.Fprintf(w, "Next: %s\n", n)
			}
		}
		return nil
	})
}

func versions(roles []repo.RoleChange) string {
	var list []string
	for _, r := range roles {
		if r.From == 0 {
			list = append(list, fmt.Sprintf("%s (new)", r.Role))
		} else {
			list = append(list, fmt.Sprintf("%s %d → %d", r.Role, r.From, r.To))
		}
	}
	return strings.Join(list, ", ")
}
