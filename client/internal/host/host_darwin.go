package host

import (
	"context"
	"fmt"
	"strings"
	"time"
)

func powerNow(ctx context.Context) (Power, error) {
	out, err := run(ctx, "/usr/bin/pmset", "-g", "batt")
	if err != nil {
		return Power{}, fmt.Errorf("ask pmset: %w", err)
	}
	return parsePmset(out)
}

// metered: the system knows of Low Data Mode, but tells programs of its own
// frameworks alone.
func metered(context.Context) (bool, error) { return false, ErrUnknown }

func users(ctx context.Context) (bool, error) {
	out, err := run(ctx, "/usr/bin/who")
	return strings.TrimSpace(out) != "", err
}

func rebootArgv(after time.Duration, text string) []string {
	return []string{"/sbin/shutdown", "-r", fmt.Sprintf("+%d", minutes(after)), text}
}
