// Package client is a machine's side of Patchkeep, to be embedded: it keeps
// verified metadata of one repository, says what that vouches for, and
// downloads it.
//
// It trusts the root file it was given and its own directory's privacy, and
// nothing else. An attacker on the network, or who runs a mirror or the origin,
// can
//
//   - withhold: every mirror failing is tuf.ErrOffline, the last verified
//     metadata stays in use until it expires, then everything is tuf.ErrExpired;
//   - delay: a mirror that stalls or drips is left for the next one.
//
// It cannot make a Client accept other bytes, older metadata, a mixture of
// two states, or more data than was signed (tuf.ErrNotTrusted), nor fill the
// disk. Files get their name only when length and hashes match. Plans, halts
// and patches are refused from any role but the one that DESIGN allows to
// speak for them: a product's engineers cannot approve, a ring's approvers
// cannot describe how to install, and a key for halts can only stop.
//
// What a Client does not do is decide: whether a patch may be installed here
// and now is rollout.Decide over Plan, Halts and Patch.
package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// Config says what a Client trusts, whom it asks, and where it keeps things.
type Config struct {
	// Dir is the Client's own directory, private to it: trusted metadata in
	// Dir/metadata, small documents in Dir/documents. Empty: memory only.
	Dir string
	// MetadataDir is the place of the trusted metadata; default Dir/metadata.
	MetadataDir string
	// Root is the trusted root to begin with, and may be nil later on: see
	// tuf.Config.
	Root []byte

	// Mirrors are base URLs, the best first: <base>/metadata and <base>/targets
	// hold what their names say. Where the repository has a signed list of
	// mirrors, those near are asked before them: see package choice.
	Mirrors []string
	// MachineID spreads machines over mirrors that are as near as each other.
	// Empty: a random number does, which is kept in Dir.
	MachineID string
	// Region is the machine's, as the list of mirrors names it; may be empty.
	Region string
	// Addresses are the machine's, each with its network. nil: the system's.
	Addresses func() ([]netip.Prefix, error)
	// MetadataURLs and TargetURLs are base URLs of only one of the two. They are
	// asked after Mirrors.
	MetadataURLs, TargetURLs []string

	// Credentials are shown to Mirrors, and to those of the signed list.
	Credentials fetch.Credentials
	// Proxy returns the proxy for a request, nil for none. nil: the system's.
	Proxy func(*http.Request) (*url.URL, error)

	HTTP      *http.Client     // nil: as fetch.Options says; then Proxy does not count
	UserAgent string           // default "patchkeep"
	RateLimit int64            // bytes per second, over all downloads; 0: none
	Fetch     fetch.Options    // patience with mirrors; those above win over its fields
	Now       func() time.Time // nil: time.Now
	ReadOnly  bool             // never write Dir, nor lock it

	// MetadataFetcher takes the place of the mirrors for metadata.
	MetadataFetcher tuf.Fetcher
}

// Client is safe for concurrent use. One process at a time may use a Dir.
type Client struct {
	cfg      Config
	tuf      *tuf.Client
	fetch    *fetch.Fetcher
	metadata *fetch.Metadata // nil with Config.MetadataFetcher
	servers  *servers
	docs     documents
}

const (
	metadataSuffix = "/" + layout.MetadataDir
	targetsSuffix  = "/" + layout.TargetsDir
)

