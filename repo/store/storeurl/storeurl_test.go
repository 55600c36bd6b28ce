package storeurl

import (
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/store/dirstore"
	"github.com/patchkeep/patchkeep/repo/store/s3store"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		ref  string
		want Ref
	}{
		{"repo", Ref{Dir: "repo"}},
		{"./a b/%20", Ref{Dir: "./a b/%20"}},
		{"/srv/repo", Ref{Dir: "/srv/repo"}},
		{"../repo?x=1#y", Ref{Dir: "../repo?x=1#y"}},
		{`C:\repo`, Ref{Dir: `C:\repo`}},
		{"C:/repo", Ref{Dir: "C:/repo"}},
		{"release:2", Ref{Dir: "release:2"}},
		{"file:///srv/a%20b%3F", Ref{Dir: filepath.FromSlash("/srv/a b?")}},
		{"FILE://localhost/srv", Ref{Dir: filepath.FromSlash("/srv")}},
		{"s3://bucket", Ref{S3: s3store.Config{Bucket: "bucket"}}},
		{"S3://bucket/", Ref{S3: s3store.Config{Bucket: "bucket"}}},
		{"s3://my-bucket.x/a/b%20c/", Ref{S3: s3store.Config{Bucket: "my-bucket.x", Prefix: "a/b c"}}},
		{"s3://bucket/p?endpoint=127.0.0.1:9000&insecure=true&region=us-east-1&path_style=true", Ref{S3: s3store.Config{
			Bucket: "bucket", Prefix: "p", Endpoint: "127.0.0.1:9000", Insecure: true, Region: "us-east-1", PathStyle: new(true),
		}}},
		{"s3://bucket?endpoint=s3.example.org&insecure=false&path_style=0", Ref{S3: s3store.Config{Bucket: "bucket", Endpoint: "s3.example.org", PathStyle: new(false)}}},
		{"s3://bucket?endpoint=[::1]:9000", Ref{S3: s3store.Config{Bucket: "bucket", Endpoint: "[::1]:9000"}}},
	} {
		got, err := Parse(c.ref)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("Parse(%q) = %+v, %v", c.ref, got, err)
		}
		again, err := Parse(got.String())
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("Parse(%q) = %+v, %v, not %+v", got.String(), again, err, got)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	const secret = "wJalrXUtnFEMI"
	for _, c := range []struct{ ref, say string }{
		{"", "empty"},
		{"a\x00b", "control"},
		{"a\nb", "control"},
		{strings.Repeat("a", maxRef+1), "longer"},
		{"http://example.org/repo", "HTTP"},
		{"https://u:" + secret + "@example.org/repo", "HTTP"},
		{"ftp://u:" + secret + "@example.org/repo", "ftp"},
		{"s3:bucket", "two slashes"},
		{"file:repo", "two slashes"},
		{"file://host/srv", "no host"},
		{"file:///srv?x=1", "no query"},
		{"file:///srv#x", "no query"},
		{"file://", "path"},
		{"file:///%zz" + secret, "not a valid URL"},
		{"s3://", "bucket name"},
		{"s3://Bucket", "bucket name"},
		{"s3://a", "bucket name"},
		{"s3://bucket:9000/x", "endpoint=host:port"},
		{"s3://AKIA:" + secret + "@bucket/x", "AWS_ACCESS_KEY_ID"},
		{"s3://AKIA:" + secret + "/x@bucket/x", "AWS_ACCESS_KEY_ID"},
		{"s3://bucket?access_key=" + secret, "AWS_ACCESS_KEY_ID"},
		{"s3://bucket?X-Amz-Signature=" + secret, "AWS_ACCESS_KEY_ID"},
		{"s3://bucket?endpoint=a:" + secret + "@host", "AWS_ACCESS_KEY_ID"},
		{"s3://bucket?endpont=x", "not known"},
		{"s3://bucket?endpoint=http://host:9000", "without a scheme"},
		{"s3://bucket?endpoint=host:", "host:port"},
		{"s3://bucket?endpoint=host:99999", "host:port"},
		{"s3://bucket?endpoint=host/path", "host:port"},
		{"s3://bucket?endpoint=[::1", "host:port"},
		{"s3://bucket?endpoint=", "one value"},
		{"s3://bucket?region=a&region=b", "one value"},
		{"s3://bucket?region=a/b", "region"},
		{"s3://bucket?insecure=maybe&endpoint=h", "true or false"},
		{"s3://bucket?insecure=true", "endpoint"},
		{"s3://bucket?a=%zz", "query"},
		{"s3://bucket/x#y", "fragment"},
	} {
		_, err := Parse(c.ref)
		if err == nil || !strings.Contains(err.Error(), c.say) || strings.Contains(err.Error(), secret) {
			t.Errorf("Parse(%.60q): %v; want %q", c.ref, err, c.say)
		}
	}
	for _, ref := range []string{"s3://bucket/../x", "s3://bucket//x", `s3://bucket/a\b`, "s3://bucket/.patchkeep", "s3://bucket/a%00", "s3://bucket/%2e%2e/x"} {
		if _, err := Parse(ref); !errors.Is(err, layout.ErrBadName) {
			t.Errorf("Parse(%q): %v", ref, err)
		}
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(t.Context(), dir)
	if _, ok := s.(*dirstore.Store); !ok || err != nil || s.String() != dir {
		t.Errorf("%T, %v", s, err)
	}
	const ref = "s3://bucket/p?endpoint=127.0.0.1%3A1&insecure=true"
	t.Setenv("AWS_SECRET_ACCESS_KEY", "not-to-be-shown")
	s, err = Open(t.Context(), ref)
	if _, ok := s.(*s3store.Store); !ok || err != nil || s.String() != ref {
		t.Errorf("%T, %v, %v", s, s, err)
	}
	if _, err := Open(t.Context(), "gopher://x"); err == nil {
		t.Error("no error")
	}
}

// FuzzParse: no panic, and what is accepted is read the same from its String.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"repo", `C:\x`, "file:///a%20b", "file:///%010", "s3://bucket/a/b?endpoint=h:1&insecure=true&region=r&path_style=false", "s3://u:p@b", "https://x", "s3://b?endpoint=[::1]:9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		r, err := Parse(ref)
		if err != nil {
			return
		}
		if (r.Dir == "") == (r.S3.Bucket == "") {
			t.Fatalf("Parse(%q) = %+v", ref, r)
		}
		again, err := Parse(r.String())
		if err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("Parse(%q) = %+v, but of its String %q: %+v, %v", ref, r, r.String(), again, err)
		}
	})
}
