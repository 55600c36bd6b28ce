//go:build !linux && !darwin && !windows

package host

import (
	"context"
	"fmt"
	"time"
)

func powerNow(context.Context) (Power, error) { return Power{}, ErrUnknown }
func metered(context.Context) (bool, error)   { return false, ErrUnknown }
func users(context.Context) (bool, error)     { return false, ErrUnknown }

func rebootArgv(after time.Duration, text string) []string {
	return []string{"shutdown", "-r", fmt.Sprintf("+%d", minutes(after)), text}
}
