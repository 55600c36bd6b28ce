package tuf_test

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
)

// Path patterns of TUF 1.0.34 §4.5: * ? and […] match within one part.
func TestPathPatterns(t *testing.T) {
	tests := []struct {
		pattern, path string
		want          bool
	}{
		{"*", "a", true},
		{"*", "a/b", false},
		{"*/*", "a/b", true},
		{"*/*", "a", false},
		{"a/b", "a/b", true},
		{"a/b", "a/c", false},
		{"a/*.tgz", "a/x.tgz", true},
		{"a/*.tgz", "a/x.tar", false},
		{"?", "a", true},
		{"?", "ab", false},
		{"a?b", "a/b", false},
		{"a[/]b", "a/b", false},
		{"a[^x]b", "a/b", false},
		{"[ab]", "b", true},
		{"[!ab]", "b", false},
		{"[!ab]", "c", true},
		{"[^ab]", "c", true},
		{"[a-c]", "b", true},
		{"[", "[", false},
		{"*.tgz", ".tgz", true},
		{"", "a", false},
		{"/a", "a", false},
		{"größe/*", "größe/x", true},
		{"patches/p/*/*/*", "patches/p/1.0/any/f.deb", true},
		{"patches/p/*/*/*", "patches/p/1.0/f.deb", false},
	}
	for _, tt := range tests {
		t.Run(tt.pattern+" "+tt.path, func(t *testing.T) {
			repo := tuftest.New()
			repo.Delegate("targets", tuftest.Delegation{Role: "A", Paths: []string{"never", tt.pattern}})
			repo.AddArtifact("A", tt.path, []byte("x"))
			repo.PublishAll()
			_, err := inMemory(t, repo).Target(t.Context(), tt.path)
			if tt.want && err != nil || !tt.want && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%v", err)
			}
		})
	}
}

// go-tuf compares these with base64; the specification says hex.
func TestPathHashPrefixes(t *testing.T) {
	sum := fmt.Sprintf("%x", tuftest.Hash("sha256", []byte("some/path")))
	for prefix, want := range map[string]bool{sum[:1]: true, sum[:2]: true, sum[:7]: true, sum: true, sum + "0": false, "zz": false, sum[1:5]: false} {
		repo := tuftest.New()
		repo.Delegate("targets", tuftest.Delegation{Role: "A", Prefixes: []string{"none", prefix}})
		repo.AddArtifact("A", "some/path", []byte("x"))
		repo.PublishAll()
		_, err := inMemory(t, repo).Target(t.Context(), "some/path")
		if want && err != nil || !want && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", prefix, err)
		}
	}
}
