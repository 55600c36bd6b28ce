package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/signing"
)

type signCommand struct {
	*app
	file, output string
	rootFile     string
	yes          bool
	dryRun       *bool
}

// signed is the JSON result of sign.
type signed struct {
	Change *repo.Pending           `json:"change"`
	Added  []repo.PendingSignature `json:"added"`
	Output string                  `json:"output,omitempty"` // file with the signatures
	DryRun bool                    `json:"dry_run,omitempty"`
}

func newSign(a *app) *cobra.Command {
	in := &signCommand{app: a}
	cmd := &cobra.Command{
		Use:   "sign ID",
		Short: "Read a waiting change, and sign it",
		Long: `sign says in words what a change does, asks, and adds the signatures of the keys
at hand that it waits for. It signs exactly the bytes that it has put into words.

With --file it does so on a machine without network: it reads a file that export
has made, verifies all of it from the pinned root on, and writes the signatures
to a small file for import.`,
		Example: `  patchkeep sign 20261124-6f1d3c0a9be2447a1c05d8e27b3a9f10 --keys ./anna
  patchkeep sign --file change.json --root root.json --keys ./anna --output anna.json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if in.file != "" {
				return cobra.NoArgs(cmd, args)
			}
			return oneID(cmd, args)
		},
		ValidArgsFunction: a.completeIDs,
		RunE:              in.run,
	}
	f := cmd.Flags()
	f.StringVar(&in.file, "file", "", "file that export has made; needs no repository, but --root, unless it makes a new one")
	f.StringVarP(&in.output, "output", "o", "", "file for the signatures, which must not exist yet (default: that of --file with .signatures at its end)")
	f.StringVar(&in.rootFile, "root", "", "pinned root metadata, to verify what is published against (default: the repository's first root is taken at its word)")
	f.BoolVarP(&in.yes, "yes", "y", false, "do not ask; for scripts, and for changes that were read before with pending show")
	in.dryRun = cmd.Flags().Bool("dry-run", false, "show the change, and sign nothing")
	return cmd
}

func (in *signCommand) run(cmd *cobra.Command, args []string) error {
	if in.file != "" {
		return in.offline(cmd)
	}
	ctx := cmd.Context()
	if in.output != "" {
		return cli.Usagef("--output goes with --file only: the signatures of change %s go to the repository", args[0])
	}
	s, err := in.openStore(ctx)
	if err != nil {
		return err
	}
	ring, root, err := in.keysAndRoot(ctx)
	if err != nil {
		return err
	}
	r := repo.Open(s, repo.Config{Keys: keysOf(ring), Root: root, By: whoAmI()})
	p, err := r.Pending(ctx, args[0])
	if err != nil {
		return err
	}
	result, err := in.sign(cmd, r, p, ring)
	if err != nil || *in.dryRun {
		return err
	}
	if result.Change, err = r.Pending(ctx, p.ID); err != nil {
		return err
	}
	return cli.Print(cmd, result, func(w io.Writer) error { return printSigned(w, result) })
}

func (in *signCommand) keysAndRoot(ctx context.Context) (*signing.Keyring, []byte, error) {
	ring, err := in.openKeys(ctx)
	if err != nil {
		return nil, nil, err
	}
	root, err := readRoot(in.rootFile)
	return ring, root, err
}

// offline signs what a file holds.
func (in *signCommand) offline(cmd *cobra.Command) error {
	ctx := cmd.Context()
	b, err := readBundle(cmd, in.file)
	if err != nil {
		return err
	}
	if in.rootFile == "" && !b.Makes() {
		return cli.WithHint(cli.Usagef("--file needs --root: only from a root that was pinned before can a file be verified"),
			"take the root.json that the machines were enrolled with")
	}
	if in.output == "" {
		in.output = in.file + ".signatures"
	}
	if _, err := os.Lstat(in.output); err == nil && !*in.dryRun {
		return fmt.Errorf("write signatures: %s: %w", in.output, fs.ErrExist)
	}
	ring, root, err := in.keysAndRoot(ctx)
	if err != nil {
		return err
	}
	r, err := repo.OpenBundle(b, repo.Config{Keys: keysOf(ring), Root: root, By: whoAmI()})
	if err != nil {
		return fmt.Errorf("%s: %w", in.file, err)
	}
	p, err := r.Pending(ctx, b.ID)
	if err != nil {
		return fmt.Errorf("%s: %w", in.file, err)
	}
	result, err := in.sign(cmd, r, p, ring)
	if err != nil || *in.dryRun {
		return err
	}
	if err := writeBundle(in.output, r.Signatures()); err != nil {
		return fmt.Errorf("write signatures: %w", err)
	}
	if result.Change, err = r.Pending(ctx, p.ID); err != nil {
		return err
	}
	result.Output = in.output
	return cli.Print(cmd, result, func(w io.Writer) error {
		for _, a := range result.Added {
			fmt.Fprintf(w, "Signed %s of change %s with key %s\n", a.Role, p.ID, signing.Fingerprint(a.KeyID))
		}
		_, err := fmt.Fprintf(w, "Next: where the repository is: patchkeep import %s\n", in.output)
		return err
	})
}

// sign shows the change, asks, and signs.
func (in *signCommand) sign(cmd *cobra.Command, r *repo.Repository, p *repo.Pending, ring *signing.Keyring) (*signed, error) {
	if *in.dryRun {
		return nil, cli.Print(cmd, &signed{Change: p, Added: []repo.PendingSignature{}, DryRun: true}, func(w io.Writer) error {
			if err := printPending(w, p, ring); err != nil {
				return err
			}
			_, err := fmt.Fprintln(w, "\nNothing was signed.")
			return err
		})
	}
	if err := printPending(cmd.ErrOrStderr(), p, ring); err != nil {
		return nil, err
	}
	if err := p.Open(); err != nil {
		return nil, err
	}
	if !in.yes {
		if err := confirm(cmd.Context(), cmd, "Sign this?"); err != nil {
			return nil, err
		}
	}
	added, err := r.SignPending(cmd.Context(), p)
	if err != nil {
		return nil, err
	}
	return &signed{Change: p, Added: added}, nil
}

func printSigned(w io.Writer, s *signed) error {
	for _, a := range s.Added {
		fmt.Fprintf(w, "Signed %s of change %s with key %s\n", a.Role, s.Change.ID, signing.Fingerprint(a.KeyID))
	}
	if s.Change.Complete() {
		_, err := fmt.Fprintf(w, "All signatures are there.\nNext: patchkeep publish %s   (needs the keys of snapshot and timestamp)\n", s.Change.ID)
		return err
	}
	for _, r := range s.Change.Roles {
		if r.Missing > 0 {
			fmt.Fprintf(w, "%s still needs %d more signature(s)\n", r.Role, r.Missing)
		}
	}
	return nil
}

func readRoot(file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const most = 1 << 20
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && len(data) > most {
		err = fmt.Errorf("larger than %d bytes", most)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return data, nil
}

// confirm asks the person at the terminal. Where there is none, nothing is
// signed without --yes.
func confirm(ctx context.Context, cmd *cobra.Command, question string) error {
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return cli.WithHint(cli.Usagef("nobody can be asked here, so nothing was signed"), "read the change, and use --yes")
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "\n%s [y/N] ", question)
	answer := make(chan string, 1)
	go func() { // left behind if ctx ends first; then the process does too
		line, _ := bufio.NewReader(io.LimitReader(in, 100)).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case a := <-answer:
		if a == "y" || a == "yes" {
			return nil
		}
		return cli.Exit(fmt.Errorf("nothing was signed"), cli.Failure)
	case <-ctx.Done():
		return ctx.Err()
	}
}
