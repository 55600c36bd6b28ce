package s3store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"

	"github.com/patchkeep/patchkeep/repo/store"
)

// Config says where a bucket is. Credentials are not part of it: they come
// from the AWS environment variables and files (see credentialChain).
type Config struct {
	Bucket string
	Prefix string // of all objects' keys, without a slash at its ends; may be empty

	// Endpoint is host or host:port of the service. Empty means that of
	// AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, else Amazon's.
	Endpoint string

	// Insecure is plain HTTP instead of TLS: for tests, and for services on
	// the same machine. It goes with Endpoint; the variables above say it by
	// http://.
	Insecure bool

	// Region is the one to sign for. Empty means AWS_REGION or
	// AWS_DEFAULT_REGION, else the service is asked.
	Region string

	// PathStyle is whether the bucket is in the path of the URL, true, or in
	// the host's name. nil means the latter for Amazon alone.
	PathStyle *bool
}

const amazonEndpoint = "s3.amazonaws.com"

var (
	bucketPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	regionPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)
	hostPattern   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$`)
)

// Check returns an error if c cannot be right. It is pure.
func (c Config) Check() error {
	if !bucketPattern.MatchString(c.Bucket) || strings.Contains(c.Bucket, "..") {
		return fmt.Errorf("bucket name %q: 3 to 63 of a-z 0-9 . - are allowed", c.Bucket)
	}
	if c.Prefix != "" {
		if err := store.CheckName(c.Prefix); err != nil {
			return fmt.Errorf("prefix: %w", err)
		}
	}
	if c.Region != "" && !regionPattern.MatchString(c.Region) {
		return fmt.Errorf("region %q is not one", c.Region)
	}
	if c.Endpoint == "" {
		if c.Insecure {
			return errors.New("insecure needs an endpoint")
		}
		return nil
	}
	return checkEndpoint(c.Endpoint)
}

func checkEndpoint(endpoint string) error {
	bad := fmt.Errorf("endpoint %q: host or host:port is wanted", endpoint)
	host := endpoint
	if i := strings.LastIndexByte(endpoint, ':'); i >= 0 && !strings.HasSuffix(endpoint, "]") {
		port, err := strconv.ParseUint(endpoint[i+1:], 10, 16)
		if err != nil || port == 0 || strconv.FormatUint(port, 10) != endpoint[i+1:] {
			return bad
		}
		host = endpoint[:i]
	}
	if v6, ok := strings.CutPrefix(host, "["); ok {
		a, err := netip.ParseAddr(strings.TrimSuffix(v6, "]"))
		if err != nil || !a.Is6() || a.Zone() != "" || !strings.HasSuffix(v6, "]") {
			return bad
		}
		return nil
	}
	if !hostPattern.MatchString(host) {
		return bad
	}
	return nil
}

// String is the store's URL, as package storeurl reads it.
func (c Config) String() string {
	q := url.Values{}
	if c.Endpoint != "" {
		q.Set("endpoint", c.Endpoint)
	}
	if c.Insecure {
		q.Set("insecure", "true")
	}
	if c.Region != "" {
		q.Set("region", c.Region)
	}
	if c.PathStyle != nil {
		q.Set("path_style", strconv.FormatBool(*c.PathStyle))
	}
	u := url.URL{Scheme: "s3", Host: c.Bucket, RawQuery: q.Encode()}
	if c.Prefix != "" {
		u.Path = "/" + c.Prefix
	}
	return u.String()
}

// New returns the store that c describes. It does not touch the network; Probe
// does.
func New(_ context.Context, c Config) (*Store, error) {
	s, err := open(c)
	if err != nil {
		return nil, fmt.Errorf("open bucket: %w", err)
	}
	return s, nil
}

func open(c Config) (*Store, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	endpoint, insecure, err := c.endpoint()
	if err != nil {
		return nil, err
	}
	transport, err := newTransport()
	if err != nil {
		return nil, err
	}
	region := c.Region
	for _, name := range []string{"AWS_REGION", "AWS_DEFAULT_REGION"} {
		if region == "" {
			region = os.Getenv(name)
		}
	}
	lookup := minio.BucketLookupAuto
	if c.PathStyle != nil {
		lookup = minio.BucketLookupDNS
		if *c.PathStyle {
			lookup = minio.BucketLookupPath
		}
	}
	creds := &credentialChain{amazon: s3utils.IsAmazonEndpoint(url.URL{Host: endpoint})}
	client, err := minio.NewCore(endpoint, &minio.Options{
		Creds:        credentials.New(creds),
		Secure:       !insecure,
		Transport:    transport,
		Region:       region,
		BucketLookup: lookup,
		MaxRetries:   1, // retry.go does it, and knows what may be repeated
	})
	if err != nil {
		return nil, err
	}
	return &Store{client: client, cfg: c, creds: creds}, nil
}

// endpoint returns host and port, and whether plain HTTP is meant.
func (c Config) endpoint() (host string, insecure bool, err error) {
	if c.Endpoint != "" {
		return c.Endpoint, c.Insecure, nil
	}
	for _, name := range []string{"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"} {
		v := os.Getenv(name)
		if v == "" {
			continue
		}
		u, err := url.Parse(v)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.User != nil ||
			u.Path != "" && u.Path != "/" || u.RawQuery != "" || checkEndpoint(u.Host) != nil {
			return "", false, fmt.Errorf("%s: http(s)://host:port is wanted", name)
		}
		return u.Host, u.Scheme == "http", nil
	}
	return amazonEndpoint, false, nil
}

func newTransport() (*http.Transport, error) {
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: connectTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: connectTimeout,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		MaxIdleConnsPerHost: 8,
		IdleConnTimeout:     time.Minute,
		DisableCompression:  true, // an object is its bytes, and has a length
	}
	file := os.Getenv("AWS_CA_BUNDLE")
	if file == "" {
		return t, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("AWS_CA_BUNDLE: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("AWS_CA_BUNDLE: %s has no certificate", file)
	}
	t.TLSClientConfig.RootCAs = pool
	return t, nil
}
