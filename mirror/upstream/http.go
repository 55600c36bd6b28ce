package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	maxRedirects  = 3
	maxHeaderSize = 32 << 10
)

// UserAgent is what a mirror calls itself upstream.
const UserAgent = "patchkeep-mirror"

// NewHTTP returns the upstream at base, the URL of a mirror or of a plain
// server of the repository: <base>/metadata/…, <base>/targets/…. The system's
// proxy settings are honoured. It is shown no credentials.
func NewHTTP(base string) (Upstream, error) { return newHTTP(base, Credentials{}) }

func newHTTP(base string, creds Credentials) (Upstream, error) {
	u, err := url.Parse(strings.TrimRight(base, "/"))
	switch {
	case err != nil: // it may quote a password
		return nil, errors.New("open upstream: not a URL")
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		return nil, fmt.Errorf("open upstream %s: want http://host/… or https://host/…", u.Redacted())
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return nil, fmt.Errorf("open upstream %s: query and fragment make no sense here", redact(u))
	}
	if creds.Token != nil && u.Scheme == "http" && !isLoopback(u.Hostname()) {
		return nil, fmt.Errorf("open upstream %s: a token is only sent over https", redact(u))
	}
	h := &overHTTP{base: u, token: creds.Token}
	h.client = &http.Client{
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:        creds.tls(),
			TLSHandshakeTimeout:    15 * time.Second,
			ResponseHeaderTimeout:  time.Minute, // Guard is stricter
			ExpectContinueTimeout:  time.Second,
			IdleConnTimeout:        90 * time.Second,
			MaxIdleConnsPerHost:    16,
			MaxResponseHeaderBytes: maxHeaderSize,
			DisableCompression:     true,
			ForceAttemptHTTP2:      true,
		},
		CheckRedirect: checkRedirect,
	}
	return h, nil
}

// checkRedirect allows a few hops, as CDNs make them, and none from TLS to
// plain text. Where the bytes come from does not matter: they are verified.
func checkRedirect(req *http.Request, via []*http.Request) error {
	switch {
	case len(via) > maxRedirects:
		return fmt.Errorf("more than %d redirects", maxRedirects)
	case req.URL.Scheme != "https" && (req.URL.Scheme != "http" || via[0].URL.Scheme == "https"):
		return fmt.Errorf("redirect to %s", req.URL.Scheme)
	}
	if req.URL.Host != via[0].URL.Host { // net/http would still show it to a subdomain
		req.Header.Del("Authorization")
	}
	return nil
}

type overHTTP struct {
	base     *url.URL
	client   *http.Client
	token    func() string // may be nil
	metadata metadataState
}

func (h *overHTTP) String() string { return redact(h.base) }

// redact leaves out the user as well as the password: either may be a token.
func redact(u *url.URL) string {
	c := *u
	c.User, c.RawQuery, c.Fragment = nil, "", ""
	return c.String()
}

// get sends a request for an escaped path below the base. A status that is not
// one of success is an error, but for a 304 to a conditional request.
func (h *overHTTP) get(ctx context.Context, escaped string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.base.String()+"/"+escaped, nil)
	if err != nil {
		return nil, errors.New("bad URL")
	}
	req.Header = header
	req.Header.Set("User-Agent", UserAgent)
	if h.token != nil {
		if token := h.token(); token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
	}
	resp, err := h.client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var ue *url.Error // it repeats the URL
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, fmt.Errorf("%w: %w", tuf.ErrOffline, err)
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
		return resp, nil
	case http.StatusNotModified:
		if header.Get("If-None-Match") != "" {
			return resp, nil
		}
	}
	// A short rest is read so that the connection can be used again.
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusNotFound, http.StatusForbidden, http.StatusGone:
		return nil, fmt.Errorf("%w: status %d", fs.ErrNotExist, resp.StatusCode)
	case http.StatusUnauthorized:
		return nil, fmt.Errorf("%w: status %d: it lets in only who shows a token or a certificate", tuf.ErrOffline, resp.StatusCode)
	}
	return nil, fmt.Errorf("%w: status %d", tuf.ErrOffline, resp.StatusCode)
}

// getTarget asks for the bytes of a target as they are.
func (h *overHTTP) getTarget(ctx context.Context, object string, offset int64) (*http.Response, error) {
	header := http.Header{"Accept-Encoding": {"identity"}}
	if via, ok := ctx.Value(viaKey{}).(Via); ok {
		via.set(header)
	}
	if offset > 0 {
		header.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
	}
	resp, err := h.get(ctx, layout.EscapePath(object), header)
	if err != nil {
		return nil, err
	}
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		resp.Body.Close()
		return nil, fmt.Errorf("%w: it sends %q although asked for plain bytes", tuf.ErrOffline, enc)
	}
	return resp, nil
}

func (h *overHTTP) OpenTarget(ctx context.Context, object string, offset int64) (io.ReadCloser, int64, error) {
	resp, err := h.getTarget(ctx, object, offset)
	if err != nil {
		return nil, 0, err
	}
	switch {
	case offset == 0 && resp.StatusCode == http.StatusOK:
		return resp.Body, resp.ContentLength, nil
	case offset > 0 && resp.StatusCode == http.StatusPartialContent:
		size, err := rangeSize(resp, offset)
		if err == nil {
			return resp.Body, size, nil
		}
		resp.Body.Close()
		return nil, 0, err
	case offset > 0 && resp.StatusCode == http.StatusOK:
		// It knows no Range. The part we have has to come once more.
		return &skipping{resp.Body, offset}, resp.ContentLength, nil
	}
	resp.Body.Close()
	return nil, 0, fmt.Errorf("%w: status %d to a request without Range", tuf.ErrOffline, resp.StatusCode)
}

// rangeSize checks that a 206 is exactly what was asked for, offset to the
// end, and returns the size of the whole, -1 if unknown (RFC 9110 §14.4).
func rangeSize(resp *http.Response, offset int64) (int64, error) {
	cr := resp.Header.Get("Content-Range")
	bad := fmt.Errorf("%w: Content-Range %q to a request for bytes %d-", tuf.ErrOffline, cr, offset)
	spec, ok := strings.CutPrefix(cr, "bytes ")
	if !ok {
		return 0, bad
	}
	span, total, ok := strings.Cut(spec, "/")
	first, last, ok2 := strings.Cut(span, "-")
	if !ok || !ok2 {
		return 0, bad
	}
	from, err1 := parseDigits(first)
	to, err2 := parseDigits(last)
	if err1 != nil || err2 != nil || from != offset || to < from {
		return 0, bad
	}
	if n := resp.ContentLength; n >= 0 && n != to-from+1 {
		return 0, bad
	}
	if total == "*" {
		return -1, nil
	}
	size, err := parseDigits(total)
	if err != nil || to != size-1 {
		return 0, bad
	}
	return size, nil
}

// parseDigits takes no sign, unlike strconv.
func parseDigits(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err
}

// skipping drops the first bytes of a body.
type skipping struct {
	io.ReadCloser
	left int64
}

func (s *skipping) Read(p []byte) (int, error) {
	for s.left > 0 {
		n, err := s.ReadCloser.Read(p[:min(int64(len(p)), s.left)])
		s.left -= int64(n)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return 0, err
		}
	}
	return s.ReadCloser.Read(p)
}
