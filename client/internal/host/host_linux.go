package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func powerNow(context.Context) (Power, error) { return readSupplies("/sys/class/power_supply") }

// readSupplies reads the kernel's list of power supplies. Batteries of mice and
// other devices do not count.
func readSupplies(dir string) (Power, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return Power{}, fmt.Errorf("read power supplies: %w", err)
	}
	p := Power{Percent: -1}
	mains, discharging := false, false
	for _, e := range entries {
		read := func(name string) string {
			data, err := os.ReadFile(filepath.Join(dir, e.Name(), name))
			if err != nil {
				return ""
			}
			return strings.TrimSpace(string(data))
		}
		switch {
		case read("type") != "Battery":
			mains = mains || read("online") == "1"
		case read("scope") == "Device" || read("present") == "0":
		default:
			discharging = discharging || read("status") == "Discharging"
			if n, err := strconv.Atoi(read("capacity")); err == nil && n >= 0 && n <= 100 && n > p.Percent {
				p.Percent = n // two batteries: the machine lives as long as the fuller one
			}
		}
	}
	p.Battery = discharging && !mains
	return p, nil
}

// metered asks NetworkManager, if that runs.
func metered(ctx context.Context) (bool, error) {
	out, err := run(ctx, "busctl", "--system", "--auto-start=no", "get-property", "org.freedesktop.NetworkManager",
		"/org/freedesktop/NetworkManager", "org.freedesktop.NetworkManager", "Metered")
	if err != nil {
		return false, fmt.Errorf("ask NetworkManager: %w: %w", ErrUnknown, err)
	}
	return parseMetered(out)
}

// parseMetered reads NMMetered: yes, no, guessed yes, guessed no.
func parseMetered(out string) (bool, error) {
	switch strings.TrimSpace(out) {
	case "u 1", "u 3":
		return true, nil
	case "u 2", "u 4":
		return false, nil
	}
	return false, ErrUnknown
}

// users counts the sessions that logind has, or else those of utmp.
func users(ctx context.Context) (bool, error) {
	out, err := run(ctx, "loginctl", "list-sessions", "--no-legend")
	if err != nil {
		if out, err = run(ctx, "who"); err != nil {
			return false, fmt.Errorf("ask who is logged in: %w: %w", ErrUnknown, err)
		}
	}
	return parseSessions(out), nil
}

// parseSessions leaves out what logind lists beside people.
func parseSessions(out string) bool {
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) > 0 && !strings.Contains(line, "manager") && !strings.Contains(line, "background") && !strings.Contains(line, "greeter") {
			return true
		}
	}
	return false
}

func rebootArgv(after time.Duration, text string) []string {
	return []string{"shutdown", "-r", fmt.Sprintf("+%d", minutes(after)), text}
}
