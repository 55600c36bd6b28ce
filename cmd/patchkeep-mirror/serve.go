package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/cmd/internal/settings"
	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/mirror/access"
	"github.com/patchkeep/patchkeep/mirror/line"
)

// firstLook is how long a mirror that has nothing to serve yet waits for its
// upstreams before it answers anyway, with 503.
const firstLook = 15 * time.Second

func newServe() *cobra.Command {
	o := &serveOptions{}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve a repository until told to stop",
		Long: `serve follows the repository at the upstreams and serves it under /metadata/ and
/targets/, with /healthz, /readyz (a status, as JSON) and /metrics (Prometheus)
beside it. An upstream is the URL of another mirror, s3://bucket/prefix, or a
directory; with several, the newest metadata counts, and objects come from the
first that has them.

The pinned root is the repository's metadata/1.root.json, or a later one, got
from whoever runs the repository rather than from the upstream itself.

With --token-file or --client-ca only those may come in who bear a token or show
a certificate, either of them, to everything but /healthz and --admin-listen.
Limits of clients are off unless set. They count by IP address: a site behind
NAT is one client, so at an origin give them for the largest site.

Options come from the command line, then the environment, then --config, then the
defaults. SIGHUP reads that file again, takes over what can change (limits, the
calendar, files of certificates and tokens, --grace), says what needs a restart,
and begins a new --access-log. Certificates and tokens are also read again
whenever their files change. What is wrong is logged, and the old one counts on.

SIGTERM and an interrupt end it: no new connections, and transfers have --grace
to finish; a second one cuts them off.`,
		Example: `  patchkeep-mirror serve --upstream /srv/repo --root root.json --cache /var/cache/patchkeep --listen :8080
  patchkeep-mirror serve --upstream https://patches.example.com --root root.json --cache ./cache --cache-size 20GiB --limit '08:00-18:00=5MB/s,*=unlimited'
  patchkeep-mirror serve --config /etc/patchkeep/mirror.yaml --check`,
		Args: cobra.NoArgs,
	}
	flags := o.flags()
	cmd.Flags().AddFlagSet(flags)
	cli.BindEnv(cmd, "upstream", "PATCHKEEP_UPSTREAM")
	cli.BindEnv(cmd, "root", "PATCHKEEP_ROOT")
	cli.BindEnv(cmd, "cache", "PATCHKEEP_CACHE")
	cli.BindEnv(cmd, "listen", "PATCHKEEP_LISTEN")
	cli.BindEnv(cmd, "config", "PATCHKEEP_CONFIG")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s := settings.Of(flags, o.config, "config", "check")
		o, err := readOptions(s)
		if err != nil {
			return err
		}
		if o.check {
			return check(cmd, o)
		}
		return serve(cmd, s, o)
	}
	return cmd
}

// check is serve without serving: it touches neither cache nor upstream.
func check(cmd *cobra.Command, o *serveOptions) error {
	l := newLive(nil)
	if _, err := o.mirrorConfig(cmd.Context(), l.credentials()); err != nil {
		return err
	}
	if err := l.apply(o); err != nil {
		return err
	}
	return cli.Print(cmd, map[string]bool{"ok": true}, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, "The configuration is good.")
		return err
	})
}

