// Package settings puts a program's options together: the command line goes over
// the environment, that over a file, and that over the defaults. The file is YAML:
// the names of the flags without dashes, and their values; what may be repeated
// takes a list. A name that there is no flag for is an error, with its line.
package settings

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

const maxFile = 1 << 20 // bytes

// Source is where options come from.
type Source struct {
	given map[string]*pflag.Flag // of the command line and the environment
	file  string
	not   []string // names of flags that do not stand in a file
}

// Of takes over what the flags of a command line, with the environment, were
// set to. file may be empty; not are the flags that it must not set.
func Of(flags *pflag.FlagSet, file string, not ...string) *Source {
	s := &Source{given: map[string]*pflag.Flag{}, file: file, not: not}
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed {
			s.given[f.Name] = f
		}
	})
	return s
}

// ErrFile is wrapped by errors about what stands in the file, not by those of
// reading it.
var ErrFile = errors.New("configuration")

// Apply sets fresh flags. Each call reads the file anew. Flags of the command
// line that are not among them are left alone.
func (s *Source) Apply(flags *pflag.FlagSet) error {
	for name, f := range s.given {
		if to := flags.Lookup(name); to != nil {
			if err := set(to, Values(f)); err != nil {
				return err
			}
		}
	}
	if s.file == "" {
		return nil
	}
	data, err := read(s.file)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	return s.parse(data, flags)
}

func read(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = errors.New("it is too large")
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}

// parse applies a file: a mapping of names to values, or to lists of them for
// what may be repeated. Errors name the line.
func (s *Source) parse(data []byte, flags *pflag.FlagSet) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("%w %s: %w", ErrFile, s.file, err)
	}
	if len(doc.Content) == 0 {
		return nil // empty
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return fmt.Errorf("%w %s: want lines such as `cache-size: 20GiB`", ErrFile, s.file)
	}
	seen := map[string]int{}
	for i := 0; i < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		f := flags.Lookup(key.Value)
		var err error
		switch {
		case f == nil || slices.Contains(s.not, f.Name):
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
			return fmt.Errorf("%w %s: line %d: %s: %w", ErrFile, s.file, key.Line, key.Value, err)
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

// Values are those of a flag: several if it takes several.
func Values(f *pflag.Flag) []string {
	if many, ok := f.Value.(pflag.SliceValue); ok {
		return many.GetSlice()
	}
	return []string{f.Value.String()}
}

// File is the name of the file; it may be empty.
func (s *Source) File() string { return s.file }
