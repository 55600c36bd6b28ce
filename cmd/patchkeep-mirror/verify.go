package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"
	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/mirror/cache"
)

// verdict is what verify prints.
type verdict struct {
	cache.Report
	Files []badFile `json:"files"`
}

// badFile is a damaged object, or a file that is not the cache's.
type badFile struct {
	File    string `json:"file"` // relative to the cache's directory
	Damaged bool   `json:"damaged"`
	Error   string `json:"error"`
}

func newVerify() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "verify --cache DIR",
		Short: "Read a stopped mirror's cache and look for damage",
		Long: `verify hashes every object in the cache of a mirror that does not run, and names
those that are damaged. It changes nothing. It ends with 0 if all of them are
sound, 10 if one is not, and 12 if a mirror uses the directory.

A running mirror looks for damage by itself: see serve --scrub.`,
		Example: `  patchkeep-mirror verify --cache /var/cache/patchkeep
  patchkeep-mirror verify --cache ./cache --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return verify(cmd, dir) },
	}
	cmd.Flags().StringVar(&dir, "cache", "", "the mirror's directory (required)")
	_ = cmd.MarkFlagRequired("cache") // it is there
	return cmd
}

func verify(cmd *cobra.Command, dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "cas")); err != nil { // before a lock file is made there
		return fmt.Errorf("verify cache: %w", err)
	}
	lock := flock.New(filepath.Join(dir, "lock"))
	switch ok, err := lock.TryLock(); {
	case err != nil:
		return fmt.Errorf("verify cache: lock %s: %w", dir, err)
	case !ok:
		return cli.WithHint(fmt.Errorf("verify cache: %s is %w", dir, mirror.ErrLocked),
			"stop the mirror first; while it runs, it can look for damage by itself: serve --scrub")
	}
	defer lock.Unlock()
	v := verdict{Files: []badFile{}}
	var err error
	v.Report, err = cache.Check(cmd.Context(), dir, func(file string, err error) {
		v.Files = append(v.Files, badFile{file, !errors.Is(err, cache.ErrStray), err.Error()})
	})
	if err != nil {
		return err
	}
	if err := cli.Print(cmd, v, v.print); err != nil {
		return err
	}
	if v.Damaged > 0 {
		return cli.Exit(cli.WithHint(fmt.Errorf("verify cache: %d damaged objects in %s", v.Damaged, dir),
			"delete the files named; the mirror fetches them again when they are asked for"), cli.NotTrusted)
	}
	return nil
}

func (v *verdict) print(w io.Writer) error {
	t := cli.Table(w)
	if len(v.Files) > 0 {
		fmt.Fprintf(t, "FILE\tSTATE\tREASON\n")
		for _, f := range v.Files {
			state := "ignored"
			if f.Damaged {
				state = "damaged"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\n", clean(f.File), state, clean(f.Error))
		}
		fmt.Fprintln(t)
	}
	fmt.Fprintf(t, "Objects:\t%d sound, %s; %d damaged\n", v.Objects, cli.Bytes(v.Bytes), v.Damaged)
	fmt.Fprintf(t, "Parts:\t%d, verified when they are gone on with\n", v.Parts)
	return t.Flush()
}
