// Package host asks the machine's system what a polite guest wants to know: does
// it run on battery, does the line cost money, is anybody logged in, has the
// network changed; and reboots it.
//
// What the system does not tell is an error, which wraps ErrUnknown where there
// is no way to ask. Programs are started by argument list, for a few seconds at
// most, and what they say is read up to a bound.
package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// ErrUnknown says that this system does not tell.
var ErrUnknown = errors.New("this system does not tell")

// Power is what feeds the machine.
type Power struct {
	Battery bool `json:"battery"`         // it runs on battery
	Percent int  `json:"percent"`         // that is left; -1: not known
	Saver   bool `json:"saver,omitempty"` // the system saves power
}

// PowerNow asks for it. A machine without a battery runs on mains.
func PowerNow(ctx context.Context) (Power, error) { return powerNow(ctx) }

// Metered reports whether the connection in use costs by volume.
func Metered(ctx context.Context) (bool, error) { return metered(ctx) }

// Users reports whether somebody is logged in.
func Users(ctx context.Context) (bool, error) { return users(ctx) }

// Reboot tells the system to reboot after some time, rounded up to what it can
// count, and to show the text to whoever is there. It does not wait for it.
func Reboot(ctx context.Context, after time.Duration, text string) error {
	argv := rebootArgv(max(after, 0), text)
	if out, err := run(ctx, argv[0], argv[1:]...); err != nil {
		return fmt.Errorf("%s: %w: %s", argv[0], err, strings.TrimSpace(out))
	}
	return nil
}

const (
	patience  = 5 * time.Second
	maxOutput = 64 << 10
)

// run starts a program of the system and returns what it says.
func run(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = time.Second
	var out capped
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		err = fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	return out.String(), err
}

// capped keeps the beginning of what is written.
type capped struct{ bytes.Buffer }

func (c *capped) Write(p []byte) (int, error) {
	c.Buffer.Write(p[:min(len(p), maxOutput-c.Len())])
	return len(p), nil
}

// Network names the networks that the machine is in: it changes when the
// machine moves, and not with every address of the same network.
func Network() string {
	var names []string
	ifaces, err := net.Interfaces()
	if err != nil {
		return ""
	}
	for _, i := range ifaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
				names = append(names, (&net.IPNet{IP: n.IP.Mask(n.Mask), Mask: n.Mask}).String())
			}
		}
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), " ")
}
