package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/mirror/upstream"
)

const (
	maxRootFile = 512 << 10

	// firstLook is how long a mirror that has nothing to serve yet waits for
	// its upstreams before it answers anyway, with 503.
	firstLook = 15 * time.Second
)

type serveOptions struct {
	upstreams                []string
	root, cache              string
	cacheSize, minFree, rate string
	listen, admin            string
	cert, key                string
	poll, grace              time.Duration
	fills                    int
}

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

SIGTERM and an interrupt end it: no new connections, and transfers have --grace
to finish.`,
		Example: `  patchkeep-mirror serve --upstream /srv/repo --root root.json --cache /var/cache/patchkeep --listen :8080
  patchkeep-mirror serve --upstream https://patches.example.com --root root.json --cache ./cache --cache-size 20GiB --listen 127.0.0.1:0`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.upstreams, "upstream", nil, "where the repository is: URL of a mirror, s3://bucket/prefix?…, or a directory (repeatable)")
	f.StringVar(&o.root, "root", "", "file with the pinned root")
	f.StringVar(&o.cache, "cache", "", "directory of this mirror; made if missing")
	f.StringVar(&o.cacheSize, "cache-size", "50GiB", "limit of cached objects; 0: none")
	f.StringVar(&o.minFree, "min-free", "512MiB", "keep so much of the disk free")
	f.StringVar(&o.listen, "listen", "127.0.0.1:8080", "address to serve on; port 0 picks one")
	f.StringVar(&o.admin, "admin-listen", "", "serve /readyz and /metrics on this address instead")
	f.DurationVar(&o.poll, "poll", 30*time.Second, "time between looks at the upstreams")
	f.IntVar(&o.fills, "max-fills", 8, "transfers from upstream at once")
	f.StringVar(&o.rate, "min-rate", "8KiB", "bytes a second below which a reader is cut off")
	f.DurationVar(&o.grace, "grace", 30*time.Second, "time for transfers to end on stop")
	f.StringVar(&o.cert, "tls-cert", "", "serve TLS with this certificate chain (PEM file)")
	f.StringVar(&o.key, "tls-key", "", "private key of --tls-cert (PEM file)")
	cli.BindEnv(cmd, "upstream", "PATCHKEEP_UPSTREAM")
	cli.BindEnv(cmd, "root", "PATCHKEEP_ROOT")
	cli.BindEnv(cmd, "cache", "PATCHKEEP_CACHE")
	cli.BindEnv(cmd, "listen", "PATCHKEEP_LISTEN")
	return cmd
}

// config turns the flags into a mirror's.
func (o *serveOptions) config(ctx context.Context) (cfg mirror.Config, err error) {
	switch {
	case len(o.upstreams) == 0:
		return cfg, cli.Usagef("--upstream is missing: the URL of a mirror, s3://bucket/prefix, or a directory")
	case o.root == "":
		return cfg, cli.WithHint(cli.Usagef("--root is missing: a mirror trusts nothing without a pinned root"),
			"it is the repository's metadata/1.root.json; get it from whoever runs the repository")
	case o.cache == "":
		return cfg, cli.Usagef("--cache is missing: the directory in which this mirror keeps what it serves")
	case (o.cert == "") != (o.key == ""):
		return cfg, cli.Usagef("--tls-cert and --tls-key go together")
	case o.poll < 10*time.Millisecond, o.grace < 0, o.fills < 1:
		return cfg, cli.Usagef("--poll, --grace and --max-fills must be positive")
	}
	cfg = mirror.Config{Dir: o.cache, Poll: o.poll, MaxFills: o.fills}
	for _, size := range []struct {
		to   *int64
		from string
	}{{&cfg.CacheSize, o.cacheSize}, {&cfg.MinFree, o.minFree}, {&cfg.MinRate, o.rate}} {
		if *size.to, err = cli.ParseBytes(size.from); err != nil {
			return cfg, err
		}
	}
	if cfg.Root, err = readRoot(o.root); err != nil {
		return cfg, cli.WithHint(err, "the pinned root is the repository's metadata/1.root.json; get it from whoever runs the repository")
	}
	for _, ref := range o.upstreams {
		u, err := upstream.Open(ctx, ref, upstream.Limits{})
		if err != nil {
			return cfg, err
		}
		cfg.Upstreams = append(cfg.Upstreams, u)
	}
	return cfg, nil
}

