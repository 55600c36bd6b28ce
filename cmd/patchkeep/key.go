package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/signing"
)

func newKey(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "key", Short: "Make, show and import keys"}
	cmd.AddCommand(newKeyNew(a), newKeyShow(a), newKeyImport(a))
	return cmd
}

func newKeyNew(a *app) *cobra.Command {
	var algorithm string
	cmd := &cobra.Command{
		Use:   "new NAME",
		Short: "Make a key file, encrypted with a password",
		Long: `new writes NAME.key, encrypted, and NAME.pub to the first directory of --keys.
The password comes from a prompt, from PATCHKEEP_KEY_PASSWORD or from
--password-fd; never from the command line.`,
		Example: `  patchkeep key new ring-servers-anna --keys ./keys`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			alg, err := signing.ParseAlgorithm(algorithm)
			if err != nil {
				return &cli.UsageError{Err: err}
			}
			ring, err := a.keyDir(cmd, args[0])
			if err != nil {
				return err
			}
			info, err := ring.Create(cmd.Context(), args[0], alg)
			if err != nil {
				return err
			}
			return printKeys(cmd, []signing.KeyInfo{info})
		},
	}
	cmd.Flags().StringVar(&algorithm, "algorithm", "ed25519", "ed25519 or ecdsa-p256")
	return cmd
}

func newKeyShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show [FILE…]",
		Short: "Show keys: name, algorithm, id, fingerprint",
		Long:  `show describes the given key files, or else all keys of --keys. It unlocks nothing.`,
		Example: `  patchkeep key show --keys ./keys
  patchkeep key show anna.pub`,
		RunE: func(cmd *cobra.Command, args []string) error {
			keys := []signing.KeyInfo{}
			for _, file := range args {
				info, err := signing.Describe(file)
				if err != nil {
					return err
				}
				keys = append(keys, info)
			}
			if len(args) == 0 {
				if len(a.keyRefs) == 0 {
					return cli.Usagef("name key files, or directories of them with --keys")
				}
				ring, err := a.openKeys(cmd.Context())
				if err != nil {
					return err
				}
				keys = append(keys, ring.Keys()...)
			}
			return printKeys(cmd, keys)
		},
	}
}

func newKeyImport(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "import NAME FILE",
		Short:   "Take over a private key in PEM: PKCS#8, SEC 1, cosign or sigstore",
		Example: `  patchkeep key import release cosign.key --keys ./keys`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ring, err := a.keyDir(cmd, args[0])
			if err != nil {
				return err
			}
			f, err := os.Open(args[1])
			if err != nil {
				return err
			}
			defer f.Close()
			const most = 64 << 10
			data, err := io.ReadAll(io.LimitReader(f, most+1))
			if err != nil {
				return fmt.Errorf("read %s: %w", args[1], err)
			}
			if len(data) > most {
				return fmt.Errorf("read %s: %w: larger than %d bytes", args[1], signing.ErrKey, most)
			}
			info, err := ring.Import(cmd.Context(), args[0], data)
			if err != nil {
				return err
			}
			return printKeys(cmd, []signing.KeyInfo{info})
		},
	}
}

// keyDir opens the keyring that a new key is to be written to.
func (a *app) keyDir(cmd *cobra.Command, name string) (*signing.Keyring, error) {
	if err := layout.CheckName(name); err != nil {
		return nil, &cli.UsageError{Err: err}
	}
	if len(a.keyRefs) == 0 {
		return nil, cli.Usagef("name the directory for the key with --keys DIR")
	}
	return a.openKeys(cmd.Context())
}

func printKeys(cmd *cobra.Command, keys []signing.KeyInfo) error {
	return cli.Print(cmd, keys, func(w io.Writer) error {
		t := cli.Table(w)
		fmt.Fprintln(t, "NAME\tALGORITHM\tFINGERPRINT\tFILE")
		for _, k := range keys {
			id := k.Fingerprint()
			if id == "" {
				id = "(locked: no .pub beside it)"
			}
			if k.Example {
				id += " (example key)"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", k.Name, k.Algorithm, id, k.Source)
		}
		return t.Flush()
	})
}
