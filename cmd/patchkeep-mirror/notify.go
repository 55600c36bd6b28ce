package main

import (
	"context"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
)

// notify tells systemd, if that started us with Type=notify or notify-reload.
func notify(ctx context.Context, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		zerolog.Ctx(ctx).Debug().Err(err).Str("state", state).Msg("systemd cannot be told")
	}
}

// reloading is what notify-reload waits for; READY=1 ends it.
func reloading() string {
	return daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec()
}

// watchdog ticks as often as systemd is to hear that all is well; never if it
// does not want to.
func watchdog(ctx context.Context) (tick <-chan time.Time, stop func()) {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		zerolog.Ctx(ctx).Warn().Err(err).Msg("no watchdog")
	}
	if err != nil || every <= 0 {
		return nil, func() {}
	}
	t := time.NewTicker(max(every/3, time.Millisecond))
	return t.C, t.Stop
}
