package main

import (
	"context"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/cmd/internal/settings"
	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/mirror/access"
)

// lookEvery is the time between looks at files of certificates and tokens.
const lookEvery = 2 * time.Second

// runner is a mirror that serves.
type runner struct {
	settings         *settings.Source
	started, current *serveOptions // when it was started; as reloaded last
	live             *live
	mirror           *mirror.Mirror
	log              *access.Log // may be nil
	servers          []*server
	hangup           <-chan os.Signal
}

// run serves until the context is done, then lets transfers end.
func (r *runner) run(ctx context.Context) error {
	end := make(chan os.Signal, 2) // from the beginning, so that no signal finds nobody
	signal.Notify(end, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(end)

	ctx, stop := context.WithCancel(ctx)
	failed := make(chan error, len(r.servers))
	for _, s := range r.servers {
		go func() { failed <- s.run() }()
	}
	polled := make(chan struct{})
	go func() { r.mirror.Run(ctx); close(polled) }()
	defer func() { stop(); <-polled }()

	look := time.NewTicker(lookEvery)
	defer look.Stop()
	alive, silence := watchdog(ctx)
	defer silence()
	notify(ctx, daemon.SdNotifyReady)
	for {
		select {
		case err := <-failed:
			return err
		case <-ctx.Done():
			r.stop(ctx, end)
			return nil
		case <-r.hangup:
			r.reload(ctx)
		case <-look.C:
			r.live.look(ctx, r.current)
		case <-alive:
			notify(ctx, daemon.SdNotifyWatchdog)
		}
	}
}

// reload takes over what can change. It is the operator who asks, so that what
// is wrong is told, and nothing ends for it.
func (r *runner) reload(ctx context.Context) {
	notify(ctx, reloading())
	defer notify(ctx, daemon.SdNotifyReady)
	log := zerolog.Ctx(ctx)
	if err := r.log.Reopen(); err != nil {
		log.Error().Err(err).Msg("the old file is written on")
	}
	o, err := readOptions(r.settings)
	if err == nil {
		err = o.validate()
	}
	if err != nil {
		log.Error().Err(err).Msg("cannot reload: the old configuration counts on")
		return
	}
	if err := r.live.apply(o); err != nil {
		log.Error().Err(err).Msg("cannot reload all: what is wrong stays as it was")
	}
	r.current = o
	if names := needRestart(r.started, o); len(names) > 0 {
		log.Warn().Str("options", strings.Join(names, ", ")).Msg("changed, but this needs a restart")
	}
	log.Info().Msg("configuration reloaded")
}

// stop takes no new connections, and gives transfers and their fills time to
// end; another signal, the second in all, cuts that short.
func (r *runner) stop(ctx context.Context, end <-chan os.Signal) {
	log := zerolog.Ctx(ctx)
	ctx = context.WithoutCancel(ctx)
	notify(ctx, daemon.SdNotifyStopping)
	log.Info().Dur("grace", r.current.grace).Msg("stopping: transfers may end")
	grace, cancel := context.WithTimeout(ctx, r.current.grace)
	defer cancel()
	go func() {
		for range 2 {
			select {
			case <-end:
			case <-grace.Done():
				return
			}
		}
		cancel()
	}()
	var all sync.WaitGroup
	for _, s := range r.servers {
		all.Go(func() {
			if err := s.http.Shutdown(grace); err != nil {
				log.Warn().Str("url", s.url).Msg("transfers were cut off")
				s.http.Close()
			}
		})
	}
	alive, silence := watchdog(ctx)
	defer silence()
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	for {
		select {
		case <-done:
			return
		case <-alive:
			notify(ctx, daemon.SdNotifyWatchdog)
		}
	}
}
