package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/signing"
)

func newExport(a *app) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "export ID",
		Short: "Write a waiting change to a file, for a machine without network",
		Long: `export writes a change, and all that it takes to verify and to read it, to one
file. On a machine without network: patchkeep sign --file FILE --root root.json.
The file holds nothing secret, and nobody has to trust it.`,
		Example: `  patchkeep export 20261124-6f1d3c0a9be2447a1c05d8e27b3a9f10 > change.json
  patchkeep export 20261124-6f1d3c0a9be2447a1c05d8e27b3a9f10 --output /media/stick/change.json`,
		Args:              oneID,
		ValidArgsFunction: a.completeIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, _, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			b, err := r.ExportPending(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if output == "" || output == "-" {
				_, err = b.WriteTo(cmd.OutOrStdout())
				return err
			}
			return writeBundle(output, b)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "file to write, which must not exist yet; stdout if not given")
	return cmd
}

func newImport(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import FILE|-",
		Short: "Bring signatures, or a whole change, from a file into the repository",
		Long: `import takes the signatures that sign --file has written, or a change that export
has written elsewhere. All of it is verified before anything is written; a file
with one signature that does not count is refused as a whole.`,
		Example: `  patchkeep import change.json.signatures`,
		Args:    cobra.ExactArgs(1),
	}
	dryRun := cmd.Flags().Bool("dry-run", false, "verify the file, and write nothing")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		b, err := readBundle(cmd, args[0])
		if err != nil {
			return err
		}
		r, _, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		result, err := r.ImportPending(cmd.Context(), b, *dryRun)
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		return cli.Print(cmd, result, func(w io.Writer) error { return printImported(w, result) })
	}
	return cmd
}

func printImported(w io.Writer, in *repo.Imported) error {
	p := in.Change
	verb := "Brought"
	if in.DryRun {
		verb = "Would bring (nothing was written)"
	}
	if in.Whole {
		fmt.Fprintf(w, "%s: change %s: %s\n", verb, p.ID, p.Title)
	}
	for _, s := range in.Added {
		fmt.Fprintf(w, "%s: signature of %s for change %s by key %s\n", verb, s.Role, p.ID, signing.Fingerprint(s.KeyID))
	}
	for _, s := range in.Known {
		fmt.Fprintf(w, "Was there already: signature of %s by key %s\n", s.Role, signing.Fingerprint(s.KeyID))
	}
	if in.DryRun {
		return nil
	}
	return printSigned(w, &signed{Change: p})
}

// readBundle reads a file; "-" is stdin.
func readBundle(cmd *cobra.Command, name string) (*repo.Bundle, error) {
	if name == "-" {
		return repo.ReadBundle(bufio.NewReader(cmd.InOrStdin()))
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := repo.ReadBundle(bufio.NewReader(f))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

// writeBundle writes a file that is not there yet, whole or not at all.
func writeBundle(name string, b *repo.Bundle) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", name, fs.ErrExist)
	}
	if err != nil {
		return err
	}
	_, err = b.WriteTo(f)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		os.Remove(name)
	}
	return err
}
