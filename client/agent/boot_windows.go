package agent

import (
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/windows"
)

// bootID is the time of the last boot, in seconds; it is only as exact as the
// clock, see sameBoot.
func bootID() (string, error) {
	return strconv.FormatInt(time.Now().Add(-windows.DurationSinceBoot()).Unix(), 10), nil
}

func sameBoot(a, b string) bool {
	x, err1 := strconv.ParseInt(a, 10, 64)
	y, err2 := strconv.ParseInt(b, 10, 64)
	return err1 == nil && err2 == nil && max(x-y, y-x) < 120
}

// lockRun is of no use here: handles are not inherited.
func lockRun(string, bool) (*os.File, bool, error) { return nil, true, nil }
