package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
)

const maxConfig = 1 << 20 // bytes

// settings are where options come from: the command line, then the environment,
// then the file, which is read again on reload, then the defaults.
type settings struct {
	given map[string]*pflag.Flag // of the command line and the environment
	file  string                 // may be empty
}

// settingsOf takes over what the flags of a command line were set to.
func settingsOf(flags *pflag.FlagSet, file string) *settings {
	s := &settings{given: map[string]*pflag.Flag{}, file: file}
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed {
			s.given[f.Name] = f
		}
	})
	return s
}

// read puts the options together.
func (s *settings) read() (*serveOptions, error) {
	o := &serveOptions{}
	flags := o.flags()
	for name, f := range s.given {
		if err := set(flags.Lookup(name), values(f)); err != nil {
			return nil, err
		}
	}
	if s.file == "" {
		return o, nil
	}
	data, err := readFile(s.file, maxConfig)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if err := s.parse(data, flags); err != nil {
		return nil, cli.WithHint(&cli.UsageError{Err: err}, "the file has the names of the flags without dashes; see patchkeep-mirror serve --help")
	}
	return o, nil
}

// parse applies a file: a mapping of names to values, or to lists of them for
// what may be repeated. Errors name the line.
func (s *settings) parse(data []byte, flags *pflag.FlagSet) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("configuration %s: %w", s.file, err)
	}
	if len(doc.Content) == 0 {
		return nil // empty
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return fmt.Errorf("configuration %s: want lines such as `cache-size: 20GiB`", s.file)
	}
	seen := map[string]int{}
	for i := 0; i < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		f := flags.Lookup(key.Value)
		var err error
		switch {
		case f == nil || f.Name == "config" || f.Name == "check":
			err = errors.New("there is no such option in a file")
		case seen[f.Name] > 0:
			err = fmt.Errorf("it stands in line %d already", seen[f.Name])
		default:
			var list []string
			if list, err = scalars(value); err == nil && s.given[f.Name] == nil {
				err = set(f, list)
			}
		}
		if err != nil {
			return fmt.Errorf("configuration %s: line %d: %s: %w", s.file, key.Line, key.Value, err)
		}
		seen[f.Name] = key.Line
	}
	return nil
}

// scalars are a value, or a list of them. Aliases are nobody's need here.
func scalars(n *yaml.Node) ([]string, error) {
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag != "!!null":
		return []string{n.Value}, nil
	case n.Kind != yaml.SequenceNode:
		return nil, errors.New("want a value")
	}
	out := []string{}
	for _, item := range n.Content {
		if item.Kind != yaml.ScalarNode || item.Tag == "!!null" {
			return nil, errors.New("want a list of values")
		}
		out = append(out, item.Value)
	}
	return out, nil
}

// set gives a flag its value, or its values if it takes several.
func set(f *pflag.Flag, list []string) error {
	if many, ok := f.Value.(pflag.SliceValue); ok {
		return many.Replace(list)
	}
	if len(list) != 1 {
		return errors.New("want one value, not a list")
	}
	if err := f.Value.Set(list[0]); err != nil {
		return fmt.Errorf("%q is not a value for it: want %s", list[0], f.Value.Type())
	}
	return nil
}

// values are what set takes.
func values(f *pflag.Flag) []string {
	if many, ok := f.Value.(pflag.SliceValue); ok {
		return many.GetSlice()
	}
	return []string{f.Value.String()}
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
		a, b := values(f), values(wanted.all.Lookup(f.Name))
		switched := slices.Contains(switches, f.Name) && (a[0] == "") != (b[0] == "")
		if !slices.Equal(a, b) && (switched || !slices.Contains(reloadable, f.Name)) {
			names = append(names, f.Name)
		}
	})
	return names
}
