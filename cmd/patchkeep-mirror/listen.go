package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/mirror"
)

const (
	headerTimeout  = 10 * time.Second // for a TLS handshake too
	maxHeaderBytes = 16 << 10

	// Of a connection that speaks HTTP/2. A client that opens and resets streams
	// gets no more than maxStreams handlers at once either.
	maxStreams   = 250
	pingAfter    = 30 * time.Second // without a frame
	pingTimeout  = 15 * time.Second
	writeTimeout = 30 * time.Second // without a byte that could be written
)

// server is a listening address.
type server struct {
	http     *http.Server
	listener net.Listener
	url      string
	tls      bool
	admin    bool
}

// sockets are those that systemd hands over, by the name that their unit gives
// them with FileDescriptorName=: public, admin. A single one without such a name
// is public.
type sockets struct{ public, admin []net.Listener }

// inherit takes the sockets from the environment, once.
func inherit() (s sockets, err error) {
	named, err := activation.ListenersWithNames()
	if err != nil {
		return s, fmt.Errorf("take over sockets: %w", err)
	}
	for name, list := range named {
		switch {
		case name == "admin":
			s.admin = append(s.admin, list...)
		case name == "public", len(named) == 1:
			s.public = append(s.public, list...)
		default:
			return s, fmt.Errorf("take over sockets: %q is not one of public, admin", name)
		}
	}
	return s, nil
}

// listen returns the sockets that were handed over, or listens on addr.
func listen(ctx context.Context, handed []net.Listener, addr string) ([]net.Listener, error) {
	if len(handed) > 0 || addr == "" {
		return handed, nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return []net.Listener{l}, nil
}

// newServer serves h on l, with TLS if there is a configuration for it.
func newServer(ctx context.Context, o *serveOptions, m *mirror.Mirror, l net.Listener, h http.Handler, tlsConfig *tls.Config) *server {
	scheme := "http"
	if tlsConfig != nil {
		scheme = "https"
	}
	log := zerolog.Ctx(ctx)
	return &server{
		listener: l, url: scheme + "://" + l.Addr().String(), tls: tlsConfig != nil,
		http: &http.Server{
			Handler: h, TLSConfig: tlsConfig, ConnState: m.ConnState, ConnContext: mirror.ConnContext,
			// No ReadTimeout and WriteTimeout: they are for the whole of a transfer.
			// The mirror sets deadlines for each piece.
			ReadHeaderTimeout: headerTimeout,
			IdleTimeout:       o.idle,
			MaxHeaderBytes:    maxHeaderBytes,
			HTTP2: &http.HTTP2Config{
				MaxConcurrentStreams: maxStreams, SendPingTimeout: pingAfter, PingTimeout: pingTimeout, WriteByteTimeout: writeTimeout,
			},
			BaseContext: func(net.Listener) context.Context { return log.WithContext(context.Background()) },
			ErrorLog:    stdlog.New(log.With().Str("level", "debug").Logger(), "", 0),
		},
	}
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
