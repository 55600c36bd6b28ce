package main

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/cmd/internal/settings"
)

func newRun() *cobra.Command {
	var now bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Apply again and again, until told to stop",
		Long: `run first finishes what an earlier run began. It looks for patches at a random
moment within --spread, or at once with --now, and then every --interval, give or
take a quarter; sooner after the machine slept, changed its network, or when the
time of a patch comes. Whatever happens, it goes on: expired metadata or a server
that is away only mean that nothing is installed until they are well again.

Settings come from flags, over the environment, over a file: --config, or else
settings.yaml in the state directory, or else ` + systemSettings() + `. The file is
read again before each look; SIGHUP asks for one. SIGTERM ends it: a download
stops at once, an installer is waited for.`,
		Example: "  patchkeep-agent run --interval 30m --log-level info\n  patchkeep-agent service install",
		Args:    cobra.NoArgs,
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return asService(cmd, func(ctx context.Context) error { return runAgent(ctx, cmd, now) })
	}
	cmd.Flags().BoolVar(&now, "now", false, "look at once, not within --spread")
	addSettings(cmd, true)
	return cmd
}

func runAgent(ctx context.Context, cmd *cobra.Command, now bool) error {
	// A quiet guest: what a look needed is given back after it.
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(64 << 20)

	s, err := source(cmd)
	if err != nil {
		return err
	}
	a, err := open(cmd, nil)
	if err != nil {
		return err
	}
	wake, quiet := hangups()
	defer quiet()
	o := agent.RunOptions{
		Wake: wake,
		Reload: func() (agent.Settings, error) {
			set, _, err := readSettings(s)
			if err != nil {
				zerolog.Ctx(ctx).Error().Err(err).Msg("the old settings count on")
			}
			if now {
				set.Spread = 0
			}
			return set, err
		},
		Each: func(res *agent.Result, err error) {
			if err != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\n", time.Now().Format(time.DateTime), err)
				zerolog.Ctx(ctx).Warn().Err(err).Msg("look")
			}
			if len(res.Done) > 0 {
				_ = cli.Print(cmd, res, func(w io.Writer) error { return printResult(w, res, agent.ApplyOptions{}, err) })
			}
			debug.FreeOSMemory()
		},
	}
	tellSystemd(ctx, daemon.SdNotifyReady)
	defer tellSystemd(ctx, daemon.SdNotifyStopping)
	debug.FreeOSMemory()
	return a.Run(ctx, o)
}

// tellSystemd does, if that started us with Type=notify.
func tellSystemd(ctx context.Context, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		zerolog.Ctx(ctx).Debug().Err(err).Str("state", state).Msg("systemd cannot be told")
	}
}

// settingsOf is the agent's options as the command's settings have them.
func settingsOf(cmd *cobra.Command, o *agent.Options) (err error) {
	var s *settings.Source
	if cmd.Flags().Lookup("interval") == nil {
		return nil // it is not a command that has settings
	}
	if s, err = source(cmd); err != nil {
		return err
	}
	o.Settings, o.MaxBases, err = readSettings(s)
	return err
}
