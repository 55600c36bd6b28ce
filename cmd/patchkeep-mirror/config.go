package main

import (
	"errors"
	"slices"

	"github.com/spf13/pflag"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/cmd/internal/settings"
)

// readOptions puts the options together; the file is read again on reload.
func readOptions(s *settings.Source) (*serveOptions, error) {
	o := &serveOptions{}
	err := s.Apply(o.flags())
	if errors.Is(err, settings.ErrFile) {
		err = cli.WithHint(&cli.UsageError{Err: err}, "the file has the names of the flags without dashes; see patchkeep-mirror serve --help")
	}
	if err != nil {
		return nil, err
	}
	return o, nil
}

// reloadable options change while the mirror runs; all others need a restart.
var reloadable = []string{
	"limit", "tls-cert", "tls-key", "client-ca", "token-file", "trusted-proxy",
	"client-requests", "client-burst", "client-connections", "client-rate", "max-connections",
	"upstream-token-file", "upstream-cert", "upstream-key", "grace",
}

// switches are reloadable too, but cannot be turned on or off.
var switches = []string{"tls-cert", "upstream-token-file"}

// needRestart names the options that differ and are not taken over.
func needRestart(running, wanted *serveOptions) (names []string) {
	running.all.VisitAll(func(f *pflag.Flag) {
		a, b := settings.Values(f), settings.Values(wanted.all.Lookup(f.Name))
		switched := slices.Contains(switches, f.Name) && (a[0] == "") != (b[0] == "")
		if !slices.Equal(a, b) && (switched || !slices.Contains(reloadable, f.Name)) {
			names = append(names, f.Name)
		}
	})
	return names
}
