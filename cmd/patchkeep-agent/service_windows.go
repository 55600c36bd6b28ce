package main

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unsafe"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
	"golang.org/x/sys/windows/svc/mgr"
)

func isAdmin() bool { return windows.GetCurrentProcessToken().IsElevated() }

// shutdownPatience is how long the system waits at shutdown for an installer to
// end; without being asked it would be seconds.
const shutdownPatience = 10 * time.Minute

// afterInstall asks for that time.
func afterInstall() error {
	m, err := mgr.Connect()
	if err != nil {
		return err
	}
	defer m.Disconnect()
	s, err := m.OpenService(serviceName)
	if err != nil {
		return err
	}
	defer s.Close()
	patience := uint32(shutdownPatience / time.Millisecond) // SERVICE_PRESHUTDOWN_INFO
	if err := windows.ChangeServiceConfig2(s.Handle, windows.SERVICE_CONFIG_PRESHUTDOWN_INFO, (*byte)(unsafe.Pointer(&patience))); err != nil {
		return fmt.Errorf("ask for time at shutdown: %w", err)
	}
	return nil
}

// asService runs what may be started by the Service Control Manager, and then
// answers it, and logs to the system's event log.
func asService(cmd *cobra.Command, run func(context.Context) error) error {
	started, err := svc.IsWindowsService()
	if err != nil || !started {
		return run(cmd.Context())
	}
	ctx := cmd.Context()
	if events, err := eventlog.Open(serviceName); err == nil {
		defer events.Close()
		log := zerolog.New(eventWriter{events}).Level(zerolog.Ctx(ctx).GetLevel())
		ctx = log.WithContext(ctx)
	}
	h := &handler{ctx: ctx, run: run}
	if err := svc.Run(serviceName, h); err != nil {
		return fmt.Errorf("answer the service manager: %w", err)
	}
	return h.err
}

// handler is the service. The library's own would say nothing while it stops,
// and not hear of a shutdown in time.
type handler struct {
	ctx context.Context //nolint:containedctx // svc.Handler has no room for one
	run func(context.Context) error
	err error
}

// Execute runs until the manager, or the end of the program, ends it.
func (h *handler) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (bool, uint32) {
	ctx, stop := context.WithCancel(h.ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- h.run(ctx) }()
	status <- svc.Status{State: svc.Running, Accepts: svc.AcceptStop | svc.AcceptPreShutdown}
	const patience = 30 * time.Second
	tick := time.NewTicker(patience / 3)
	defer tick.Stop()
	var stopping svc.Status // the zero State: it is not
	for {
		select {
		case h.err = <-done:
			if h.err != nil {
				zerolog.Ctx(ctx).Error().Err(h.err).Msg("ended")
				return true, 1
			}
			return false, 0
		case r := <-requests:
			switch r.Cmd {
			case svc.Interrogate:
				status <- r.CurrentStatus
			case svc.Stop, svc.Shutdown, svc.PreShutdown:
				stop()
				stopping = svc.Status{State: svc.StopPending, WaitHint: uint32(patience / time.Millisecond)}
				status <- stopping
			}
		case <-tick.C:
			if stopping.State == svc.StopPending { // an installer is waited for
				stopping.CheckPoint++
				status <- stopping
			}
		}
	}
}

// eventWriter writes lines of zerolog to the event log.
type eventWriter struct{ log *eventlog.Log }

func (w eventWriter) Write(p []byte) (int, error) {
	return w.WriteLevel(zerolog.InfoLevel, p)
}

// WriteLevel is zerolog's door for writers that know levels.
func (w eventWriter) WriteLevel(level zerolog.Level, p []byte) (int, error) {
	text, err := strings.TrimSpace(string(p)), error(nil)
	const id = 1
	switch {
	case level >= zerolog.ErrorLevel:
		err = w.log.Error(id, text)
	case level == zerolog.WarnLevel:
		err = w.log.Warning(id, text)
	default:
		err = w.log.Info(id, text)
	}
	return len(p), err
}
