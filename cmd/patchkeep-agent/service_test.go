package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/kardianos/service"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
)

func TestSystemdUnit(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("paths are of another kind")
	}
	u, err := makeUnit("linux", "/usr/bin/patchkeep-agent", "/var/lib/patchkeep", "/etc/patchkeep/my agent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if u.File != "/etc/systemd/system/patchkeep-agent.service" {
		t.Errorf("file %s", u.File)
	}
	for _, line := range []string{
		`ExecStart=/usr/bin/patchkeep-agent run --state /var/lib/patchkeep --config "/etc/patchkeep/my agent.yaml" --log-level info`,
		"Wants=network-online.target", "Type=notify", "Restart=on-failure", "RestartPreventExitStatus=64", "StartLimitIntervalSec=0",
		"KillMode=process", "TimeoutStopSec=infinity", "StateDirectory=patchkeep", "StateDirectoryMode=0700", "WantedBy=multi-user.target",
	} {
		if !strings.Contains(u.Text, "\n"+line+"\n") {
			t.Errorf("the unit lacks %q:\n%s", line, u.Text)
		}
	}
	// Installers need all rights, and a network that never comes is no reason not to start.
	for _, never := range []string{"User=", "ProtectSystem", "NoNewPrivileges", "CapabilityBoundingSet", "PrivateTmp", "Requires="} {
		if strings.Contains(u.Text, never) {
			t.Errorf("the unit has %s:\n%s", never, u.Text)
		}
	}
	if u, err = makeUnit("linux", "/opt/a$b%c\"d", "/srv/state", ""); err != nil {
		t.Fatal(err)
	}
	if want := `ExecStart="/opt/a$$b%%c\"d" run --state /srv/state --log-level info`; !strings.Contains(u.Text, want) || strings.Contains(u.Text, "StateDirectory") {
		t.Errorf("want %s in\n%s", want, u.Text)
	}
}

// What has no definition is not installed, with a service manager or without.
func TestServiceNotInstalled(t *testing.T) {
	u := &unit{Name: serviceName, File: filepath.Join(t.TempDir(), "none.service")}
	if words, code, err := u.status(); err != nil || words != "not installed" || code != serviceNotInstalled {
		t.Errorf("status %q, %d, %v", words, code, err)
	}
}

// systemd itself finds no fault with the unit.
func TestSystemdAnalyze(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("there is no systemd-analyze")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	u, err := makeUnit("linux", exe, "/var/lib/patchkeep", "/etc/a b.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), serviceName+".service")
	if err := os.WriteFile(file, []byte(u.Text), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", file).CombinedOutput()
	if strings.Contains(string(out), serviceName) {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

func TestLaunchdPlist(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("paths are of another kind")
	}
	u, err := makeUnit("darwin", "/usr/local/bin/patchkeep-agent", "/var/lib/R&D", "")
	if err != nil {
		t.Fatal(err)
	}
	if u.File != "/Library/LaunchDaemons/patchkeep-agent.plist" {
		t.Errorf("file %s", u.File)
	}
	for _, want := range []string{
		"<string>/usr/local/bin/patchkeep-agent</string>\n\t\t<string>run</string>\n\t\t<string>--state</string>\n\t\t<string>/var/lib/R&amp;D</string>",
		"<key>RunAtLoad</key>\n\t<true/>", "<key>SuccessfulExit</key>\n\t\t<false/>", "<key>ExitTimeOut</key>\n\t<integer>3600</integer>",
	} {
		if !strings.Contains(u.Text, want) {
			t.Errorf("the plist lacks %q:\n%s", want, u.Text)
		}
	}
}

func TestWindowsService(t *testing.T) {
	u, err := makeUnit("windows", `C:\Program Files\Patchkeep\patchkeep-agent.exe`, t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	c := u.config()
	if u.Text != "" || c.Executable != u.Argv[0] || c.Arguments[0] != "run" || c.Option["DelayedAutoStart"] != true || c.Option["OnFailure"] != "restart" {
		t.Errorf("%+v", c)
	}
}

// No path can put a line of its own, or the service library's templates, into a
// definition.
func TestUnitRefusesStrangePaths(t *testing.T) {
	for _, path := range []string{"/a\nUser=x", "/a{{Path}}", "/a\x00b"} {
		for _, system := range []string{"linux", "darwin", "windows"} {
			_, err := makeUnit(system, "/bin/x", path, "")
			if _, ok := errors.AsType[*cli.UsageError](err); !ok {
				t.Errorf("%s: %q: %v, want a mistake of usage", system, path, err)
			}
		}
	}
}

func TestServiceStatus(t *testing.T) {
	for _, tt := range []struct {
		st    service.Status
		err   error
		words string
		code  int
	}{
		{service.StatusRunning, nil, "running", 0},
		{service.StatusStopped, nil, "stopped", 3},
		{service.StatusUnknown, errors.New("service in failed state"), "stopped", 3},
		{service.StatusUnknown, service.ErrNotInstalled, "not installed", 4},
	} {
		if words, code := statusOf(tt.st, tt.err); words != tt.words || code != tt.code {
			t.Errorf("%v, %v: %q, %d; want %q, %d", tt.st, tt.err, words, code, tt.words, tt.code)
		}
	}
}
