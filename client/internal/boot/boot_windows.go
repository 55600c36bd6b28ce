package boot

import (
	"strconv"
	"time"

	"golang.org/x/sys/windows"
)

// id is the time of the last boot, in seconds; it is only as exact as the
// clock, see same.
func id() (string, error) {
	return strconv.FormatInt(time.Now().Add(-windows.DurationSinceBoot()).Unix(), 10), nil
}

func same(a, b string) bool {
	x, err1 := strconv.ParseInt(a, 10, 64)
	y, err2 := strconv.ParseInt(b, 10, 64)
	return err1 == nil && err2 == nil && max(x-y, y-x) < 120
}
