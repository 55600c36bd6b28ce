package repo_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"

	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/store/storetest/s3server"
)

// TestStockClientFetches has go-tuf's own client, as anyone has it, fetch a
// patch straight from the directory behind a plain web server, and straight
// from the bucket.
func TestStockClientFetches(t *testing.T) {
	t.Run("directory", func(t *testing.T) {
		f := newFixture(t)
		srv := httptest.NewServer(http.FileServer(http.Dir(f.dir)))
		t.Cleanup(srv.Close)
		stockClientFetches(t, f, srv.URL)
	})
	t.Run("bucket", func(t *testing.T) {
		srv := s3server.Start(t)
		c, err := minio.New(srv.Endpoint, &minio.Options{Creds: credentials.NewStaticV4(srv.AccessKey, srv.SecretKey, ""), Region: srv.Region})
		if err != nil {
			t.Fatal(err)
		}
		public := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":["s3:GetObject"],"Resource":["arn:aws:s3:::` + srv.Bucket + `/*"]}]}`
		if err := c.SetBucketPolicy(t.Context(), srv.Bucket, public); err != nil {
			t.Fatal(err)
		}
		f := newFixtureIn(t, srv.Ref("prod"))
		stockClientFetches(t, f, "http://"+srv.Endpoint+"/"+srv.Bucket+"/prod")
	})
}

func stockClientFetches(t *testing.T, f *fixture, base string) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 400_000)
	for _, name := range []string{"hello.bin", "hello world.msi", "größe.deb"} {
		p := newPatch("1." + map[string]string{"hello.bin": "0", "hello world.msi": "1", "größe.deb": "2"}[name])
		pub, _, err := f.repo.AddPatch(t.Context(), p, name, bytes.NewReader(content), int64(len(content)), repo.AddOptions{})
		if err != nil {
			t.Fatal(err)
		}
		root, err := f.repo.Root(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := config.New(base+"/metadata", root)
		if err != nil {
			t.Fatal(err)
		}
		cfg.LocalMetadataDir, cfg.LocalTargetsDir, cfg.RemoteTargetsURL = t.TempDir(), t.TempDir(), base+"/targets"
		up, err := updater.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := up.Refresh(); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{pub.Path, pub.Path + ".blocks", "rings/users/plan.json", "halts/halts.json"} {
			info, err := up.GetTargetInfo(path)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			file, _, err := up.DownloadTarget(info, "", "")
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			if got, err := os.ReadFile(file); err != nil || path == pub.Path && !bytes.Equal(got, content) {
				t.Errorf("%s: other content (%v)", path, err)
			}
		}
	}
}
