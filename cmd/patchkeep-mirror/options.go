package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/mirror/access"
	"github.com/patchkeep/patchkeep/mirror/upstream"
)

const maxRootFile = 512 << 10

// serveOptions are what the command line, the environment and the configuration
// file may say. Sizes and rates are as people write them.
type serveOptions struct {
	upstreams, siblings, rings []string
	root, cache, self          string
	cacheSize, minFree         string
	limit, scrub               string
	poll, grace, idle          time.Duration
	fills                      int

	listen, admin       string
	cert, key, clientCA string
	tokenFile           string
	accessLog           string
	proxies             []string
	requests            float64
	burst               int
	clientConns         int
	clientRate, rate    string
	maxConns            int

	upstreamToken, upstreamCA, upstreamCert, upstreamKey string

	config string
	check  bool

	all *pflag.FlagSet // of these fields
}

// flags are the options by name. The file has all but these two: config, check.
func (o *serveOptions) flags() *pflag.FlagSet {
	f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	o.all = f
	f.StringArrayVar(&o.upstreams, "upstream", nil, "where the repository is: URL of a mirror, s3://bucket/prefix?…, or a directory (repeatable)")
	f.StringVar(&o.root, "root", "", "file with the pinned root")
	f.StringVar(&o.cache, "cache", "", "directory of this mirror; made if missing")
	f.StringVar(&o.cacheSize, "cache-size", "50GiB", "limit of cached objects; 0: none")
	f.StringVar(&o.minFree, "min-free", "512MiB", "keep so much of the disk free")
	f.StringVar(&o.scrub, "scrub", "4MiB", "read cached objects again at so many bytes a second, to find damaged ones; 0: do not")
	f.DurationVar(&o.poll, "poll", 30*time.Second, "time between looks at the upstreams")
	f.IntVar(&o.fills, "max-fills", 4, "transfers of large objects from upstream at once")
	f.StringVar(&o.limit, "limit", "", "calendar of the line's bandwidth, such as 'mon-fri 08:00-18:00=5MB/s,*=unlimited'")
	f.StringArrayVar(&o.rings, "prefill-ring", nil, "fetch this ring's patches before their start time (repeatable)")
	f.StringArrayVar(&o.siblings, "sibling", nil, "URL of another mirror of this site, to share the work with; may include this one (repeatable)")
	f.StringVar(&o.self, "self", "", "URL by which the siblings know this mirror")
	f.StringVar(&o.upstreamToken, "upstream-token-file", "", "file with the bearer token for upstreams over https")
	f.StringVar(&o.upstreamCA, "upstream-ca", "", "trust these authorities alone for upstreams over https (PEM file)")
	f.StringVar(&o.upstreamCert, "upstream-cert", "", "TLS certificate to show to upstreams (PEM file)")
	f.StringVar(&o.upstreamKey, "upstream-key", "", "private key of --upstream-cert (PEM file)")

	f.StringVar(&o.listen, "listen", "127.0.0.1:8080", "address to serve on; port 0 picks one")
	f.StringVar(&o.admin, "admin-listen", "", "serve /readyz and /metrics on this address instead, without TLS and limits")
	f.StringVar(&o.cert, "tls-cert", "", "serve TLS with this certificate chain (PEM file)")
	f.StringVar(&o.key, "tls-key", "", "private key of --tls-cert (PEM file)")
	f.StringVar(&o.clientCA, "client-ca", "", "let in clients with a certificate of these authorities (PEM file)")
	f.StringVar(&o.tokenFile, "token-file", "", "let in clients with a bearer token of this file: a name and a token, or sha256:HEX, a line")
	f.StringVar(&o.accessLog, "access-log", "", "write a line of JSON for each request to this file; -: stdout, stderr: stderr")
	f.StringArrayVar(&o.proxies, "trusted-proxy", nil, "believe X-Forwarded-For of this address or network (repeatable)")
	f.Float64Var(&o.requests, "client-requests", 0, "requests a second of a client; 0: any number. A client is an IP address (IPv6: its /64): a whole site behind NAT is one")
	f.IntVar(&o.burst, "client-burst", 0, "requests of a client at once; 0: ten seconds' worth of --client-requests")
	f.IntVar(&o.clientConns, "client-connections", 0, "connections of a client at once; 0: any number")
	f.StringVar(&o.clientRate, "client-rate", "0", "bytes a second to a client, all its connections together; 0: any number")
	f.IntVar(&o.maxConns, "max-connections", 20_000, "connections at once, of all clients; 0: any number")
	f.StringVar(&o.rate, "min-rate", "8KiB", "bytes a second below which a reader is cut off")
	f.DurationVar(&o.idle, "idle-timeout", 2*time.Minute, "time after which an idle connection is closed")
	f.DurationVar(&o.grace, "grace", 30*time.Second, "time for transfers to end on stop")

	f.StringVar(&o.config, "config", "", "file of these options, in YAML: their names without dashes, lists for the repeatable ones")
	f.BoolVar(&o.check, "check", false, "check the configuration and the files it names, and end")
	return f
}

