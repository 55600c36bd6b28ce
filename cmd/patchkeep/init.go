package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/rollout"
	"github.com/patchkeep/patchkeep/signing"
)

func newInit(a *app) *cobra.Command {
	in := &initCommand{app: a}
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a new repository",
		Long: `init makes a new, empty repository. Each role gets one key, which is made in the
first directory of --keys unless a key file of the role's name lies there or
--key names one. For production, give the roles that decide more keys and
higher thresholds. If not all who have to sign are here, the new repository
waits for their signatures as any change does: see sign, export and publish.`,
		Example: `  patchkeep init --repo ./repo --keys ./keys
  patchkeep init --repo 's3://patches/prod?region=eu-central-1' --keys ./keys --product hello
  patchkeep init --repo ./repo --keys ./keys --key root=anna.pub --key root=ben.pub --threshold root=2
  patchkeep init --repo ./repo --keys ./online --pending --key root=anna.pub --key root=ben.pub --key root=carl.pub --threshold root=2`,
		Args: cobra.NoArgs,
		RunE: in.run,
	}
	f := cmd.Flags()
	f.StringSliceVar(&in.rings, "ring", rollout.DefaultRings, "ring of machines; may be repeated")
	f.StringSliceVar(&in.products, "product", nil, "product; may be repeated (patch add makes new ones too)")
	f.StringArrayVar(&in.keys, "key", nil, "ROLE=FILE: a role's public key (NAME.pub) or key file, instead of a new one; may be repeated")
	f.StringArrayVar(&in.thresholds, "threshold", nil, "ROLE=N: how many keys must sign for a role; may be repeated")
	f.StringArrayVar(&in.lifetimes, "lifetime", nil, "ROLE=DURATION: how long a role's metadata is valid, such as timestamp=72h; may be repeated")
	addWaitFlags(a, cmd)
	f.StringVar(&in.algorithm, "algorithm", "ed25519", "algorithm of new keys: ed25519 or ecdsa-p256")
	return cmd
}

type initCommand struct {
	*app
	rings, products             []string
	keys, thresholds, lifetimes []string
	algorithm                   string
}

// madeRole is a role in the result of init.
type madeRole struct {
	Role      string   `json:"role"`
	KeyIDs    []string `json:"keyids"`
	Threshold int      `json:"threshold"`
	Sources   []string `json:"sources"`
}

func (in *initCommand) run(cmd *cobra.Command, _ []string) error {
	ctx := cmd.Context()
	alg, err := signing.ParseAlgorithm(in.algorithm)
	if err != nil {
		return &cli.UsageError{Err: err}
	}
	for _, n := range slices.Concat(in.rings, in.products) {
		if err := layout.CheckName(n); err != nil {
			return &cli.UsageError{Err: err}
		}
	}
	names := repo.Roles(in.rings, in.products)
	roles, err := in.parse(names)
	if err != nil {
		return err
	}
	s, err := in.openStore(ctx)
	if err != nil {
		return err
	}
	ring, err := in.openKeys(ctx)
	if err != nil {
		return err
	}
	r := repo.Open(s, repo.Config{Keys: keysOf(ring), Pending: in.waiting(), By: whoAmI()})
	if err := r.CanInit(ctx); err != nil { // before keys are made
		return err
	}
	made := make([]madeRole, 0, len(names))
	for _, name := range names {
		m, err := in.complete(ctx, ring, name, roles, alg)
		if err != nil {
			return err
		}
		made = append(made, m)
	}
	change, err := r.Init(ctx, repo.InitConfig{Roles: roles, Rings: in.rings, Products: in.products})
	if err != nil {
		return err
	}
	result := struct {
		Repository string        `json:"repository"`
		Roles      []madeRole    `json:"roles"`
		Timestamp  int64         `json:"timestamp"`
		Pending    *repo.Pending `json:"pending,omitempty"`
	}{s.String(), made, change.Timestamp, change.Pending}
	return cli.Print(cmd, result, func(w io.Writer) error {
		if change.Pending != nil {
			return printWaiting(w, change.Pending, "a new repository in "+s.String())
		}
		return in.print(w, s.String(), made)
	})
}

