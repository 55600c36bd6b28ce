package fetch

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// contentRange is a Content-Range of bytes (RFC 9110 §14.4), both ends
// inclusive.
type contentRange struct{ start, end, total int64 }

// parseContentRange reads "bytes 0-99/200". An unknown total ("*") is refused:
// every server of static files knows it.
func parseContentRange(s string) (contentRange, error) {
	bad := func() (contentRange, error) {
		return contentRange{}, fmt.Errorf("%w: a part without a usable Content-Range: %.60q", ErrCorrupt, s)
	}
	unit, rest, ok := strings.Cut(s, " ")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return bad()
	}
	span, size, ok1 := strings.Cut(rest, "/")
	from, to, ok2 := strings.Cut(span, "-")
	if !ok1 || !ok2 {
		return bad()
	}
	var c contentRange
	for _, f := range []struct {
		s string
		v *int64
	}{{from, &c.start}, {to, &c.end}, {size, &c.total}} {
		n, err := strconv.ParseUint(f.s, 10, 63)
		if err != nil {
			return bad()
		}
		*f.v = int64(n)
	}
	if c.start > c.end || c.end >= c.total {
		return bad()
	}
	return c, nil
}

// checkHead looks at the head of an answer to a request for the bytes from
// start up to end of a file, or for the whole of it. partial is whether they
// come, or the first of them, and not the whole file.
func checkHead(resp *http.Response, start, end, length int64, asked bool) (partial bool, err error) {
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return false, fmt.Errorf("%w: answer with Content-Encoding %.20q, which was not asked for", ErrCorrupt, enc)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		if n := resp.ContentLength; n >= 0 && n != length {
			return false, fmt.Errorf("%w: the mirror has %d bytes instead of the signed %d", ErrCorrupt, n, length)
		}
		return false, nil
	case http.StatusPartialContent:
		if !asked {
			return false, fmt.Errorf("%w: a part where the whole was asked for", ErrCorrupt)
		}
		cr, err := parseContentRange(resp.Header.Get("Content-Range"))
		if err != nil {
			return false, err
		}
		if cr.start != start || cr.end >= end || cr.total != length {
			return false, fmt.Errorf("%w: the mirror sent bytes %d-%d of %d, asked for %d-%d of %d",
				ErrCorrupt, cr.start, cr.end, cr.total, start, end-1, length)
		}
		if n := resp.ContentLength; n >= 0 && n != cr.end-cr.start+1 {
			return false, fmt.Errorf("%w: %d bytes for bytes %d-%d", ErrCorrupt, n, cr.start, cr.end)
		}
		return true, nil
	case http.StatusRequestedRangeNotSatisfiable:
		return false, fmt.Errorf("%w: the mirror's file is shorter than the signed %d bytes", ErrCorrupt, length)
	}
	return false, statusError(resp)
}
