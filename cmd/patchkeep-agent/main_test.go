package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/cmd/internal/cli"
)

func TestExitCodesAndHints(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code int
		hint string // part of it
	}{
		{fmt.Errorf("x: %w", tuf.ErrNotTrusted), cli.NotTrusted, "nothing of it is used"},
		{fmt.Errorf("x: %w", tuf.ErrTooLarge), cli.NotTrusted, "without end"},
		{install.ErrChanged, cli.NotTrusted, "nothing was run"},
		{install.ErrSignature, cli.NotTrusted, "sign the file as the patch demands"},
		{tuf.ErrExpired, cli.Expired, "renew"},
		{tuf.ErrClock, cli.Expired, "set the clock"},
		{fetch.ErrCaptivePortal, cli.Offline, "log in to this network"},
		{agent.ErrBusy, cli.Conflict, "wait"},
		{agent.ErrEnrolled, cli.Conflict, "--force"},
		{tuf.ErrOffline, cli.Offline, "check the network"},
		{agent.ErrNotEnrolled, cli.Failure, "enroll --server"},
		{agent.ErrUnknownRing, cli.Usage, "ring"},
		{agent.ErrFailed, cli.Failure, "history"},
		{fmt.Errorf("%w: %w", agent.ErrPartial, tuf.ErrNotTrusted), cli.Partial, ""},
		{context.Canceled, cli.Cancelled, ""},
		{errors.New("other"), cli.Failure, ""},
	} {
		if code := cli.ExitCode(tt.err, config().Rules...); code != tt.code || !strings.Contains(hint(tt.err), tt.hint) {
			t.Errorf("%v: exit code %d, hint %q; want %d, %q", tt.err, code, hint(tt.err), tt.code, tt.hint)
		}
	}
}

// Every command has help with an example, and refuses what it does not know.
func TestCommands(t *testing.T) {
	for _, cmd := range newRoot().Commands() {
		if cmd.Short == "" || cmd.Example == "" {
			t.Errorf("%s: no short help, or no example", cmd.Name())
		}
	}
	for _, args := range [][]string{
		{"frobnicate"},
		{"check", "x"},
		{"why"},
		{"why", "a", "b"},
		{"apply", "--no-such-flag"},
		{"download", "x"},
		{"enroll"},
		{"enroll", "--server", "https://x.example"},
		{"run", "--interval", "1ms"},
	} {
		root := newRoot()
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetErr(&out)
		cfg := config()
		cfg.Args = append([]string{"--state", t.TempDir()}, args...)
		if code := cli.Execute(t.Context(), root, cfg); code != cli.Usage {
			t.Errorf("%q: exit code %d, want %d\n%s", args, code, cli.Usage, out.String())
		}
	}
}
