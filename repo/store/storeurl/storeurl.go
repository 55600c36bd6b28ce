// Package storeurl opens a store by its reference, the value of --repo:
//
//	path, file:///path                a directory
//	s3://bucket/prefix?endpoint=host:port&insecure=true&region=R&path_style=true
//
// All of the query is optional: endpoint is the service, if it is not Amazon's;
// insecure is plain HTTP; region the one to sign for; path_style whether the
// bucket is in the path (true) or in the host's name (false). Prefix and path
// are percent-encoded. Credentials are never part of a reference: they come
// from the AWS environment variables and files.
package storeurl

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"unicode"

	"github.com/patchkeep/patchkeep/repo/store"
	"github.com/patchkeep/patchkeep/repo/store/dirstore"
	"github.com/patchkeep/patchkeep/repo/store/s3store"
)

// maxRef bounds a reference, in bytes.
const maxRef = 8 << 10

const credentialsHint = "credentials do not belong in a store's URL: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"

// Ref is a parsed reference to a directory, if Dir is not empty, or a bucket.
type Ref struct {
	Dir string
	S3  s3store.Config
}

// String is the reference, which Parse reads again.
func (r Ref) String() string {
	if r.Dir == "" {
		return r.S3.String()
	}
	if ref, err := Parse(r.Dir); err == nil && ref == r {
		return r.Dir
	}
	// A path that looks like a URL, "file:/x" say.
	return "." + string(filepath.Separator) + r.Dir
}

// Open opens the store. A directory need not exist, and nothing is asked of a
// bucket yet: see store.Store's Probe.
func (r Ref) Open(ctx context.Context) (store.Store, error) {
	if r.Dir != "" {
		return dirstore.New(r.Dir)
	}
	return s3store.New(ctx, r.S3)
}

// Open parses ref and opens the store.
func Open(ctx context.Context, ref string) (store.Store, error) {
	r, err := Parse(ref)
	if err != nil {
		return nil, err
	}
	return r.Open(ctx)
}

// schemePattern wants two letters: `C:\repo` is a path.
var schemePattern = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]+):(//)?`)

// Parse parses a reference. It is pure: nothing is looked up. Errors never
// quote what might be a secret.
func Parse(ref string) (Ref, error) {
	r, err := parse(ref)
	if err != nil {
		return Ref{}, fmt.Errorf("parse store reference: %w", err)
	}
	return r, nil
}

func parse(ref string) (Ref, error) {
	switch {
	case ref == "":
		return Ref{}, errors.New("it is empty: name a directory or s3://bucket/prefix")
	case len(ref) > maxRef:
		return Ref{}, fmt.Errorf("it is longer than %d bytes", maxRef)
	case strings.ContainsFunc(ref, unicode.IsControl):
		return Ref{}, errors.New("it has a control character")
	}
	m := schemePattern.FindStringSubmatch(ref)
	if m == nil {
		return Ref{Dir: ref}, nil
	}
	scheme, slashes := strings.ToLower(m[1]), m[2] != ""
	switch {
	case scheme == "s3" && slashes:
		return parseS3(ref)
	case scheme == "file" && slashes:
		return parseFile(ref)
	case scheme == "s3" || scheme == "file":
		return Ref{}, fmt.Errorf("after %s: two slashes are wanted", scheme)
	case scheme == "http" || scheme == "https":
		return Ref{}, errors.New("a repository cannot be written to over HTTP: name a directory or s3://bucket/prefix (only verify and the mirror read from a URL)")
	case slashes:
		return Ref{}, fmt.Errorf("scheme %q is not known: name a directory or s3://bucket/prefix", scheme)
	}
	return Ref{Dir: ref}, nil // a colon in a file name
}

func parseFile(ref string) (Ref, error) {
	u, err := url.Parse(ref)
	switch {
	case err != nil: // its text quotes the URL
		return Ref{}, errors.New("it is not a valid URL")
	case u.User != nil || u.Host != "" && !strings.EqualFold(u.Host, "localhost"):
		return Ref{}, errors.New("a file URL names no host: file:///path")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return Ref{}, errors.New("a file URL has no query and no fragment: write %3F for ? and %23 for #")
	case u.Path == "" || strings.ContainsFunc(u.Path, unicode.IsControl):
		return Ref{}, errors.New("the file URL has no valid path")
	}
	p := u.Path
	if runtime.GOOS == "windows" && len(p) >= 3 && p[2] == ':' { // /C:/repo
		p = p[1:]
	}
	return Ref{Dir: filepath.FromSlash(p)}, nil
}

func parseS3(ref string) (Ref, error) {
	u, err := url.Parse(ref)
	if err != nil { // its text quotes the URL
		if strings.Contains(ref, "@") {
			return Ref{}, errors.New(credentialsHint)
		}
		return Ref{}, errors.New("it is not a valid URL")
	}
	switch {
	case u.User != nil || strings.Contains(u.Host, "@"):
		return Ref{}, errors.New(credentialsHint)
	case u.Fragment != "":
		return Ref{}, errors.New("an s3 URL has no fragment: write %23 for #")
	case strings.Contains(u.Host, ":"):
		return Ref{}, errors.New("after s3:// comes the bucket; write s3://bucket/prefix?endpoint=host:port")
	}
	c := s3store.Config{Bucket: u.Host, Prefix: strings.TrimSuffix(strings.TrimPrefix(u.Path, "/"), "/")}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Ref{}, errors.New("its query is not valid")
	}
	for key, values := range query {
		if err := setS3(&c, key, values); err != nil {
			return Ref{}, err
		}
	}
	if err := c.Check(); err != nil {
		return Ref{}, err
	}
	return Ref{S3: c}, nil
}

func setS3(c *s3store.Config, key string, values []string) error {
	v := values[0]
	switch key {
	case "endpoint", "region", "insecure", "path_style":
		if len(values) != 1 || v == "" {
			return fmt.Errorf("%s: one value is wanted", key)
		}
	default:
		for _, word := range []string{"key", "secret", "token", "password", "credential", "signature"} {
			if strings.Contains(strings.ToLower(key), word) {
				return errors.New(credentialsHint)
			}
		}
		return fmt.Errorf("query key %q is not known: endpoint, insecure, region and path_style are", key)
	}
	var flag bool
	if key == "insecure" || key == "path_style" {
		var err error
		if flag, err = strconv.ParseBool(v); err != nil {
			return fmt.Errorf("%s: true or false is wanted", key)
		}
	}
	switch key {
	case "endpoint":
		if strings.Contains(v, "@") {
			return errors.New(credentialsHint)
		}
		if strings.Contains(v, "://") {
			return errors.New("endpoint: host or host:port is wanted, without a scheme (insecure=true for plain HTTP)")
		}
		c.Endpoint = v
	case "region":
		c.Region = v
	case "insecure":
		c.Insecure = flag
	case "path_style":
		c.PathStyle = &flag
	}
	return nil
}
