// Package s3server runs a real S3 service for tests: VersityGW over a
// directory, on a free port of the loopback interface, with one bucket.
//
//	srv := s3server.Start(t)
//	st, err := storeurl.Open(ctx, srv.Ref("some/prefix"))
//
// In a TestMain, or for programs that are run, StartProcess and Env do it.
package s3server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

const (
	startWithin = 20 * time.Second
	starts      = 3 // another process may take the port in between
)

// Server is a running service.
type Server struct {
	Endpoint  string // 127.0.0.1:port, plain HTTP
	Bucket    string // exists
	Region    string
	AccessKey string
	SecretKey string
}

// Ref is the --repo of a prefix in the bucket; see package storeurl.
func (s *Server) Ref(prefix string) string {
	u := url.URL{Scheme: "s3", Host: s.Bucket, Path: "/" + prefix}
	u.RawQuery = url.Values{"endpoint": {s.Endpoint}, "insecure": {"true"}, "region": {s.Region}}.Encode()
	return u.String()
}

// Env is the environment that gives access, NAME=value each. It also shuts out
// whatever AWS settings the machine has.
func (s *Server) Env() []string {
	return []string{
		"AWS_ACCESS_KEY_ID=" + s.AccessKey,
		"AWS_SECRET_ACCESS_KEY=" + s.SecretKey,
		"AWS_SESSION_TOKEN=",
		"AWS_PROFILE=",
		"AWS_SHARED_CREDENTIALS_FILE=" + os.DevNull,
		"AWS_CONFIG_FILE=" + os.DevNull,
		"AWS_EC2_METADATA_DISABLED=true",
		"AWS_REGION=", "AWS_DEFAULT_REGION=",
		"AWS_ENDPOINT_URL=", "AWS_ENDPOINT_URL_S3=", "AWS_CA_BUNDLE=",
	}
}

// Start runs a server until the test ends, and sets Env in the test's
// environment. It fails the test if the program is missing.
func Start(t testing.TB) *Server {
	t.Helper()
	s, stop, err := StartProcess(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	for _, kv := range s.Env() {
		name, value, _ := strings.Cut(kv, "=")
		t.Setenv(name, value)
	}
	return s
}

// StartProcess runs a server that keeps its objects below dir, until stop is
// called. It may be run again over the same dir. Killing this process kills the server too, on Linux.
func StartProcess(dir string) (s *Server, stop func(), err error) {
	bin, err := find()
	if err != nil {
		return nil, nil, err
	}
	for range starts {
		if s, stop, err = start(bin, dir); err == nil {
			return s, stop, nil
		}
	}
	return nil, nil, fmt.Errorf("start %s: %w", bin, err)
}

// find returns the program PATCHKEEP_VERSITYGW, or the one `make tools` installs.
func find() (string, error) {
	if bin := os.Getenv("PATCHKEEP_VERSITYGW"); bin != "" {
		return bin, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("find versitygw: not inside the module; set PATCHKEEP_VERSITYGW")
		}
	}
	bin := filepath.Join(dir, ".tools", "bin", "versitygw")
	if _, err := os.Stat(bin); err != nil {
		return "", fmt.Errorf("find versitygw: %w: run `make tools` first, or set PATCHKEEP_VERSITYGW", err)
	}
	return bin, nil
}

func start(bin, dir string) (*Server, func(), error) {
	s := &Server{Bucket: "patchkeep-test", Region: "us-east-1", AccessKey: "patchkeep-test-key", SecretKey: "patchkeep-test-secret"}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	s.Endpoint = l.Addr().String()
	l.Close()
	data := filepath.Join(dir, "objects")
	if err := os.MkdirAll(data, 0o755); err != nil {
		return nil, nil, err
	}

	var out output
	cmd := exec.Command(bin, "--port", s.Endpoint, "--region", s.Region, "--quiet", "posix", data)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY_ID="+s.AccessKey, "ROOT_SECRET_ACCESS_KEY="+s.SecretKey)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &out
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	stop := sync.OnceFunc(func() {
		cmd.Process.Kill()
		<-exited
	})
	if err := s.ready(exited); err != nil {
		stop()
		return nil, nil, fmt.Errorf("%w\n%s", err, out.String())
	}
	return s, stop, nil
}

// ready makes the bucket as soon as the server answers.
func (s *Server) ready(exited <-chan struct{}) error {
	client, err := minio.New(s.Endpoint, &minio.Options{
		Creds: credentials.NewStaticV4(s.AccessKey, s.SecretKey, ""), Region: s.Region, MaxRetries: 1,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startWithin)
	defer cancel()
	for {
		err := client.MakeBucket(ctx, s.Bucket, minio.MakeBucketOptions{Region: s.Region})
		if err == nil || minio.ToErrorResponse(err).Code == "BucketAlreadyOwnedByYou" {
			return nil
		}
		if minio.ToErrorResponse(err).StatusCode != 0 {
			return fmt.Errorf("make bucket: %w", err)
		}
		select {
		case <-exited:
			return errors.New("it has ended at once")
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// output keeps the beginning of what the server says.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.buf.Len() < 16<<10 {
		o.buf.Write(p)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
