package s3store_test

import (
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

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
	s := mustNew(t, config(s3server.Start(t), ""))
	if err := s.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	const name = "a/b c%20.json"
	if _, err := s.Create(t.Context(), name, strings.NewReader("x"), 1, store.Options{}); err != nil {
		t.Fatal(err)
	}
	var got []string
	if err := s.List(t.Context(), "", func(i store.Info) error { got = append(got, i.Name); return nil }); err != nil || !slices.Equal(got, []string{name}) {
		t.Errorf("List = %q, %v", got, err)
	}
}

// TestOptions: what others read over HTTP, CDNs for one, learn how to treat it.
func TestOptions(t *testing.T) {
	srv := s3server.Start(t)
	s := mustNew(t, config(srv, "p"))
	client, err := minio.New(srv.Endpoint, &minio.Options{Creds: credentials.NewStaticV4(srv.AccessKey, srv.SecretKey, ""), Region: srv.Region})
	if err != nil {
		t.Fatal(err)
	}
	opt := store.Options{ContentType: "application/json", CacheControl: "no-cache"}
	if _, err := s.Create(t.Context(), "small", strings.NewReader("x"), 1, opt); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), "large", io.LimitReader(zero{}, 6<<20), 6<<20, opt); err != nil {
		t.Fatal(err)
	}
	st, err := s.Stage(t.Context(), io.LimitReader(zero{}, 6<<20), -1, opt)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Commit(t.Context(), "staged"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Replace(t.Context(), "replaced", []byte("x"), "", opt); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"small", "large", "staged", "replaced"} {
		obj, err := client.StatObject(t.Context(), srv.Bucket, "p/"+name, minio.StatObjectOptions{Checksum: true})
		if err != nil || obj.ContentType != opt.ContentType || obj.Metadata.Get("Cache-Control") != opt.CacheControl {
			t.Errorf("%s: %q, %q, %v", name, obj.ContentType, obj.Metadata.Get("Cache-Control"), err)
		}
		if name != "staged" && obj.ChecksumSHA256 == "" {
			t.Errorf("%s: the service keeps no checksum", name)
		}
	}
}
