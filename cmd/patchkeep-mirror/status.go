package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/mirror"
)

const maxStatus = 4 << 20 // bytes of a /readyz

func newStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status [URL]",
		Short: "Show how a mirror is",
		Long: `status asks a running mirror, or its --admin-listen address, what it serves and
how it is. It ends with 0 if the mirror is fit to serve, 11 if what it serves
has expired, and 13 if it has nothing to serve or cannot be reached.`,
		Example: "  patchkeep-mirror status http://localhost:8080",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			base := "http://127.0.0.1:8080"
			if len(args) > 0 {
				base = args[0]
			}
			st, err := fetchStatus(cmd, base)
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
		},
	}
}

func fetchStatus(cmd *cobra.Command, base string) (*mirror.Status, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, cli.Usagef("%q is not the URL of a mirror, such as http://localhost:8080", base)
	}
	req, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, u.JoinPath("readyz").String(), nil)
	if err != nil {
		return nil, fmt.Errorf("ask mirror: %w", err)
	}
	resp, err := (&http.Client{Timeout: 15 * time.Second}).Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask mirror: %w: %w", tuf.ErrOffline, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusServiceUnavailable {
		return nil, cli.WithHint(fmt.Errorf("ask mirror: status %d from %s", resp.StatusCode, req.URL.Redacted()),
			"a mirror with --admin-listen answers there")
	}
	st := &mirror.Status{}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxStatus)).Decode(st); err != nil {
		return nil, fmt.Errorf("read status: %w", err)
	}
	return st, nil
}

// clean keeps a mirror's answer from playing with the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

func printStatus(w io.Writer, st *mirror.Status, now time.Time) error {
	t := cli.Table(w)
	state := "ready"
	if !st.Ready {
		state = "degraded"
	}
	fmt.Fprintf(t, "State:\t%s\n", state)
	for _, r := range st.Reasons {
		fmt.Fprintf(t, "\t%s\n", clean(r))
	}
	for _, r := range st.Warnings {
		fmt.Fprintf(t, "Warning:\t%s\n", clean(r))
	}
	if v := st.View; v != nil {
		fmt.Fprintf(t, "View:\ttimestamp %d, snapshot %d, root %d; verified %s\n", v.Timestamp, v.Snapshot, v.Root, cli.Ago(v.Since, now))
		fmt.Fprintf(t, "\t%d roles, %d objects\n", v.Roles, v.Objects)
	}
	size := "no limit"
	if st.Cache.Max > 0 {
		size = cli.Bytes(st.Cache.Max)
	}
	fmt.Fprintf(t, "Cache:\t%s in %d objects, of %s; %d evicted\n", cli.Bytes(st.Cache.Bytes), st.Cache.Objects, size, st.Cache.Evicted)
	fmt.Fprintf(t, "Fills:\t%d done, %d failed, %s received; %d running, %d queued, %d requests waiting\n",
		st.Fills.Done, st.Fills.Failed, cli.Bytes(st.Fills.BytesIn), st.Fills.Transfer, st.Fills.Queued, st.Fills.Waiting)
	if err := t.Flush(); err != nil {
		return err
	}
	if len(st.Roles) > 0 {
		fmt.Fprintf(t, "\nROLE\tVERSION\tEXPIRES\n")
		for _, r := range st.Roles {
			fmt.Fprintf(t, "%s\t%d\t%s, %s\n", clean(r.Name), r.Version, r.Expires.UTC().Format(time.RFC3339), cli.Ago(r.Expires, now))
		}
	}
	if len(st.Upstreams) > 0 {
		fmt.Fprintf(t, "\nUPSTREAM\tANSWERED\tTRANSFERS\tBYTES\tERRORS\n")
		for _, u := range st.Upstreams {
			answered := "never"
			if !u.Answered.IsZero() {
				answered = cli.Ago(u.Answered, now)
			}
			fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%d\n", clean(u.Name), answered, u.Transfers, cli.Bytes(u.Bytes), u.Errors)
		}
	}
	if len(st.Progress) > 0 {
		fmt.Fprintf(t, "\nFILLING\tBYTES\tWAITING\tFROM\n")
		for _, p := range st.Progress {
			fmt.Fprintf(t, "%s\t%s of %s\t%d\t%s\n", clean(p.Object), cli.Bytes(p.Bytes), cli.Bytes(p.Length), p.Waiting, clean(p.From))
		}
	}
	return t.Flush()
}
