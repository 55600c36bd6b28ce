package dirstore

import (
	"path/filepath"
	"testing"

	"github.com/patchkeep/patchkeep/repo/store"
	"github.com/patchkeep/patchkeep/repo/store/storetest"
)

func mustNew(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return mustNew(t, filepath.Join(t.TempDir(), "new", "repo")) })
}
