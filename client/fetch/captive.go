package fetch

import (
	"bytes"
	"fmt"
	"mime"
	"net/http"
	"path"
	"slices"
	"strings"

	"github.com/patchkeep/patchkeep/client/tuf"
)

// ErrCaptivePortal says that a page for people came where a file of the
// repository was asked for: the network wants a log-in first, as in hotels. It
// is tuf.ErrOffline, and no attack that one would have to be told of.
var ErrCaptivePortal = fmt.Errorf("this network sends a web page instead, as one does that wants a log-in first: %w", tuf.ErrOffline)

// captive looks at the head of an answer to a request for asked. Servers, too,
// say in HTML that something is not there; so a page counts only as a success,
// or after the way led to another host.
func captive(resp *http.Response, asked string) error {
	if resp.StatusCode == http.StatusNetworkAuthenticationRequired { // RFC 6585 §6
		return fmt.Errorf("%s: %w", resp.Status, ErrCaptivePortal)
	}
	if !isHTML(resp.Header.Get("Content-Type")) || slices.Contains([]string{".html", ".htm", ".xhtml"}, strings.ToLower(path.Ext(asked))) {
		return nil
	}
	moved := resp.Request != nil && resp.Request.URL.Host != hostOf(asked)
	if moved || resp.StatusCode/100 == 2 {
		return fmt.Errorf("%s: %w", resp.Status, ErrCaptivePortal)
	}
	return nil
}

func isHTML(contentType string) bool {
	t, _, _ := mime.ParseMediaType(contentType)
	return t == "text/html" || t == "application/xhtml+xml"
}

// beginsLikeHTML looks at the body of what must be JSON.
func beginsLikeHTML(body []byte) bool {
	body = bytes.TrimLeft(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")), " \t\r\n")
	return len(body) > 0 && body[0] == '<'
}
