package s3store_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/patchkeep/patchkeep/repo/store"
	"github.com/patchkeep/patchkeep/repo/store/s3store"
	"github.com/patchkeep/patchkeep/repo/store/storetest/s3server"
)

// each calls every method of the store, and check with its error.
func each(t *testing.T, s *s3store.Store, check func(method string, err error)) {
	t.Helper()
	ctx := t.Context()
	_, err := s.Stat(ctx, "x")
	check("Stat", err)
	_, _, err = s.Open(ctx, "x", 0)
	check("Open", err)
	check("List", s.List(ctx, "", func(store.Info) error { return nil }))
	_, err = s.Create(ctx, "x", strings.NewReader("x"), 1, store.Options{})
	check("Create", err)
	_, err = s.Create(ctx, "x", bytes.NewReader(make([]byte, 6<<20)), 6<<20, store.Options{})
	check("Create in parts", err)
	_, err = s.Replace(ctx, "x", []byte("x"), "0123", store.Options{})
	check("Replace", err)
	check("Probe", s.Probe(ctx))
}

// wantEach checks that every method fails with want, or if that is nil with
// none of the sentinels, and says what.
func wantEach(t *testing.T, s *s3store.Store, want error, say string, secrets ...string) {
	t.Helper()
	each(t, s, func(method string, err error) {
		t.Helper()
		switch {
		case err == nil || want != nil && !errors.Is(err, want):
			t.Errorf("%s: %v, want %v", method, err, want)
		case !strings.Contains(err.Error(), say):
			t.Errorf("%s: %v, want it to say %q", method, err, say)
		}
		for _, is := range []error{fs.ErrNotExist, store.ErrConflict, store.ErrDenied, store.ErrUnreachable, store.ErrUnsupported} {
			if is != want && errors.Is(err, is) {
				t.Errorf("%s: %v is %q as well", method, err, is)
			}
		}
		for _, secret := range secrets {
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("%s: %v shows a secret", method, err)
			}
		}
	})
}

func TestWrongSettings(t *testing.T) {
	srv := s3server.Start(t)
	t.Run("secret key", func(t *testing.T) {
		t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-key")
		wantEach(t, mustNew(t, config(srv, "")), store.ErrDenied, "", "wrong-secret-key", srv.SecretKey)
	})
	t.Run("access key", func(t *testing.T) {
		t.Setenv("AWS_ACCESS_KEY_ID", "nobody")
		wantEach(t, mustNew(t, config(srv, "")), store.ErrDenied, "", srv.SecretKey)
	})
	t.Run("no credentials", func(t *testing.T) {
		t.Setenv("AWS_ACCESS_KEY_ID", "")
		t.Setenv("AWS_SECRET_ACCESS_KEY", "")
		wantEach(t, mustNew(t, config(srv, "")), store.ErrDenied, "no AWS credentials")
	})
	t.Run("missing profile", func(t *testing.T) {
		t.Setenv("AWS_ACCESS_KEY_ID", "")
		t.Setenv("AWS_SECRET_ACCESS_KEY", "")
		t.Setenv("AWS_PROFILE", "release")
		wantEach(t, mustNew(t, config(srv, "")), store.ErrDenied, "profile release")
	})
	t.Run("bucket", func(t *testing.T) {
		c := config(srv, "")
		c.Bucket = "other-bucket"
		wantEach(t, mustNew(t, c), nil, `bucket "other-bucket" does not exist`)
	})
	t.Run("TLS to a plain port", func(t *testing.T) {
		c := config(srv, "")
		c.Insecure = false
		wantEach(t, mustNew(t, c), nil, "does not speak TLS")
	})
	t.Run("unreachable", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		c := config(srv, "")
		c.Endpoint = l.Addr().String()
		l.Close()
		s := mustNew(t, c)
		if _, err := s.Stat(t.Context(), "x"); !errors.Is(err, store.ErrUnreachable) || !strings.Contains(err.Error(), c.Endpoint) {
			t.Errorf("Stat: %v", err)
		}
		if err := s.Probe(t.Context()); !errors.Is(err, store.ErrUnreachable) {
			t.Errorf("Probe: %v", err)
		}
	})
}

