package s3store_test

import (
	"cmp"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/repo/store/s3store"
)

// fakeS3 is as much of S3 as the store uses, to misbehave in ways that a real
// service does not. It checks no signatures.
type fakeS3 struct {
	// before may answer a request in place of the service, and returns true
	// then; after may spoil the answer to one that was done, likewise.
	before, after func(http.ResponseWriter, *http.Request) bool

	mu       sync.Mutex
	objects  map[string][]byte         // guarded by mu
	parts    map[string]string         // guarded by mu; checksum of the checksums of the parts, if it came in parts
	uploads  map[string]map[int][]byte // guarded by mu
	requests []string                  // guarded by mu; method, and what it is
}

func startFake(t *testing.T, f *fakeS3) s3store.Config {
	t.Helper()
	f.objects, f.parts, f.uploads = map[string][]byte{}, map[string]string{}, map[string]map[int][]byte{}
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	setCredentials(t, "fake-key", fakeSecret)
	return s3store.Config{Bucket: "bucket", Endpoint: srv.Listener.Addr().String(), Insecure: true, Region: "r"}
}

const fakeSecret = "the-secret-key-of-the-tests"

func setCredentials(t *testing.T, key, secret string) {
	t.Setenv("AWS_ACCESS_KEY_ID", key)
	t.Setenv("AWS_SECRET_ACCESS_KEY", secret)
	for _, name := range []string{"AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", t.TempDir()+"/none")
	t.Setenv("AWS_CONFIG_FILE", t.TempDir()+"/none")
}

func s3Error(w http.ResponseWriter, status int, code, message string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", code, message)
}

func etag(b []byte) string {
	sum := md5.Sum(b)
	return `"` + hex.EncodeToString(sum[:]) + `"`
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return base64.StdEncoding.EncodeToString(sum[:])
}

func (f *fakeS3) seen(what string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.requests {
		if strings.HasPrefix(r, what) {
			n++
		}
	}
	return n
}

func (f *fakeS3) object(name string) (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.objects[name]
	return string(b), ok
}

func (f *fakeS3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	f.mu.Lock()
	f.requests = append(f.requests, r.Method+" "+r.URL.Path+"?"+r.URL.RawQuery+" If-None-Match="+r.Header.Get("If-None-Match"))
	f.mu.Unlock()
	if f.before != nil && f.before(w, r) {
		return
	}
	if f.after != nil {
		rec := httptest.NewRecorder()
		f.serve(rec, r, body)
		if f.after(w, r) {
			return
		}
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		w.Write(rec.Body.Bytes())
		return
	}
	f.serve(w, r, body)
}

func (f *fakeS3) serve(w http.ResponseWriter, r *http.Request, body []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := strings.TrimPrefix(r.URL.Path, "/bucket/")
	q := r.URL.Query()
	id := q.Get("uploadId")
	old, exists := f.objects[key]
	refused := r.Header.Get("If-None-Match") == "*" && exists || r.Header.Get("If-Match") != "" && r.Header.Get("If-Match") != etag(old)
	switch {
	case key == "":
		io.WriteString(w, "<ListBucketResult></ListBucketResult>")
	case r.Method == http.MethodPost && q.Has("uploads"):
		id = strconv.Itoa(len(f.requests))
		f.uploads[id] = map[int][]byte{}
		fmt.Fprintf(w, "<InitiateMultipartUploadResult><UploadId>%s</UploadId></InitiateMultipartUploadResult>", id)
	case id != "" && f.uploads[id] == nil:
		s3Error(w, http.StatusNotFound, "NoSuchUpload", "no such upload")
	case r.Method == http.MethodPut && id != "":
		n, _ := strconv.Atoi(q.Get("partNumber"))
		f.uploads[id][n] = body
		w.Header().Set("ETag", etag(body))
	case r.Method == http.MethodDelete && id != "":
		delete(f.uploads, id)
		w.WriteHeader(http.StatusNoContent)
	case refused:
		s3Error(w, http.StatusPreconditionFailed, "PreconditionFailed", "no")
	case r.Method == http.MethodPost:
		var all, sums []byte
		for i := range len(f.uploads[id]) {
			part := f.uploads[id][i+1]
			sum := sha256.Sum256(part)
			all, sums = append(all, part...), append(sums, sum[:]...)
		}
		f.objects[key] = all
		f.parts[key] = digest(sums) + "-" + strconv.Itoa(len(f.uploads[id]))
		delete(f.uploads, id)
		fmt.Fprintf(w, "<CompleteMultipartUploadResult><Bucket>bucket</Bucket><Key>k</Key><ETag>%s</ETag></CompleteMultipartUploadResult>", etag(all))
	case r.Method == http.MethodPut:
		f.objects[key] = body
		delete(f.parts, key)
		w.Header().Set("ETag", etag(body))
	case r.Method == http.MethodDelete:
		delete(f.objects, key)
		w.WriteHeader(http.StatusNoContent)
	case !exists:
		s3Error(w, http.StatusNotFound, "NoSuchKey", "no such key")
	default:
		w.Header().Set("x-amz-checksum-sha256", cmp.Or(f.parts[key], digest(old)))
		w.Header().Set("ETag", etag(old))
		w.Header().Set("Content-Length", strconv.Itoa(len(old)))
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		if r.Method == http.MethodGet {
			w.Write(old)
		}
	}
}