// parse reads the flags that say who speaks for a role.
func (in *initCommand) parse(names []string) (map[string]repo.RoleConfig, error) {
	roles := make(map[string]repo.RoleConfig)
	each := func(flag string, values []string, set func(c *repo.RoleConfig, value string) error) error {
		for _, v := range values {
			role, value, ok := strings.Cut(v, "=")
			if !ok || !slices.Contains(names, role) {
				return cli.Usagef("--%s %q is not ROLE=…, where ROLE is one of: %s", flag, v, strings.Join(names, " "))
			}
			c := roles[role]
			if err := set(&c, value); err != nil {
				return cli.Usagef("--%s %s: %v", flag, v, err)
			}
			roles[role] = c
		}
		return nil
	}
	err := each("key", in.keys, func(c *repo.RoleConfig, value string) error {
		pub, err := publicKey(value)
		c.Keys = append(c.Keys, pub)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = each("threshold", in.thresholds, func(c *repo.RoleConfig, value string) (err error) {
		c.Threshold, err = strconv.Atoi(value)
		if err == nil && c.Threshold < 1 {
			err = fmt.Errorf("at least 1")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for role, c := range roles { // before keys are made
		if have := max(len(c.Keys), 1); c.Threshold > have {
			return nil, cli.Usagef("role %s has %d key(s) and asks for %d signatures: name further keys with --key %s=FILE", role, have, c.Threshold, role)
		}
	}
	return roles, each("lifetime", in.lifetimes, func(c *repo.RoleConfig, value string) (err error) {
		c.Lifetime, err = time.ParseDuration(value)
		if err == nil && c.Lifetime < time.Second {
			err = fmt.Errorf("at least a second")
		}
		return err
	})
}

// publicKey reads a NAME.pub, or the public half beside a NAME.key.
func publicKey(file string) (crypto.PublicKey, error) {
	info, err := signing.Describe(file)
	if err != nil {
		return nil, err
	}
	return info.Public, nil
}

// complete finds or makes the key of a role that was given none.
func (in *initCommand) complete(ctx context.Context, ring *signing.Keyring, role string, roles map[string]repo.RoleConfig, alg signing.Algorithm) (madeRole, error) {
	m := madeRole{Role: role}
	c := roles[role]
	if len(c.Keys) == 0 {
		info, err := findOrMake(ctx, ring, role, alg, len(in.keyRefs) > 0)
		if err != nil {
			return m, err
		}
		c.Keys = []crypto.PublicKey{info.Public}
		m.Sources = append(m.Sources, info.Source)
	}
	c.Threshold = max(c.Threshold, 1)
	for _, pub := range c.Keys {
		_, id, err := signing.TUFKey(pub)
		if err != nil {
			return m, fmt.Errorf("key of role %s: %w", role, err)
		}
		m.KeyIDs = append(m.KeyIDs, id)
	}
	m.Threshold = c.Threshold
	roles[role] = c
	return m, nil
}

// findOrMake takes the key of that name, or makes it.
func findOrMake(ctx context.Context, ring *signing.Keyring, name string, alg signing.Algorithm, dirGiven bool) (signing.KeyInfo, error) {
	for _, info := range ring.Keys() {
		if info.Name == name && info.Public != nil {
			return info, nil
		}
	}
	if !dirGiven {
		return signing.KeyInfo{}, cli.WithHint(cli.Usagef("there is no key for role %s, and no place to make one", name), "use --keys DIR, where key files lie or are to be written")
	}
	info, err := ring.Create(ctx, name, alg)
	if errors.Is(err, fs.ErrExist) {
		info, err = madeByOthers(ctx, ring, name, err)
	}
	if err != nil {
		return info, fmt.Errorf("make key of role %s: %w", name, err)
	}
	return info, nil
}

// madeByOthers finds a key that another process has made at the same moment.
func madeByOthers(ctx context.Context, ring *signing.Keyring, name string, failed error) (signing.KeyInfo, error) {
	for range 40 { // its public half comes after it
		if err := ring.Reload(ctx); err != nil {
			return signing.KeyInfo{}, err
		}
		for _, info := range ring.Keys() {
			if info.Name == name && info.Public != nil {
				return info, nil
			}
		}
		select {
		case <-ctx.Done():
			return signing.KeyInfo{}, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return signing.KeyInfo{}, failed
}

func (in *initCommand) print(w io.Writer, where string, made []madeRole) error {
	fmt.Fprintf(w, "Made a repository in %s\n\n", where)
	t := cli.Table(w)
	fmt.Fprintln(t, "ROLE\tSIGNATURES NEEDED\tKEY\tFILE")
	for _, m := range made {
		for i, id := range m.KeyIDs {
			role, need, source := m.Role, fmt.Sprintf("%d of %d", m.Threshold, len(m.KeyIDs)), "(given)"
			if i > 0 {
				role, need = "", ""
			}
			if i < len(m.Sources) {
				source = m.Sources[i]
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", role, need, signing.Fingerprint(id), source)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if advice := advise(made); len(advice) > 0 {
		fmt.Fprintln(w, "\nBefore production, raise:")
		for _, line := range advice {
			fmt.Fprintln(w, "  - "+line)
		}
	}
	fmt.Fprintln(w, "\nNext: patchkeep root export --output root.json   (mirrors and agents pin it)")
	fmt.Fprintln(w, "      patchkeep patch add FILE --product P --version V --platform linux-amd64")
	return nil
}

// advise says which thresholds are too low for production, and why.
func advise(made []madeRole) []string {
	var list []string
	for _, m := range made {
		_, isRing := layout.RingOfRole(m.Role)
		switch {
		case m.Threshold > 1:
		case m.Role == layout.RoleRoot, m.Role == layout.RoleTargets:
			list = append(list, fmt.Sprintf("%s to 2 of 3, with keys kept offline: whoever has this one key owns the repository", m.Role))
		case isRing && strings.Contains(m.Role, "server"):
			list = append(list, fmt.Sprintf("%s to 2 or more, with a key for each approver: one key alone can let a patch onto servers", m.Role))
		}
	}
	if len(list) > 0 {
		list = append(list, "move the private keys of root and targets off this machine; snapshot and timestamp are the ones that stay online")
	}
	return list
}

func newRootCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "root", Short: "Show the root metadata that mirrors and agents pin"}
	var output string
	export := &cobra.Command{
		Use:     "export",
		Short:   "Write the verified root metadata in force to a file or to stdout",
		Example: `  patchkeep root export --repo ./repo --output root.json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.openStore(cmd.Context())
			if err != nil {
				return err
			}
			data, err := repo.Open(s, repo.Config{}).Root(cmd.Context())
			if err != nil {
				return err
			}
			if output == "" || output == "-" {
				_, err = cmd.OutOrStdout().Write(data)
				return err
			}
			return os.WriteFile(output, data, 0o644)
		},
	}
	export.Flags().StringVarP(&output, "output", "o", "", "file to write; stdout if not given")
	cmd.AddCommand(export)
	return cmd
}