// TestCredentialsFile: what the AWS tools read works here.
func TestCredentialsFile(t *testing.T) {
	srv := s3server.Start(t)
	file := filepath.Join(t.TempDir(), "credentials")
	content := "[release]\naws_access_key_id = " + srv.AccessKey + "\naws_secret_access_key = " + srv.SecretKey + "\n"
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	t.Setenv("AWS_PROFILE", "release")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	t.Setenv("AWS_ENDPOINT_URL_S3", "http://"+srv.Endpoint)
	t.Setenv("AWS_DEFAULT_REGION", srv.Region)
	if err := mustNew(t, s3store.Config{Bucket: srv.Bucket}).Probe(t.Context()); err != nil {
		t.Error(err)
	}
	t.Setenv("AWS_ENDPOINT_URL_S3", "http://user:password@"+srv.Endpoint)
	if _, err := s3store.New(t.Context(), s3store.Config{Bucket: srv.Bucket}); err == nil || strings.Contains(err.Error(), "password") {
		t.Errorf("New: %v", err)
	}
}

// TestRegionFound: without one the service is asked.
func TestRegionFound(t *testing.T) {
	c := config(s3server.Start(t), "")
	c.Region = ""
	if err := mustNew(t, c).Probe(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestTLS(t *testing.T) {
	f := new(fakeS3)
	c := startFake(t, f)
	srv := httptest.NewUnstartedServer(f)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes are to fail
	srv.StartTLS()
	t.Cleanup(srv.Close)
	c.Endpoint = srv.Listener.Addr().String()
	if _, err := mustNew(t, c).Stat(t.Context(), "x"); err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, store.ErrUnreachable) {
		t.Errorf("plain HTTP to a TLS port: %v", err)
	}
	c.Insecure = false
	if _, err := mustNew(t, c).Stat(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "is not trusted") || errors.Is(err, store.ErrUnreachable) {
		t.Errorf("unknown authority: %v", err)
	}
	bundle := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CA_BUNDLE", bundle)
	if err := mustNew(t, c).Probe(t.Context()); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{bundle + ".none", os.DevNull} {
		t.Setenv("AWS_CA_BUNDLE", bad)
		if _, err := s3store.New(t.Context(), c); err == nil {
			t.Errorf("AWS_CA_BUNDLE=%s is accepted", bad)
		}
	}
}

// TestProbeFindsPretenders: services that take the conditions and ignore them.
func TestProbeFindsPretenders(t *testing.T) {
	drop := func(method, header string) func(http.ResponseWriter, *http.Request) bool {
		return func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == method {
				r.Header.Del(header)
			}
			return false
		}
	}
	for _, c := range []struct {
		name   string
		before func(http.ResponseWriter, *http.Request) bool
		want   error
		say    string
	}{
		{"faithful", nil, nil, ""},
		{"PutObject, If-None-Match", drop(http.MethodPut, "If-None-Match"), store.ErrUnsupported, "PutObject ignores If-None-Match"},
		{"PutObject, If-Match", drop(http.MethodPut, "If-Match"), store.ErrUnsupported, "PutObject ignores If-Match"},
		{"CompleteMultipartUpload", drop(http.MethodPost, "If-None-Match"), store.ErrUnsupported, "CompleteMultipartUpload ignores If-None-Match"},
		{"not implemented", func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("If-None-Match") == "" {
				return false
			}
			s3Error(w, http.StatusNotImplemented, "NotImplemented", "A header you provided implies functionality that is not implemented")
			return true
		}, store.ErrUnsupported, "NotImplemented"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fakeS3{before: c.before}
			err := mustNew(t, startFake(t, f)).Probe(t.Context())
			if !errors.Is(err, c.want) || c.say != "" && !strings.Contains(err.Error(), c.say) {
				t.Errorf("Probe: %v", err)
			}
			if len(f.objects) != 0 || len(f.uploads) != 0 {
				t.Errorf("left: %v, %v", f.objects, f.uploads)
			}
		})
	}
}