func readRoot(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read pinned root: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRootFile+1))
	if err == nil && len(data) > maxRootFile {
		err = errors.New("file is too large for a root")
	}
	if err != nil {
		return nil, fmt.Errorf("read pinned root %s: %w", name, err)
	}
	return data, nil
}

func (o *serveOptions) run(cmd *cobra.Command) error {
	ctx := cmd.Context()
	cfg, err := o.config(ctx)
	if err != nil {
		return err
	}
	var tlsConfig *tls.Config
	if o.cert != "" {
		pair, err := tls.LoadX509KeyPair(o.cert, o.key)
		if err != nil {
			return fmt.Errorf("load TLS certificate: %w", err)
		}
		tlsConfig = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	}
	// What runs for clients ends with them, not with the signal.
	m, err := mirror.New(context.WithoutCancel(ctx), cfg)
	if err != nil {
		return err
	}
	defer m.Close()

	var servers []*server
	defer func() {
		for _, s := range servers {
			s.listener.Close()
		}
	}()
	handler := m.Handler()
	if o.admin != "" {
		handler = m.Public()
		s, err := listen(ctx, o.admin, m.Admin(), nil)
		if err != nil {
			return err
		}
		servers = append(servers, s)
	}
	s, err := listen(ctx, o.listen, handler, tlsConfig)
	if err != nil {
		return err
	}
	servers = append(servers, s)
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
	return o.serve(cmd, m, servers)
}

// serve runs until the context is done, then lets transfers end.
func (o *serveOptions) serve(cmd *cobra.Command, m *mirror.Mirror, servers []*server) error {
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	failed := make(chan error, len(servers))
	for _, s := range servers {
		go func() { failed <- s.run() }()
	}
	polled := make(chan struct{})
	go func() { m.Run(ctx); close(polled) }()
	defer func() { stop(); <-polled }()

	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	zerolog.Ctx(ctx).Info().Dur("grace", o.grace).Msg("stopping: transfers may end")
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.grace)
	defer cancel()
	for _, s := range servers {
		if err := s.http.Shutdown(grace); err != nil {
			zerolog.Ctx(ctx).Warn().Msg("transfers were cut off at the end of the grace period")
			s.http.Close()
		}
	}
	return nil
}

// announce says where to connect, which port 0 leaves open.
func announce(cmd *cobra.Command, m *mirror.Mirror, servers []*server) error {
	var to struct {
		URL       string   `json:"url"`
		Admin     string   `json:"admin,omitempty"`
		Upstreams []string `json:"upstreams"`
	}
	to.URL = servers[len(servers)-1].url
	if len(servers) > 1 {
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

// server is a listening address.
type server struct {
	http     *http.Server
	listener net.Listener
	url      string
	tls      bool
}

func listen(ctx context.Context, addr string, h http.Handler, tlsConfig *tls.Config) (*server, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	scheme := "http"
	if tlsConfig != nil {
		scheme = "https"
	}
	log := zerolog.Ctx(ctx)
	return &server{
		listener: l, url: scheme + "://" + l.Addr().String(), tls: tlsConfig != nil,
		http: &http.Server{
			Handler: h, TLSConfig: tlsConfig,
			// No ReadTimeout and WriteTimeout: they are for the whole of a transfer.
			// The mirror sets deadlines for each piece.
			ReadHeaderTimeout: 10 * time.Second,
			IdleTimeout:       2 * time.Minute,
			MaxHeaderBytes:    16 << 10,
			BaseContext:       func(net.Listener) context.Context { return log.WithContext(context.Background()) },
			ErrorLog:          stdlog.New(log.With().Str("level", "debug").Logger(), "", 0),
		},
	}, nil
}

func (s *server) run() error {
	var err error
	if s.tls {
		err = s.http.ServeTLS(s.listener, "", "")
	} else {
		err = s.http.Serve(s.listener)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve: %w", err)
}
