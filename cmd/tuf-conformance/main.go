// Command tuf-conformance lets the public TUF conformance suite
// (theupdateframework/tuf-conformance) drive this project's TUF client. It
// speaks that suite's command-line protocol and nothing else:
//
//	tuf-conformance --metadata-dir D init ROOT
//	tuf-conformance --metadata-dir D --metadata-url U refresh
//	tuf-conformance --metadata-dir D --metadata-url U --target-name T [--target-name T2 …]
//	                --target-base-url TU --target-dir TD download
//
// It exits with 0 or 1. Trusted metadata is kept in D as <role>.json, role
// names percent-encoded. Several targets are fetched in their order by one
// client, stopping at the first failure; one that is in TD already, with
// matching hashes, is not fetched again.
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/client"
	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/tuf"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := newCommand(fakeNow).ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "tuf-conformance: %v\n", err)
		stop()
		os.Exit(1)
	}
}

// options are the flags of all commands.
type options struct {
	metadataDir, metadataURL string
	targetNames              []string
	targetBaseURL, targetDir string
	now                      func() (func() time.Time, error)
}

func newCommand(now func() (func() time.Time, error)) *cobra.Command {
	o := options{now: now}
	root := &cobra.Command{
		Use:           "tuf-conformance",
		Short:         "Drive the TUF client for the public TUF conformance suite",
		Example:       "  tuf-conformance --metadata-dir D init root.json\n  tuf-conformance --metadata-dir D --metadata-url URL refresh",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	f := root.PersistentFlags()
	f.StringVar(&o.metadataDir, "metadata-dir", "", "directory of the trusted metadata")
	f.StringVar(&o.metadataURL, "metadata-url", "", "URL of the repository's metadata")
	f.StringArrayVar(&o.targetNames, "target-name", nil, "target path to download (repeatable, in order)")
	f.StringVar(&o.targetBaseURL, "target-base-url", "", "URL of the repository's targets")
	f.StringVar(&o.targetDir, "target-dir", "", "directory for downloaded targets")
	root.AddCommand(
		&cobra.Command{
			Use: "init ROOT", Short: "Trust a root file", Args: cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error { return o.init(args[0]) },
		},
		&cobra.Command{
			Use: "refresh", Short: "Update the trusted metadata", Args: cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error { return o.refresh(c.Context()) },
		},
		&cobra.Command{
			Use: "download", Short: "Update the metadata and download targets", Args: cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error { return o.download(c.Context()) },
		},
	)
	return root
}

const maxRoot = 512 << 10

func (o *options) init(file string) error {
	if err := required(flag{"metadata-dir", o.metadataDir}); err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("read trusted root: %w", err)
	}
	defer f.Close()
	root, err := io.ReadAll(io.LimitReader(f, maxRoot+1))
	if err != nil {
		return fmt.Errorf("read trusted root: %w", err)
	}
	if len(root) > maxRoot {
		return fmt.Errorf("read trusted root: %s is larger than %d bytes", file, maxRoot)
	}
	c, err := tuf.Open(tuf.Config{Dir: o.metadataDir, Root: root})
	if err != nil {
		return fmt.Errorf("trust root: %w", err)
	}
	return c.Close()
}

func (o *options) refresh(ctx context.Context) error {
	c, err := o.open()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Refresh(ctx); err != nil {
		return fmt.Errorf("refresh: %w", err)
	}
	return nil
}

func (o *options) download(ctx context.Context) error {
	if err := required(flag{"target-base-url", o.targetBaseURL}, flag{"target-dir", o.targetDir}); err != nil {
		return err
	}
	if len(o.targetNames) == 0 {
		return errors.New("--target-name is missing")
	}
	c, err := o.open()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Refresh(ctx); err != nil {
		return fmt.Errorf("refresh: %w", err)
	}
	for _, name := range o.targetNames {
		dest := filepath.Join(o.targetDir, fileName(name))
		if _, _, err := c.Download(ctx, name, dest, client.DownloadOptions{}); err != nil {
			// The suite takes whatever lies there for a target. Only a run that
			// was killed leaves something to go on with.
			os.Remove(dest + ".part")
			os.Remove(dest + ".part.json")
			return fmt.Errorf("download %q: %w", name, err)
		}
	}
	return nil
}

// fileName is the name of a target in the target directory: always the same,
// another for each target, and one path element whatever the target is called.
func fileName(target string) string {
	name := url.PathEscape(target)
	if rest, hidden := strings.CutPrefix(name, "."); hidden {
		name = "%2E" + rest // the suite does not see hidden files
	}
	if len(name) > 200 {
		return fmt.Sprintf("%%sha256-%x", sha256.Sum256([]byte(target)))
	}
	return name
}

func (o *options) open() (*client.Client, error) {
	if err := required(flag{"metadata-dir", o.metadataDir}, flag{"metadata-url", o.metadataURL}); err != nil {
		return nil, err
	}
	now, err := o.now()
	if err != nil {
		return nil, err
	}
	cfg := client.Config{
		MetadataDir:  o.metadataDir,
		MetadataURLs: []string{o.metadataURL},
		UserAgent:    "patchkeep-tuf-conformance",
		Now:          now,
		// One connection for each request, one after the other: the suite's
		// server takes one at a time. And no second try, for it counts them.
		HTTP:  &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, ResponseHeaderTimeout: 30 * time.Second}},
		Fetch: fetch.Options{Attempts: 1},
	}
	if o.targetBaseURL != "" {
		cfg.TargetURLs = []string{o.targetBaseURL}
	}
	c, err := client.Open(cfg)
	if err != nil {
		return nil, fmt.Errorf("open trusted metadata: %w", err)
	}
	return c, nil
}

type flag struct{ name, value string }

func required(flags ...flag) error {
	for _, f := range flags {
		if f.value == "" {
			return fmt.Errorf("--%s is missing", f.name)
		}
	}
	return nil
}