// TestTruncated: a service, or a proxy before it, that sends less than it says.
func TestTruncated(t *testing.T) {
	f := &fakeS3{before: func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet {
			return false
		}
		w.Header().Set("Content-Length", "1000")
		w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
		if r.Header.Get("Range") != "" {
			w.Header().Set("Content-Range", "bytes 500-1499/1500")
			w.WriteHeader(http.StatusPartialContent)
		}
		w.Write(make([]byte, 400))
		return true
	}}
	s := mustNew(t, startFake(t, f))
	for _, offset := range []int64{0, 500} {
		rc, info, err := s.Open(t.Context(), "x", offset)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(rc)
		rc.Close()
		if len(got) != 400 || info.Size != 1000+offset || !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, store.ErrUnreachable) {
			t.Errorf("from %d: %d bytes of %d, %v", offset, len(got), info.Size, err)
		}
	}
	// A range that is not the one asked for is no answer.
	if _, _, err := s.Open(t.Context(), "x", 501); err == nil {
		t.Error("a wrong range is accepted")
	}
}

// TestLostAnswers: each write is done, and its first answer is lost. What is
// in the way of the second try is our own then.
func TestLostAnswers(t *testing.T) {
	var lose, loseComplete atomic.Bool
	f := &fakeS3{after: func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && lose.CompareAndSwap(true, false) ||
			r.Method == http.MethodPost && r.URL.Query().Has("uploadId") && loseComplete.CompareAndSwap(true, false) {
			s3Error(w, http.StatusServiceUnavailable, "SlowDown", "again")
			return true
		}
		return false
	}}
	s := mustNew(t, startFake(t, f))
	lose.Store(true)
	made, err := s.Create(t.Context(), "x", strings.NewReader("v1"), 2, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	lose.Store(true)
	if _, err := s.Replace(t.Context(), "x", []byte("v2"), made.ETag, store.Options{}); err != nil {
		t.Error(err)
	}
	if got, _ := f.object("x"); got != "v2" || lose.Load() {
		t.Errorf("object %q, lost: %v", got, !lose.Load())
	}
	body := bytes.Repeat([]byte("z"), 11<<20)
	loseComplete.Store(true)
	if _, err := s.Create(t.Context(), "parts", bytes.NewReader(body), int64(len(body)), store.Options{}); err != nil {
		t.Error(err)
	}
	if got, _ := f.object("parts"); got != string(body) || loseComplete.Load() {
		t.Errorf("object of %d bytes", len(got))
	}
	// Another's object stays a conflict.
	lose.Store(true)
	if _, err := s.Create(t.Context(), "x", strings.NewReader("v3"), 2, store.Options{}); !errors.Is(err, store.ErrConflict) {
		t.Error(err)
	}
}

