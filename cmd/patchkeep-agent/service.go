package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unicode"

	"github.com/kardianos/service"
	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
)

const serviceName = "patchkeep-agent"

// What 'service status' exits with, as systemctl and the LSB have it.
const (
	serviceRunning      = 0
	serviceStopped      = 3
	serviceNotInstalled = 4
)

var (
	errInstalled    = errors.New("the service is installed already")
	errNotInstalled = errors.New("the service is not installed")
	errRights       = errors.New("this needs the rights of the administrator")
)

func newService() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "service",
		Short:   "Run the agent as a service of the system",
		Example: "  sudo patchkeep-agent service install\n  sudo patchkeep-agent service start",
		Long: `service makes 'patchkeep-agent run' a service: of systemd on Linux, of the Service
Control Manager on Windows, of launchd on macOS. It starts with the system, is
started again if it fails, and waits for a running installer when it is stopped.`,
	}
	cmd.AddCommand(newServiceInstall(),
		newServiceDo("uninstall", "Stop the service and take it away; its state stays", "uninstalled"),
		newServiceDo("start", "Start the service", "started"),
		newServiceDo("stop", "Stop the service, once a running installer is through", "stopped"),
		newServiceStatus())
	return cmd
}

func newServiceInstall() *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Make it a service, and start it with the system",
		Long: `install makes a service of this very program, with the --state and --config that
are given here. Everything else stays in the settings file. It does not start it:
that is 'patchkeep-agent service start', or the next boot.`,
		Example: `  sudo patchkeep-agent service install
  patchkeep-agent service install --config /etc/patchkeep/agent.yaml --dry-run`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			u, err := newUnit(cmd)
			if err != nil {
				return err
			}
			if dry {
				return cli.Print(cmd, u, func(w io.Writer) error { return printUnit(w, u) })
			}
			s, err := u.service()
			if err != nil {
				return err
			}
			if _, err := s.Status(); !errors.Is(err, service.ErrNotInstalled) {
				return errInstalled
			}
			if err := s.Install(); err != nil {
				return fmt.Errorf("install service: %w", errors.Join(err, s.Uninstall()))
			}
			if err := afterInstall(); err != nil {
				return fmt.Errorf("install service: %w", errors.Join(err, s.Uninstall()))
			}
			return cli.Print(cmd, u, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "Installed service %s: %s\nNext: patchkeep-agent service start\n", u.Name, strings.Join(u.Argv, " "))
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only show what would be installed")
	return cmd
}

func newServiceDo(verb, short, done string) *cobra.Command {
	return &cobra.Command{
		Use: verb, Short: short, Example: "  sudo patchkeep-agent service " + verb, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			u, err := newUnit(cmd)
			if err != nil {
				return err
			}
			s, err := u.service()
			if err != nil {
				return err
			}
			st, err := s.Status()
			if errors.Is(err, service.ErrNotInstalled) {
				return errNotInstalled
			}
			switch verb {
			case "start":
				err = s.Start()
			case "stop":
				err = s.Stop()
			default:
				if st == service.StatusRunning {
					if err := s.Stop(); err != nil {
						return fmt.Errorf("stop service: %w", err)
					}
				}
				err = s.Uninstall()
			}
			if err != nil {
				return fmt.Errorf("%s service: %w", verb, err)
			}
			return cli.Print(cmd, map[string]string{"service": done}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "Service %s %s.\n", u.Name, done)
				return err
			})
		},
	}
}

func newServiceStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say whether the service is installed and runs",
		Long: `status says running, stopped, or not installed, and exits with 0, 3 or 4. What the
agent is doing is told by 'patchkeep-agent status'.`,
		Example: "  patchkeep-agent service status",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			u, err := newUnit(cmd)
			if err != nil {
				return err
			}
			words, code, err := u.status()
			if err != nil {
				return err
			}
			if err := cli.Print(cmd, map[string]string{"service": words}, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, words)
				return err
			}); err != nil {
				return err
			}
			if code == serviceRunning {
				return nil
			}
			return cli.Exit(fmt.Errorf("service %s is %s", u.Name, words), code)
		},
	}
}

func (u *unit) status() (words string, code int, err error) {
	if u.File != "" { // what is not defined is not there, whatever a manager has to say, or if there is none
		if _, err := os.Stat(u.File); errors.Is(err, fs.ErrNotExist) {
			words, code = statusOf(service.StatusUnknown, service.ErrNotInstalled)
			return words, code, nil
		}
	}
	s, err := service.New(nil, u.config())
	if err != nil {
		return "", 0, noManager(err)
	}
	words, code = statusOf(s.Status())
	return words, code, nil
}

func statusOf(st service.Status, err error) (words string, code int) {
	switch {
	case errors.Is(err, service.ErrNotInstalled):
		return "not installed", serviceNotInstalled
	case err == nil && st == service.StatusRunning:
		return "running", serviceRunning
	}
	return "stopped", serviceStopped // systemd's failed is an error here
}

// unit is what is installed.
type unit struct {
	Name string   `json:"name"`
	Argv []string `json:"argv"`           // what is run
	File string   `json:"file,omitempty"` // where its definition goes; Windows has none
	Text string   `json:"text,omitempty"` // and the definition

	state string
}