// Open opens a Client on what is in its directory. It does not touch the
// network.
func Open(cfg Config) (*Client, error) {
	c := &Client{cfg: cfg}
	for _, raw := range slices.Concat(cfg.Mirrors, cfg.MetadataURLs, cfg.TargetURLs) {
		if u, err := url.Parse(raw); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
			return nil, fmt.Errorf("open client: mirror %q is not an http(s) URL", raw)
		}
	}

	opt := cfg.Fetch
	if cfg.HTTP != nil {
		opt.HTTP = cfg.HTTP
	}
	if cfg.UserAgent != "" {
		opt.UserAgent = cfg.UserAgent
	}
	if cfg.Proxy != nil {
		opt.Proxy = cfg.Proxy
	}
	if c := cfg.Credentials; c.Token != nil || c.Certificate != nil || c.Authorities != nil {
		if cfg.HTTP != nil && (c.Certificate != nil || c.Authorities != nil) {
			return nil, errors.New("open client: a certificate and authorities are for the client's own transport: put them into HTTP's")
		}
		opt.Credentials = c
	}
	if cfg.RateLimit > 0 {
		opt.Limiter = rate.NewLimiter(rate.Limit(cfg.RateLimit), int(min(cfg.RateLimit, 64<<10)))
	}
	opt.Inside = hosts(cfg.Mirrors, cfg.MetadataURLs, cfg.TargetURLs)
	c.fetch = fetch.New(opt)

	var err error
	if c.docs, err = openDocuments(cfg.Dir, cfg.ReadOnly); err != nil {
		return nil, fmt.Errorf("open client: %w", err)
	}
	c.servers = newServers(&c.cfg, c.fetch, &c.docs)
	fetcher := cfg.MetadataFetcher
	if fetcher == nil {
		c.metadata = c.fetch.Metadata()
		c.metadata.Observe = func(base string, err error) { c.servers.observe(strings.TrimSuffix(base, metadataSuffix), err) }
		c.route()
		fetcher = c.metadata
	}
	dir := cfg.MetadataDir
	if dir == "" && cfg.Dir != "" {
		dir = filepath.Join(cfg.Dir, "metadata")
	}
	c.tuf, err = tuf.Open(tuf.Config{Dir: dir, Root: cfg.Root, Fetcher: fetcher, Now: cfg.Now, ReadOnly: cfg.ReadOnly})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open client: %w", err), c.docs.close())
	}
	c.recall()
	return c, nil
}

// Close gives the directory free.
func (c *Client) Close() error {
	c.fetch.Close()
	return errors.Join(c.docs.close(), c.tuf.Close())
}

// route has the metadata asked from the servers in their order.
func (c *Client) route() {
	bases, _ := c.servers.bases()
	for i := range bases {
		bases[i] += metadataSuffix
	}
	c.metadata.SetBases(append(bases, c.cfg.MetadataURLs...))
}

// Refresh brings the metadata up to date. A mirror whose metadata does not
// verify, or is expired, is passed over for the next one; the error is the
// first mirror's then, unless another's says more.
func (c *Client) Refresh(ctx context.Context) error {
	if c.metadata == nil {
		return c.tuf.Refresh(ctx)
	}
	c.servers.begin()
	c.servers.measure(ctx)
	c.route()
	err := c.tuf.Refresh(ctx)
	for range c.metadata.Mirrors() - 1 {
		if err == nil || ctx.Err() != nil || errors.Is(err, tuf.ErrClock) {
			break
		}
		zerolog.Ctx(ctx).Warn().Err(err).Msg("mirror passed over")
		if !errors.Is(err, tuf.ErrOffline) {
			c.servers.observe(strings.TrimSuffix(c.metadata.Current(), metadataSuffix), err)
		}
		c.metadata.Rotate()
		next := c.tuf.Refresh(ctx)
		if next == nil || errors.Is(err, tuf.ErrOffline) {
			err = next
		}
	}
	if err != nil {
		return c.clockHint(err)
	}
	c.remember()
	c.readList(ctx)
	c.servers.settle(ctx)
	c.route()
	return nil
}

// clockHint adds to an error about the time what a server's clock says. Nobody
// has signed that, so it is for whoever reads the message, and decides nothing.
func (c *Client) clockHint(err error) error {
	if !errors.Is(err, tuf.ErrExpired) && !errors.Is(err, tuf.ErrClock) {
		return err
	}
	const noteworthy = 10 * time.Minute
	now, theirs := c.now(), c.metadata.ServerTime()
	off := now.Sub(theirs)
	if theirs.IsZero() || off.Abs() < noteworthy {
		return err
	}
	which := "ahead"
	if off < 0 {
		which = "behind"
	}
	return fmt.Errorf("%w (a server's clock says %s: this machine's seems to be %s)", err, theirs.UTC().Format(time.RFC3339), which)
}

func (c *Client) now() time.Time {
	if c.cfg.Now != nil {
		return c.cfg.Now()
	}
	return time.Now()
}

// Status tells what metadata is loaded and when it expires.
func (c *Client) Status() tuf.Status { return c.tuf.Status() }

// TUF returns the verified metadata itself.
func (c *Client) TUF() *tuf.Client { return c.tuf }

// Target says what is signed about a target path; nothing: fs.ErrNotExist.
func (c *Client) Target(ctx context.Context, path string) (*tuf.Target, error) {
	return c.tuf.Target(ctx, path)
}
