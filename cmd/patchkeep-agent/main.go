// Command patchkeep-agent keeps a machine patched: it checks with the
// repository, and installs what the machine's ring has approved.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo/patch"
)

func main() {
	setUmask()
	cli.Main(newRoot(), config())
}

func config() cli.Config {
	return cli.Config{
		Rules: []cli.Rule{
			{Target: agent.ErrPartial, Code: cli.Partial},
			{Target: tuf.ErrNotTrusted, Code: cli.NotTrusted},
			{Target: tuf.ErrTooLarge, Code: cli.NotTrusted},
			{Target: install.ErrChanged, Code: cli.NotTrusted},
			{Target: install.ErrSignature, Code: cli.NotTrusted},
			{Target: tuf.ErrExpired, Code: cli.Expired},
			{Target: tuf.ErrClock, Code: cli.Expired},
			{Target: agent.ErrBusy, Code: cli.Conflict},
			{Target: errInstalled, Code: cli.Conflict},
			{Target: agent.ErrEnrolled, Code: cli.Conflict},
			{Target: tuf.ErrLocked, Code: cli.Conflict},
			{Target: tuf.ErrOffline, Code: cli.Offline},
			{Target: agent.ErrUnknownRing, Code: cli.Usage},
			{Target: patch.ErrBad, Code: cli.Usage},
		},
		Hint: hint,
	}
}

// hint says what to do next.
func hint(err error) string {
	for _, h := range []struct {
		target error
		text   string
	}{
		{agent.ErrNotEnrolled, "patchkeep-agent enroll --server URL --root root.json --ring RING"},
		{errInstalled, "patchkeep-agent service uninstall, then install it anew"},
		{errNotInstalled, "patchkeep-agent service install"},
		{errRights, "run it as root or with sudo; on Windows in a console opened as administrator"},
		{agent.ErrEnrolled, "add --force to enroll it anew"},
		{agent.ErrUnknownRing, "ask for the ring's name, or have its first plan published with 'patchkeep rollout start'"},
		{agent.ErrBusy, "wait until it is done, and try again"},
		{tuf.ErrLocked, "wait until the other process is done, and try again"},
		{tuf.ErrClock, "set the clock of this machine; nothing is installed until then"},
		{tuf.ErrExpired, "nothing is installed; the publisher must run 'patchkeep renew', or this machine's clock is ahead"},
		{install.ErrUnsafe, "nothing is installed until that is mended"},
		{install.ErrChanged, "nothing was run; somebody changes files in the state directory"},
		{install.ErrSignature, "nothing was run; sign the file as the patch demands and publish it anew, or mend this machine, then apply --retry"},
		{tuf.ErrNotTrusted, "nothing of it is used; tell whoever runs the repository, the server may be hacked"},
		{tuf.ErrTooLarge, "nothing of it is used; the server sends without end, or there is something else in its place"},
		{fetch.ErrCaptivePortal, "open a browser, log in to this network, and try again"},
		{tuf.ErrOffline, "check the network and the servers of 'patchkeep-agent status'; it is tried again on the next run"},
		{fetch.ErrNoSpace, "make room on this machine's disk; it is tried again on the next run"},
		{syscall.EROFS, "nothing is installed while the state directory cannot be written: look at the disk, which Linux makes read-only when it fails"},
		{agent.ErrFailed, "see 'patchkeep-agent history' and the log it names"},
	} {
		if errors.Is(err, h.target) {
			return h.text
		}
	}
	return ""
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "patchkeep-agent",
		Short: "Keep this machine patched, by signed metadata alone",
		Long: `patchkeep-agent installs a patch only when the product's engineers signed it, the
approvers of this machine's ring approved those very bytes, nobody stopped it,
its time has come, it applies here, and all that was checked a moment ago.

Exit codes: 0 ok, 1 failure, 3 some patches failed, 10 not trusted, 11 expired or
wrong clock, 12 another agent is at work, 13 offline, 64 usage, 130 cancelled.`,
		Example: `  patchkeep-agent enroll --server https://updates.example.org --root root.json --ring users
  patchkeep-agent check
  patchkeep-agent apply`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().String("state", agent.DefaultDir(), "directory of the enrolment and of all the agent remembers")
	cli.BindEnv(root, "state", "PATCHKEEP_STATE")
	root.PersistentFlags().String("config", "", "file with this machine's settings, in YAML")
	cli.BindEnv(root, "config", "PATCHKEEP_CONFIG")
	root.AddCommand(newEnroll(), newCheck(), newWhy(), newApply(), newRun(), newService(), newStatus(), newHistory(), newDownload())
	return root
}

// optionsKey is under what a context brings what changes the agent's options:
// tests have other clocks and boots than this machine.
type optionsKey struct{}

// open opens the agent that the flags name.
func open(cmd *cobra.Command, progress func(agent.Progress)) (*agent.Agent, error) {
	dir, err := cmd.Flags().GetString("state")
	if err != nil {
		return nil, err
	}
	o := agent.Options{Dir: dir, UserAgent: userAgent(), Progress: progress}
	if cmd.Flags().Lookup("root") != nil {
		if o.System, err = cmd.Flags().GetString("root"); err != nil {
			return nil, err
		}
	}
	if err := settingsOf(cmd, &o); err != nil {
		return nil, err
	}
	if change, ok := cmd.Context().Value(optionsKey{}).(func(*agent.Options)); ok {
		change(&o)
	}
	a, err := agent.Open(o)
	if errors.Is(err, fs.ErrPermission) {
		return nil, cli.WithHint(err, "run it as the user that enrolled the machine, usually root")
	}
	return a, err
}

func userAgent() string { return "patchkeep-agent/" + cli.Version().Version }

// addRoot adds --root, for looking at and installing into another system.
func addRoot(cmd *cobra.Command) {
	cmd.Flags().String("root", "", "take the directory for the root of the system (dpkg --root), not the running one")
}

// bars shows one progress bar after another.
func bars(cmd *cobra.Command) (progress func(agent.Progress), done func()) {
	var bar *cli.Bar
	var what string
	done = func() { bar.Close() }
	return func(p agent.Progress) {
		if what != p.What {
			done()
			bar, what = cli.Progress(cmd, p.What, p.Total), p.What
		}
		bar.Set(p.Done)
	}, done
}

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
