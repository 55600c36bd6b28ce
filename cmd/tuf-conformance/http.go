package main

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf"
)

// httpClient makes one request after the other on a connection each: the
// suite's server takes one at a time and would wait for a kept one to close.
var httpClient = &http.Client{
	Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		DisableKeepAlives:     true,
		DisableCompression:    true,
	},
}

func get(ctx context.Context, address string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "patchkeep-tuf-conformance")
	resp, err := httpClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", tuf.ErrOffline, err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return resp, nil
	case http.StatusNotFound, http.StatusForbidden:
		err = fs.ErrNotExist
	default:
		err = tuf.ErrOffline
	}
	resp.Body.Close()
	return nil, fmt.Errorf("the server answered %s: %w", resp.Status, err)
}

// metadataURL fetches metadata below a URL.
type metadataURL string

// FetchMetadata implements tuf.Fetcher.
func (base metadataURL) FetchMetadata(ctx context.Context, name string, max int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	resp, err := get(ctx, joinURL(string(base), strictEscape(name)))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, max+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", tuf.ErrOffline, err)
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("%s: %w: more than %d bytes", name, tuf.ErrTooLarge, max)
	}
	return data, nil
}

func joinURL(base, rest string) string { return strings.TrimSuffix(base, "/") + "/" + rest }

// strictEscape also encodes the few characters that url.PathEscape leaves in a
// path element, as the suite expects of clients.
func strictEscape(escaped string) string {
	return strings.NewReplacer(":", "%3A", "@", "%40", "&", "%26", "=", "%3D", "+", "%2B", "$", "%24").Replace(escaped)
}

// escapePath encodes what may not stand in a URL's path (RFC 3986, pchar) and
// nothing else, which is how most TUF clients ask for targets.
func escapePath(p string) string {
	var b strings.Builder
	for _, c := range []byte(p) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if alnum || strings.IndexByte("-._~!$&'()*+,;=:@/", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// hashes are the algorithms that we verify, the one for names first.
var hashes = map[string]func() hash.Hash{"sha256": sha256.New, "sha512": sha512.New}

var errMismatch = errors.New("not the file that the metadata lists")

// fetchTarget downloads a target into dir unless it is there already.
func fetchTarget(ctx context.Context, t *tuf.Target, base string, hashPrefix bool, dir string) error {
	if len(t.Hashes) == 0 {
		return fmt.Errorf("the metadata gives no hash")
	}
	for name := range t.Hashes {
		if hashes[name] == nil {
			return fmt.Errorf("cannot verify hash algorithm %q", name)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	name := url.PathEscape(t.Path)
	if len(name) > 200 || name == "." || name == ".." {
		sum := sha256.Sum256([]byte(t.Path))
		name = "%sha256-" + hex.EncodeToString(sum[:])
	}
	if have, err := root.Open(name); err == nil {
		err = copyVerified(io.Discard, have, t)
		have.Close()
		if err == nil {
			return nil
		}
	}
	remote := t.Path
	if hashPrefix {
		sum := t.SHA256
		if sum == "" {
			sum = t.Hashes[slices.Sorted(maps.Keys(t.Hashes))[0]]
		}
		d, file := path.Split(t.Path)
		remote = d + sum + "." + file
	}
	resp, err := get(ctx, joinURL(base, escapePath(remote)))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return writeVerified(dir, name, resp.Body, t)
}

func writeVerified(dir, name string, body io.Reader, t *tuf.Target) (err error) {
	// Beside the target directory's files, but never taken for one of them.
	f, err := os.CreateTemp(filepath.Clean(dir), ".part-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err = copyVerified(f, body, t); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, name))
}

// copyVerified copies exactly t.Length bytes and checks every hash.
func copyVerified(w io.Writer, r io.Reader, t *tuf.Target) error {
	writers := []io.Writer{w}
	sums := map[string]hash.Hash{}
	for name := range t.Hashes {
		sums[name] = hashes[name]()
		writers = append(writers, sums[name])
	}
	buf := make([]byte, 1<<20)
	n, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(writers...)}, struct{ io.Reader }{io.LimitReader(r, t.Length+1)}, buf)
	if err != nil {
		return err
	}
	if n != t.Length {
		return fmt.Errorf("%w: the length differs from %d bytes", errMismatch, t.Length)
	}
	for name, h := range sums {
		if hex.EncodeToString(h.Sum(nil)) != t.Hashes[name] {
			return fmt.Errorf("%w: the %s differs", errMismatch, name)
		}
	}
	return nil
}
