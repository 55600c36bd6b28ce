package fetch

import (
	"fmt"
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
