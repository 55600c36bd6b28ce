// Package keysexample holds the key files of the demo. Their password is
// published in the README beside them, so everything but the demo refuses them.
package keysexample

import (
	"embed"
	"iter"
)

//go:embed *.pub
var files embed.FS

// PublicKeys gives the file name and PEM of every example public key. The
// private ones are not part of any program.
func PublicKeys() iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		entries, err := files.ReadDir(".")
		if err != nil {
			panic(err) // an embedded directory can always be read
		}
		for _, e := range entries {
			data, err := files.ReadFile(e.Name())
			if err != nil {
				panic(err)
			}
			if !yield(e.Name(), data) {
				return
			}
		}
	}
}