func serve(cmd *cobra.Command, s *settings.Source, o *serveOptions) (err error) {
	ctx := cmd.Context()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // which would end the process
	defer signal.Stop(hangup)
	log, err := o.openLog(cmd)
	if err != nil {
		return err
	}
	if log != nil {
		ended := inBackground(ctx, log.Run)
		defer func() { err = errors.Join(err, ended()) }()
	}
	l := newLive(log)
	cfg, err := o.mirrorConfig(ctx, l.credentials())
	if err != nil {
		return err
	}
	if o.limit != "" || s.File() != "" {
		l.line = line.NewLimiter(nil, nil)
		cfg.Line = l.line
	}
	if err := l.apply(o); err != nil {
		return err
	}
	cfg.Access = l.gate
	// What runs for clients ends with them, not with the signal.
	m, err := mirror.New(context.WithoutCancel(ctx), cfg)
	if err != nil {
		return err
	}
	defer m.Close()

	servers, err := l.listen(ctx, o, m)
	defer func() {
		for _, s := range servers {
			s.listener.Close()
		}
	}()
	if err != nil {
		return err
	}
	if err := announce(cmd, m, servers); err != nil {
		return err
	}

	// Whoever connects already waits until there is something to serve.
	if m.Status().View == nil {
		first, cancel := context.WithTimeout(ctx, firstLook)
		err := m.Refresh(first)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, tuf.ErrNotTrusted):
			return err // a mistake in setting it up; there is nothing to serve
		case err != nil:
			zerolog.Ctx(ctx).Warn().Err(err).Msg("nothing to serve yet")
		}
	}
	return (&runner{settings: s, started: o, current: o, live: l, mirror: m, log: log, servers: servers, hangup: hangup}).run(ctx)
}

// inBackground runs what ends with its context; the result ends it and waits.
func inBackground(ctx context.Context, f func(context.Context) error) (end func() error) {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	return func() error {
		stop()
		return <-done
	}
}

func (o *serveOptions) openLog(cmd *cobra.Command) (*access.Log, error) {
	switch o.accessLog {
	case "":
		return nil, nil
	case "-":
		return access.OpenLog(access.LogTo(cmd.OutOrStdout()))
	case "stderr":
		return access.OpenLog(access.LogTo(cmd.ErrOrStderr()))
	}
	return access.OpenLog(access.LogFile(o.accessLog))
}

// listen opens all addresses, the public ones last.
func (l *live) listen(ctx context.Context, o *serveOptions, m *mirror.Mirror) (servers []*server, err error) {
	handed, err := inherit()
	if err != nil {
		return nil, err
	}
	admin, err := listen(ctx, handed.admin, o.admin)
	if err != nil {
		return nil, err
	}
	handler := m.Handler()
	if len(admin) > 0 {
		handler = m.Public()
	}
	for _, a := range admin {
		s := newServer(ctx, o, m, a, m.Admin(), nil)
		s.admin = true
		servers = append(servers, s)
	}
	public, err := listen(ctx, handed.public, o.listen)
	if err != nil {
		return servers, err
	}
	for _, p := range public {
		servers = append(servers, l.public(ctx, o, m, p, handler))
	}
	return servers, nil
}

// public guards an address that strangers can reach.
func (l *live) public(ctx context.Context, o *serveOptions, m *mirror.Mirror, inner net.Listener, h http.Handler) *server {
	guarded := l.gate.Listener(ctx, inner)
	if o.cert == "" {
		return newServer(ctx, o, m, m.Listener(guarded, o.idle), h, nil)
	}
	return newServer(ctx, o, m, guarded, h, &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return l.tls.Load(), nil },
	})
}

// announce says where to connect, which port 0 leaves open.
func announce(cmd *cobra.Command, m *mirror.Mirror, servers []*server) error {
	var to struct {
		URL       string   `json:"url"`
		Admin     string   `json:"admin,omitempty"`
		Upstreams []string `json:"upstreams"`
	}
	to.URL = servers[len(servers)-1].url
	if servers[0].admin {
		to.Admin = servers[0].url
	}
	for _, u := range m.Status().Upstreams {
		to.Upstreams = append(to.Upstreams, u.Name)
	}
	log := zerolog.Ctx(cmd.Context()).Info().Str("url", to.URL)
	if to.Admin != "" {
		log = log.Str("admin", to.Admin)
	}
	log.Msg("listening")
	return cli.Print(cmd, to, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "Serving %s on %s\n", strings.Join(to.Upstreams, ", "), to.URL)
		return err
	})
}
