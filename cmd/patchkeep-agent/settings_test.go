package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/cmd/internal/cli"
)

// settingsFrom gives what a command has in force, and again what it has after
// the file was changed.
func settingsFrom(t *testing.T, file, changed string, args ...string) (before, after agent.Settings, bases int64, err error) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "settings.yaml")
	if file != "" {
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	root := newRoot()
	cmd, _, ferr := root.Find([]string{"run"})
	if ferr != nil {
		t.Fatal(ferr)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := source(cmd)
		if err != nil {
			return err
		}
		if before, bases, err = readSettings(s); err != nil || changed == "" {
			return err
		}
		if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		after, _, err = readSettings(s)
		return err
	}
	root.SetErr(&strings.Builder{})
	cli.Prepare(root, config())
	root.SetArgs(append([]string{"run", "--state", dir}, args...))
	err = root.ExecuteContext(t.Context())
	return before, after, bases, err
}

func TestSettingsComeInOrder(t *testing.T) {
	t.Setenv("PATCHKEEP_MIN_BATTERY", "50")
	t.Setenv("PATCHKEEP_RATE", "2MB")
	before, after, bases, err := settingsFrom(t, `
interval: 10m
rate: 1MB
min-battery: 40
window: ["mon-fri 22:00-05:00", sat 08:00-20:00]
missed-window: install
keep-bases: 0
`, "interval: 20m\nreboot: deadline\n", "--rate", "3MB")
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintln(before.Interval, before.Rate, before.MinBattery, before.Windows, before.MissedWindow, before.Metered, before.MeteredMax, before.Reboot, bases)
	if want := "10m0s 3000000 50 [mon,tue,wed,thu,fri 22:00-05:00 sat 08:00-20:00] install small 10485760 never -1\n"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	got = fmt.Sprintln(after.Interval, after.Rate, after.MinBattery, after.Windows, after.MissedWindow, after.Reboot)
	if want := "20m0s 3000000 50 [] wait deadline\n"; got != want {
		t.Errorf("reloaded: %s\nwant %s", got, want)
	}
}

func TestDefaultSettings(t *testing.T) {
	got, _, bases, err := settingsFrom(t, "", "")
	want := agent.DefaultSettings()
	got.Windows = nil
	if err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) || bases != 1<<30 || want.Interval != time.Hour {
		t.Errorf("%+v, %v\nwant %+v", got, err, want)
	}
}

func TestSettingsRefused(t *testing.T) {
	for _, tt := range []struct{ file, says string }{
		{"interval: 10m\nintervall: 5m\n", "line 2: intervall: there is no such option"},
		{"state: /x\n", "line 1: state: there is no such option"},
		{"interval: 10m\ninterval: 5m\n", "interval"},
		{"interval: soon\n", `"soon" is not a value for it`},
		{"interval: 1ms\n", "shorter than a second"},
		{"window: 22:00\n", `"22:00"`},
		{"window: [someday 1:00-2:00]\n", "not a day like mon"},
		{"missed-window: never\n", "neither wait nor install"},
		{"min-battery: 200\n", "0 to 100"},
		{"metered: sometimes\n", "none of any, small, none"},
		{"metered-max: much\n", "metered-max"},
		{"reboot: yes\n", "none of never, window, deadline"},
		{"rate: 1\n", "would never end"},
		{"- interval\n", "want lines such as"},
		{"interval: [1h, 2h]\n", "not a list"},
		{"interval: {a: b}\n", "want a value"},
		{"\tx", "configuration"},
	} {
		_, _, _, err := settingsFrom(t, tt.file, "")
		if _, ok := errors.AsType[*cli.UsageError](err); !ok || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%q: %v, want one that says %q", tt.file, err, tt.says)
		}
	}
	if _, _, _, err := settingsFrom(t, "", "", "--config", filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is named and is not there: %v", err)
	}
}