// validate finds what makes no sense whatever the files hold.
func (o *serveOptions) validate() error {
	switch {
	case len(o.upstreams) == 0:
		return cli.Usagef("--upstream is missing: the URL of a mirror, s3://bucket/prefix, or a directory")
	case o.root == "":
		return cli.WithHint(cli.Usagef("--root is missing: a mirror trusts nothing without a pinned root"),
			"it is the repository's metadata/1.root.json; get it from whoever runs the repository")
	case o.cache == "":
		return cli.Usagef("--cache is missing: the directory in which this mirror keeps what it serves")
	case (o.cert == "") != (o.key == ""):
		return cli.Usagef("--tls-cert and --tls-key go together")
	case (o.upstreamCert == "") != (o.upstreamKey == ""):
		return cli.Usagef("--upstream-cert and --upstream-key go together")
	case o.clientCA != "" && o.cert == "":
		return cli.Usagef("--client-ca needs TLS: --tls-cert and --tls-key")
	case len(o.siblings) > 0 && o.self == "":
		return cli.Usagef("--self is missing: the URL by which the siblings know this mirror")
	case o.poll < 10*time.Millisecond, o.grace < 0, o.idle < 0, o.fills < 1:
		return cli.Usagef("--poll, --grace, --idle-timeout and --max-fills must be positive")
	case math.IsNaN(o.requests), o.requests < 0, o.burst < 0, o.clientConns < 0, o.maxConns < 0:
		return cli.Usagef("limits of clients must not be negative; 0 is none")
	}
	return nil
}

// mirrorConfig turns the options into a mirror's, but for what changes while it runs.
func (o *serveOptions) mirrorConfig(ctx context.Context, creds upstream.Credentials) (cfg mirror.Config, err error) {
	if err := o.validate(); err != nil {
		return cfg, err
	}
	cfg = mirror.Config{Dir: o.cache, Poll: o.poll, MaxFills: o.fills, Self: strings.TrimRight(o.self, "/"), PrefillRings: o.rings}
	for _, size := range []struct {
		to   *int64
		from string
	}{{&cfg.CacheSize, o.cacheSize}, {&cfg.MinFree, o.minFree}, {&cfg.MinRate, o.rate}, {&cfg.Scrub, o.scrub}} {
		if *size.to, err = cli.ParseBytes(size.from); err != nil {
			return cfg, err
		}
	}
	if cfg.Root, err = readFile(o.root, maxRootFile); err != nil {
		return cfg, cli.WithHint(fmt.Errorf("read pinned root: %w", err),
			"the pinned root is the repository's metadata/1.root.json; get it from whoever runs the repository")
	}
	if err := mirror.CheckRoot(cfg.Root); err != nil {
		return cfg, fmt.Errorf("pinned root %s: %w", o.root, err)
	}
	if o.upstreamCA != "" {
		if creds.Authorities, err = readPool(o.upstreamCA); err != nil {
			return cfg, fmt.Errorf("load --upstream-ca: %w", err)
		}
	}
	if o.upstreamToken == "" {
		creds.Token = nil
	}
	for _, ref := range o.upstreams {
		u, err := creds.Open(ctx, ref, upstream.Limits{})
		if err != nil {
			return cfg, err
		}
		cfg.Upstreams = append(cfg.Upstreams, u)
	}
	for _, ref := range append([]string{o.self}, o.siblings...) {
		if ref != "" && !upstream.IsHTTP(ref) {
			return cfg, cli.Usagef("%s: a sibling is known by its URL, http://… or https://…", ref)
		}
	}
	for _, ref := range o.siblings {
		c := creds
		if strings.HasPrefix(ref, "http:") {
			c.Token = nil // within a site the line is plain for many
		}
		u, err := c.Open(ctx, ref, upstream.ToSibling)
		if err != nil {
			return cfg, err
		}
		cfg.Siblings = append(cfg.Siblings, u)
	}
	return cfg, nil
}

// rules are those of the gate, but for what is read from files.
func (o *serveOptions) rules() (r access.Rules, err error) {
	r = access.Rules{
		Requests: o.requests, Burst: o.burst, Conns: o.clientConns, MaxConns: o.maxConns,
	}
	if r.Bytes, err = cli.ParseBytes(o.clientRate); err != nil {
		return r, err
	}
	if r.Proxies, err = access.ParseProxies(o.proxies); err != nil {
		return r, &cli.UsageError{Err: err}
	}
	return r, nil
}

// readFile reads a whole file that ought to be small.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = errors.New("it is too large")
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}