func TestServiceFails(t *testing.T) {
	t.Run("down", func(t *testing.T) {
		f := &fakeS3{before: func(w http.ResponseWriter, _ *http.Request) bool {
			s3Error(w, http.StatusServiceUnavailable, "ServiceUnavailable", "down")
			return true
		}}
		s := mustNew(t, startFake(t, f))
		if _, err := s.Stat(t.Context(), "x"); !errors.Is(err, store.ErrUnreachable) {
			t.Error(err)
		}
		if n := f.seen("HEAD"); n < 2 || n > 5 {
			t.Errorf("%d tries", n)
		}
	})
	t.Run("concurrent writes", func(t *testing.T) {
		var left atomic.Int64
		f := &fakeS3{before: func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut || left.Add(-1) < 0 {
				return false
			}
			s3Error(w, http.StatusConflict, "ConditionalRequestConflict", "again")
			return true
		}}
		s := mustNew(t, startFake(t, f))
		left.Store(1)
		if _, err := s.Create(t.Context(), "x", strings.NewReader("x"), 1, store.Options{}); err != nil {
			t.Error(err)
		}
		left.Store(100)
		if _, err := s.Create(t.Context(), "y", strings.NewReader("y"), 1, store.Options{}); !errors.Is(err, store.ErrConflict) {
			t.Error(err)
		}
	})
	t.Run("secrets in messages", func(t *testing.T) {
		const token = "the-session-token-of-the-tests"
		f := &fakeS3{before: func(w http.ResponseWriter, r *http.Request) bool {
			s3Error(w, http.StatusBadRequest, "Bad"+fakeSecret, "you sent "+r.Header.Get("X-Amz-Security-Token")+" "+fakeSecret+strings.Repeat("x", 5000))
			return true
		}}
		c := startFake(t, f)
		t.Setenv("AWS_SESSION_TOKEN", token)
		each(t, mustNew(t, c), func(method string, err error) {
			if err == nil || strings.Contains(err.Error(), token) || strings.Contains(err.Error(), fakeSecret) || len(err.Error()) > 600 {
				t.Errorf("%s: %v", method, err)
			}
		})
	})
	t.Run("no S3 at all", func(t *testing.T) {
		f := &fakeS3{before: func(w http.ResponseWriter, _ *http.Request) bool {
			io.WriteString(w, "<html><body>Welcome to nginx!")
			return true
		}}
		each(t, mustNew(t, startFake(t, f)), func(method string, err error) {
			if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, store.ErrConflict) {
				t.Errorf("%s: %v", method, err)
			}
		})
	})
	t.Run("other bytes stored", func(t *testing.T) {
		f := new(fakeS3)
		f.after = func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut || r.Method == http.MethodPost {
				f.mu.Lock()
				defer f.mu.Unlock()
				if _, ok := f.objects["x"]; ok {
					f.objects["x"] = []byte("evil")
				}
			}
			return false
		}
		s := mustNew(t, startFake(t, f))
		if _, err := s.Create(t.Context(), "x", strings.NewReader("good"), 4, store.Options{}); err == nil || !strings.Contains(err.Error(), "verify") {
			t.Error(err)
		}
		if _, err := s.Create(t.Context(), "x", bytes.NewReader(make([]byte, 6<<20)), -1, store.Options{}); err == nil {
			t.Error("no error")
		}
		if got, ok := f.object("x"); ok {
			t.Errorf("left: %q", got)
		}
	})
}

// TestParts: nothing of a large object stays when it fails, because its reader
// does or because the caller gives up.
func TestParts(t *testing.T) {
	const size = 11 << 20
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		r        io.Reader
		cancelAt string // part number
		want     error
	}{
		"reader fails": {r: io.MultiReader(io.LimitReader(zero{}, size-1), iotest.ErrReader(broken)), want: broken},
		"cancelled":    {r: io.LimitReader(zero{}, size), cancelAt: "2", want: context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			// A fake of its own: a part that was given up may still come in later.
			f := new(fakeS3)
			f.before = func(_ http.ResponseWriter, r *http.Request) bool {
				if n := r.URL.Query().Get("partNumber"); n != "" && n == c.cancelAt {
					cancel()
				}
				return false
			}
			if _, err := mustNew(t, startFake(t, f)).Create(ctx, "x", c.r, size, store.Options{}); !errors.Is(err, c.want) {
				t.Error(err)
			}
			f.mu.Lock()
			left := len(f.uploads)
			f.mu.Unlock()
			if left != 0 || f.seen("POST /bucket/x?uploads=") != 1 || f.seen("DELETE /bucket/x?uploadId=") != 1 {
				t.Errorf("left: %d uploads; %q", left, f.requests)
			}
			if _, ok := f.object("x"); ok {
				t.Error("an object is left")
			}
		})
	}
}

type zero struct{}

func (zero) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
