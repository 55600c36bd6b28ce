package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/cmd/internal/cli"
)

func newApply() *cobra.Command {
	var o agent.ApplyOptions
	cmd := &cobra.Command{
		Use:   "apply [PRODUCT[@VERSION]]",
		Short: "Install what is offered to this machine",
		Long: `apply checks, and downloads, verifies and installs each offered patch, what others
require before those, then checks anew. What an earlier run began and could not
end is finished first. A patch that fails holds up only those that require it;
after 3 failures it waits for --retry.

An interrupt stops downloads at once; an installer that runs is waited for.`,
		Example: "  patchkeep-agent apply --dry-run\n  patchkeep-agent apply",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.Only = args[0]
			}
			progress, stop := bars(cmd)
			a, err := open(cmd, progress)
			if err != nil {
				return err
			}
			res, err := a.Apply(cmd.Context(), o)
			stop()
			if perr := cli.Print(cmd, res, func(w io.Writer) error { return printResult(w, res, o, err) }); perr != nil {
				return perr
			}
			return summarise(res, err)
		},
	}
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "only say what would be installed")
	cmd.Flags().BoolVar(&o.Now, "now", false, "whatever this machine's settings hold back: its windows, battery, metered line")
	cmd.Flags().BoolVar(&o.Retry, "retry", false, "try again what failed too often")
	addRoot(cmd)
	addSettings(cmd, false)
	return cmd
}

func printResult(w io.Writer, res *agent.Result, o agent.ApplyOptions, failed error) error {
	if res.DryRun {
		if res.Report == nil {
			return nil
		}
		for _, it := range res.Report.Order(o.Only) {
			after := ""
			if len(it.After) > 0 {
				after = ", after " + it.After[len(it.After)-1]
			}
			fmt.Fprintf(w, "%s would be installed (%s%s%s)\n", it.ID(), cli.Bytes(it.Length), was(it.Installed), after)
		}
		_, err := fmt.Fprintln(w, "Dry run:", summary(res.Report))
		return err
	}
	for _, d := range res.Done {
		fmt.Fprintf(w, "%s: %s\n", d.ID(), done(d.Step, d.Previous, d.Why))
		if d.Step == agent.StepCommitted {
			continue
		}
		if line := lastLine(d.Output); line != "" {
			fmt.Fprintf(w, "    it said: %s\n", line)
		}
		if d.Log != "" {
			fmt.Fprintf(w, "    log: %s\n", d.Log)
		}
	}
	if len(res.Done) == 0 && failed == nil && res.Report != nil {
		_, err := fmt.Fprintln(w, "Nothing to do:", summary(res.Report))
		return err
	}
	return nil
}

// lastLine is the last line that is not empty, where programs say why they gave
// up, without what would steer a terminal.
func lastLine(output string) string {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, lines[len(lines)-1])
}

// summarise shortens an error that the result has told in full already.
func summarise(res *agent.Result, err error) error {
	failed := 0
	for _, d := range res.Done {
		if d.Step != agent.StepCommitted && d.Step != agent.StepRebootPending {
			failed++
		}
	}
	if err == nil || failed == 0 {
		return err
	}
	return &told{err, fmt.Sprintf("%d of %d patches not installed: see above", failed, len(res.Done))}
}

// told is an error with other words.
type told struct {
	error
	words string
}

func (t *told) Error() string { return t.words }
func (t *told) Unwrap() error { return t.error }

// done says in words where an attempt ended.
func done(step agent.Step, previous, why string) string {
	if why != "" {
		why = ": " + why
	}
	switch step {
	case agent.StepCommitted:
		return "installed" + paren(was(previous))
	case agent.StepRebootPending:
		return "installed; this machine must be rebooted, then it is checked"
	case agent.StepRolledBack:
		if previous != "" {
			return "rolled back to " + previous + why
		}
		return "rolled back" + why
	case agent.StepFailed:
		return "FAILED" + why
	case agent.StepRetryLater:
		return "not now; it will be tried again" + why
	case agent.StepNotApplicable:
		return "its installer says that it does not apply here" + why
	case agent.StepRebooting:
		return "this machine is rebooted for it" + why
	case agent.StepOffered, agent.StepFetched, agent.StepVerified:
		return "not installed" + why
	}
	return string(step) + why
}

func was(version string) string {
	if version == "" {
		return ", new"
	}
	return ", was " + version
}

func paren(s string) string { return " (" + s[2:] + ")" }

func newDownload() *cobra.Command {
	var out string
	var bases []string
	cmd := &cobra.Command{
		Use:   "download TARGETPATH --output FILE",
		Short: "Fetch and verify a file of the repository, to look at it",
		Long: `download fetches any target that the repository signs, verifies it, and installs
nothing. It asks neither the ring's plan nor the halts. With --base, only what is
new is fetched, where a delta is published or blocks are the same.`,
		Example: "  patchkeep-agent download patches/hello/1.1/any/hello.tar.gz --output hello.tar.gz\n" +
			"  patchkeep-agent download patches/hello/1.1/any/hello.deb --output hello.deb --base hello-1.0.deb",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			progress, stop := bars(cmd)
			a, err := open(cmd, progress)
			if err != nil {
				return err
			}
			out, err := filepath.Abs(out)
			if err != nil {
				return err
			}
			var have []fetch.Base
			for _, b := range bases {
				if _, err := os.Stat(b); err != nil {
					return fmt.Errorf("base: %w", err)
				}
				have = append(have, fetch.Base{Path: b})
			}
			t, res, err := a.Download(cmd.Context(), args[0], out, have...)
			stop()
			if err != nil {
				return err
			}
			v := struct {
				Path    string `json:"path"`
				Output  string `json:"output"`
				Length  int64  `json:"length"`
				SHA256  string `json:"sha256"`
				Role    string `json:"role"`
				Fetched int64  `json:"fetched"` // bytes from the network
				Copied  int64  `json:"copied"`  // bytes out of a base
				Delta   bool   `json:"delta"`   // made out of a base and a delta
			}{t.Path, out, t.Length, t.SHA256, t.Role, res.Bytes, res.Copied, res.Delta}
			return cli.Print(cmd, v, func(w io.Writer) error {
				how := ""
				if res.Copied > 0 {
					how = fmt.Sprintf("%s fetched, %s were here\n", cli.Bytes(res.Bytes), cli.Bytes(res.Copied))
				}
				_, err := fmt.Fprintf(w, "%s\n%s, SHA-256 %s, signed by %s\n%s", out, cli.Bytes(t.Length), t.SHA256, t.Role, how)
				return err
			})
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "file to write")
	cmd.Flags().StringArrayVar(&bases, "base", nil, "file that it may share bytes with, such as an earlier version; may be repeated")
	_ = cmd.MarkFlagRequired("output")
	return cmd
}
