package s3store_test

import (
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/repo/store"
	"github.com/patchkeep/patchkeep/repo/store/s3store"
	"github.com/patchkeep/patchkeep/repo/store/storetest"
	"github.com/patchkeep/patchkeep/repo/store/storetest/s3server"
)

func config(srv *s3server.Server, prefix string) s3store.Config {
	return s3store.Config{Bucket: srv.Bucket, Prefix: prefix, Endpoint: srv.Endpoint, Insecure: true, Region: srv.Region}
}

func mustNew(t *testing.T, c s3store.Config) *s3store.Store {
	t.Helper()
	s, err := s3store.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	srv := s3server.Start(t)
	storetest.Run(t, func(t *testing.T) store.Store {
		return mustNew(t, config(srv, strings.NewReplacer(" ", "-").Replace("with prefix/"+t.Name())))
	})
}

func TestStoreWithoutPrefix(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return mustNew(t, config(s3server.Start(t), "")) })
}
