package host

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var percent = regexp.MustCompile(`\b([0-9]{1,3})%`)

// parsePmset reads what `pmset -g batt` says on macOS:
//
//	Now drawing from 'Battery Power'
//	 -InternalBattery-0 (id=1234)	57%; discharging; 3:02 remaining present: true
func parsePmset(out string) (Power, error) {
	first, rest, _ := strings.Cut(out, "\n")
	if !strings.Contains(first, "drawing from") {
		return Power{}, fmt.Errorf("pmset says %.100q: %w", first, ErrUnknown)
	}
	p := Power{Battery: strings.Contains(first, "'Battery Power'"), Percent: -1}
	if m := percent.FindStringSubmatch(rest); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil && n <= 100 {
			p.Percent = n
		}
	}
	return p, nil
}

// minutes rounds up.
func minutes(d time.Duration) int64 { return int64((d + time.Minute - 1) / time.Minute) }
