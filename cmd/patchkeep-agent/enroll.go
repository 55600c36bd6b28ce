package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo/patch"
)

func newEnroll() *cobra.Command {
	var o agent.EnrollOptions
	var root string
	var kinds []string
	cmd := &cobra.Command{
		Use:   "enroll --server URL --root root.json --ring RING",
		Short: "Tell this machine whom to trust, and its ring",
		Long: `enroll pins the repository's root and this machine's ring. Both are believed from
now on whatever any server says, so bring root.json here by a way that you trust.

The server is asked once whether it serves a repository that chains from that
root and has a plan for that ring, unless --offline.`,
		Example: `  patchkeep-agent enroll --server https://mirror.branch.example --server https://updates.example.org \
      --root root.json --ring users
  patchkeep-agent enroll --server https://updates.example.org --root root.json --ring users \
      --token-file /etc/patchkeep/token --ca-file /etc/patchkeep/ca.pem --region eu`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Dir, err = cmd.Flags().GetString("state"); err != nil {
				return err
			}
			if o.Root, err = readRoot(root); err != nil {
				return cli.WithHint(fmt.Errorf("read root: %w", err), "--root takes the file that 'patchkeep init' wrote, metadata/1.root.json")
			}
			for _, k := range kinds {
				o.Kinds = append(o.Kinds, patch.Kind(k))
			}
			o.UserAgent = userAgent()
			c, err := agent.Enroll(cmd.Context(), o)
			if err != nil {
				return err
			}
			return cli.Print(cmd, c, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "Enrolled in ring %s as machine %s.\nServers: %s\nState:   %s\nNext:    patchkeep-agent check\n",
					c.Ring, c.MachineID, strings.Join(c.Servers, ", "), o.Dir)
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.Servers, "server", nil, "base URL of a mirror or the origin; repeat it, best first")
	f.StringVar(&root, "root", "", "file with the trusted root metadata")
	f.StringVar(&o.Ring, "ring", "", "ring of this machine")
	f.StringVar(&o.InstallRoot, "install-root", "", "where archives and files go (default "+agent.DefaultInstallRoot()+")")
	f.StringVar(&o.System, "system-root", "", "root of the system that packages go into, if not the running one")
	f.StringVar(&o.MachineID, "machine-id", "", "id that decides the machine's turn in a rollout (default: derived from the system's)")
	f.StringSliceVar(&kinds, "kind", nil, "take patches of these kinds only: "+kindList())
	f.StringVar(&o.Access.TokenFile, "token-file", "", "file with the bearer token for servers, sent over https only")
	f.StringVar(&o.Access.ClientCert, "client-cert", "", "certificate for servers that ask for one, PEM")
	f.StringVar(&o.Access.ClientKey, "client-key", "", "its key, PEM")
	f.StringVar(&o.Access.CAFile, "ca-file", "", "authorities of the servers' certificates, PEM (default: the system's)")
	f.StringVar(&o.Access.Proxy, "proxy", "", "proxy for all servers (default: the system's settings)")
	f.StringVar(&o.Access.NoProxy, "no-proxy", "", "hosts, .domains and networks that are reached without --proxy, separated by commas")
	f.StringVar(&o.Access.Region, "region", "", "region of this machine, whose mirrors are taken before others")
	f.BoolVar(&o.Force, "force", false, "replace an enrolment that is there")
	f.BoolVar(&o.Offline, "offline", false, "do not ask the servers")
	for _, name := range []string{"server", "root", "ring"} {
		_ = cmd.MarkFlagRequired(name)
	}
	cli.BindEnv(cmd, "server", "PATCHKEEP_SERVER")
	cli.BindEnv(cmd, "ring", "PATCHKEEP_RING")
	return cmd
}

func kindList() string {
	var s []string
	for _, k := range patch.Kinds {
		s = append(s, string(k))
	}
	return strings.Join(s, ", ")
}

func readRoot(path string) ([]byte, error) {
	const limit = 1 << 20
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && len(data) > limit {
		err = fmt.Errorf("%s is no root metadata: it is larger than %s", path, cli.Bytes(limit))
	}
	return data, err
}