// newUnit is the service of this program with the state and the settings file
// of the command line.
func newUnit(cmd *cobra.Command) (*unit, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	if exe, err = filepath.EvalSymlinks(exe); err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	state, err := cmd.Flags().GetString("state")
	if err != nil {
		return nil, err
	}
	config, err := cmd.Flags().GetString("config")
	if err != nil {
		return nil, err
	}
	return makeUnit(runtime.GOOS, exe, state, config)
}

func makeUnit(system, exe, state, config string) (*unit, error) {
	u := &unit{Name: serviceName}
	var err error
	if u.state, err = filepath.Abs(state); err != nil {
		return nil, err
	}
	u.Argv = []string{exe, "run", "--state", u.state}
	if config != "" {
		if config, err = filepath.Abs(config); err != nil {
			return nil, err
		}
		u.Argv = append(u.Argv, "--config", config)
	}
	u.Argv = append(u.Argv, "--log-level", "info")
	for _, arg := range u.Argv {
		// The second is how the templates of the service library begin.
		if strings.ContainsFunc(arg, unicode.IsControl) || strings.Contains(arg, "{{") {
			return nil, cli.Usagef("%q cannot stand in the definition of a service", arg)
		}
	}
	switch system {
	case "linux":
		u.File, u.Text = "/etc/systemd/system/"+serviceName+".service", systemdUnit(u)
	case "darwin":
		u.File, u.Text = "/Library/LaunchDaemons/"+serviceName+".plist", launchdPlist(u)
	}
	return u, nil
}

func (u *unit) config() *service.Config {
	return &service.Config{
		Name: u.Name, DisplayName: "Patchkeep agent", Description: "Keeps this machine patched, by signed metadata alone",
		Executable: u.Argv[0], Arguments: u.Argv[1:],
		Option: service.KeyValue{
			"SystemdScript": u.Text, "LaunchdConfig": u.Text,
			"DelayedAutoStart": true, "OnFailure": "restart", "OnFailureDelayDuration": "30s", "OnFailureResetPeriod": 3600,
		},
	}
}

// service is for changing it: for that one must be the administrator.
func (u *unit) service() (service.Service, error) {
	if !isAdmin() {
		return nil, errRights
	}
	s, err := service.New(nil, u.config())
	if err != nil {
		return nil, noManager(err)
	}
	if p := s.Platform(); runtime.GOOS == "linux" && p != "linux-systemd" {
		return nil, noManager(fmt.Errorf("it is run by %s", p))
	}
	return s, nil
}

func noManager(err error) error {
	return cli.WithHint(fmt.Errorf("this system has no service manager that is known here: %w", err),
		"have it start: patchkeep-agent run; 'patchkeep-agent service install --dry-run' shows how systemd would")
}

func printUnit(w io.Writer, u *unit) error {
	if u.File == "" {
		_, err := fmt.Fprintf(w, "Service %s, started late with the system, and again 30 s after a failure:\n%q\n", u.Name, u.Argv)
		return err
	}
	_, err := fmt.Fprintf(w, "# %s\n%s", u.File, u.Text)
	return err
}

// systemdUnit takes no rights away: installers need all of them.
func systemdUnit(u *unit) string {
	var b strings.Builder
	b.WriteString(`[Unit]
Description=Patchkeep agent: keeps this machine patched, by signed metadata alone
Documentation=https://github.com/patchkeep/patchkeep/blob/main/docs/operations.md
Wants=network-online.target
After=network-online.target nss-lookup.target time-sync.target
# It never gives up.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart=`)
	for i, arg := range u.Argv {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(systemdQuote(arg))
	}
	b.WriteString(`
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=30
# A wrong command line or settings file does not mend itself.
RestartPreventExitStatus=64
# When it is stopped, an installer that runs is neither ended nor cut short.
KillMode=process
TimeoutStopSec=infinity
OOMPolicy=continue
`)
	if u.state == "/var/lib/patchkeep" {
		b.WriteString("StateDirectory=patchkeep\nStateDirectoryMode=0700\n")
	}
	b.WriteString(`# Whoever works at the machine comes first.
CPUWeight=20
IOWeight=20

[Install]
WantedBy=multi-user.target
`)
	return b.String()
}

// systemdQuote writes one argument of ExecStart, see systemd.service(5).
func systemdQuote(s string) string {
	r := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$")
	quoted := r.Replace(s)
	if quoted == s && !strings.ContainsAny(s, " ';") {
		return s
	}
	return `"` + quoted + `"`
}

// launchdPlist: it is started again unless it ended well, and has an hour to
// stop, since an installer may be running.
func launchdPlist(u *unit) string {
	xml := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")
	var b strings.Builder
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
	<key>Label</key>
	<string>` + u.Name + `</string>
	<key>ProgramArguments</key>
	<array>
`)
	for _, arg := range u.Argv {
		b.WriteString("\t\t<string>" + xml.Replace(arg) + "</string>\n")
	}
	b.WriteString(`	</array>
	<key>RunAtLoad</key>
	<true/>
	<key>KeepAlive</key>
	<dict>
		<key>SuccessfulExit</key>
		<false/>
	</dict>
	<key>ThrottleInterval</key>
	<integer>30</integer>
	<key>ExitTimeOut</key>
	<integer>3600</integer>
	<key>AbandonProcessGroup</key>
	<true/>
	<key>ProcessType</key>
	<string>Background</string>
	<key>StandardErrorPath</key>
	<string>/var/log/patchkeep-agent.log</string>
</dict>
</plist>
`)
	return b.String()
}
