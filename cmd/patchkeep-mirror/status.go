package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/mirror"
)

const (
	maxStatus     = 4 << 20 // bytes of a /readyz
	maxToken      = 4 << 10 // bytes of a --token-file
	maxPEM        = 1 << 20 // bytes of a --ca
	statusTimeout = 15 * time.Second
	watchEvery    = 2 * time.Second
)

type statusOptions struct {
	token, ca, cert, key string
	watch                bool
}

func newStatus() *cobra.Command {
	o := &statusOptions{}
	cmd := &cobra.Command{
		Use:   "status [URL]",
		Short: "Show how a mirror is",
		Long: `status asks a running mirror, or its --admin-listen address, what it serves and
how it is: whether it is fit to serve and why not, the view and when its roles
expire, the cache, what is being fetched and when that will be done, and its
upstreams. It ends with 0 if the mirror is fit to serve, 11 if what it serves
has expired, and 13 if it has nothing to serve or cannot be reached.`,
		Example: `  patchkeep-mirror status http://localhost:8080
  patchkeep-mirror status --watch http://localhost:9090
  patchkeep-mirror status https://mirror.example.com --ca ca.pem --token-file /etc/patchkeep/token --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			base := "http://127.0.0.1:8080"
			if len(args) > 0 {
				base = args[0]
			}
			return o.run(cmd, base)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.watch, "watch", false, "show it anew every 2 seconds, until interrupted")
	f.StringVar(&o.token, "token-file", "", "file with the bearer token that the mirror asks for")
	f.StringVar(&o.ca, "ca", "", "trust the TLS certificates of these authorities (PEM file), not the system's")
	f.StringVar(&o.cert, "cert", "", "TLS certificate of this client (PEM file)")
	f.StringVar(&o.key, "key", "", "private key of --cert (PEM file)")
	return cmd
}

func (o *statusOptions) run(cmd *cobra.Command, base string) error {
	asker, err := o.asker(base)
	if err != nil {
		return err
	}
	if o.watch {
		return watch(cmd, asker)
	}
	st, err := asker.ask(cmd.Context())
	if err != nil {
		return err
	}
	if err := cli.Print(cmd, st, func(w io.Writer) error { return printStatus(w, st, time.Now()) }); err != nil {
		return err
	}
	switch {
	case st.Ready:
		return nil
	case st.View == nil:
		return cli.Exit(errors.New("the mirror has nothing to serve yet"), cli.Offline)
	}
	return cli.Exit(errors.New("the mirror is degraded: "+strings.Join(st.Reasons, "; ")), cli.Expired)
}

// watch shows the status again and again on a terminal, whatever comes of it,
// until the command is interrupted.
func watch(cmd *cobra.Command, a *asker) error {
	out, ok := cmd.OutOrStdout().(*os.File)
	if asJSON, _ := cmd.Flags().GetBool("json"); asJSON || !ok || !term.IsTerminal(int(out.Fd())) {
		return cli.Usagef("--watch is for a terminal; without it, status prints once")
	}
	size := func() (int, int) {
		width, height, err := term.GetSize(int(out.Fd()))
		if err != nil {
			return 80, 24
		}
		return width, height
	}
	return rewrite(cmd.Context(), out, a, watchEvery, size)
}

// rewrite is the loop of watch.
func rewrite(ctx context.Context, out io.Writer, a *asker, every time.Duration, size func() (width, height int)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	fmt.Fprint(out, "\x1b[2J")
	for {
		var page bytes.Buffer
		st, err := a.ask(ctx)
		if ctx.Err() != nil {
			return nil
		}
		fmt.Fprintf(&page, "%s, %s\n\n", clean(a.url.Redacted()), time.Now().Format(time.TimeOnly))
		if err == nil {
			err = printStatus(&page, st, time.Now())
		}
		if err != nil {
			fmt.Fprintf(&page, "%s\n", clean(err.Error()))
		}
		width, height := size()
		if _, err := io.WriteString(out, screen(page.String(), width, height)); err != nil {
			return fmt.Errorf("print status: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// screen writes a page over the last one: what does not fit is cut off at the
// end, since what matters comes first.
func screen(page string, width, height int) string {
	lines := strings.Split(strings.TrimRight(page, "\n"), "\n")
	if len(lines) >= height {
		lines = lines[:max(height-1, 1)]
	}
	var b strings.Builder
	b.WriteString("\x1b[H")
	for _, l := range lines {
		if r := []rune(l); len(r) > width {
			l = string(r[:width])
		}
		b.WriteString(l + "\x1b[K\n")
	}
	b.WriteString("\x1b[J")
	return b.String()
}

// asker asks one mirror how it is.
type asker struct {
	url    *url.URL
	token  string
	client *http.Client
}

func (o *statusOptions) asker(base string) (*asker, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, cli.Usagef("%q is not the URL of a mirror, such as http://localhost:8080", base)
	}
	if (o.cert == "") != (o.key == "") {
		return nil, cli.Usagef("--cert and --key go together")
	}
	if u.Scheme == "http" && (o.ca != "" || o.cert != "") {
		return nil, cli.Usagef("--ca and --cert are for https://")
	}
	a := &asker{url: u.JoinPath("readyz")}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.token != "" {
		if u.Scheme == "http" && !loopback(u.Hostname()) {
			return nil, cli.Usagef("--token-file over http:// would show the token to the network; use https://")
		}
		data, err := readSmall(o.token, maxToken)
		if err != nil {
			return nil, fmt.Errorf("read token: %w", err)
		}
		if a.token = strings.TrimSpace(string(data)); a.token == "" || strings.ContainsAny(a.token, " \r\n\t") {
			return nil, cli.Usagef("%s does not hold one token", o.token)
		}
	}
	if o.ca != "" {
		data, err := readSmall(o.ca, maxPEM)
		if err != nil {
			return nil, fmt.Errorf("read --ca: %w", err)
		}
		tlsConfig.RootCAs = x509.NewCertPool()
		if !tlsConfig.RootCAs.AppendCertsFromPEM(data) {
			return nil, cli.Usagef("%s holds no certificate in PEM", o.ca)
		}
	}
	if o.cert != "" {
		pair, err := tls.LoadX509KeyPair(o.cert, o.key)
		if err != nil {
			return nil, fmt.Errorf("load --cert: %w", err)
		}
		tlsConfig.Certificates = []tls.Certificate{pair}
	}
	a.client = &http.Client{
		Timeout: statusTimeout,
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true,
			MaxResponseHeaderBytes: 64 << 10, IdleConnTimeout: time.Minute,
		},
		// The token is for whom it was meant.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return a, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// readSmall reads a file of at most limit bytes.
func readSmall(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is longer than %s", name, cli.Bytes(limit))
	}
	return data, err
}

func (a *asker) ask(ctx context.Context) (*mirror.Status, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("ask mirror: %w", err)
	}
	if a.token != "" {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask mirror: %w: %w", tuf.ErrOffline, err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK, http.StatusServiceUnavailable:
	case http.StatusUnauthorized, http.StatusForbidden:
		return nil, cli.WithHint(fmt.Errorf("ask mirror: status %d from %s", resp.StatusCode, a.url.Redacted()),
			"it wants to know who asks: --token-file, or --cert and --key")
	default:
		return nil, cli.WithHint(fmt.Errorf("ask mirror: status %d from %s", resp.StatusCode, a.url.Redacted()),
			"a mirror with --admin-listen answers there")
	}
	st := &mirror.Status{}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxStatus)).Decode(st); err != nil {
		return nil, fmt.Errorf("read status: %w", err)
	}
	return st, nil
}
