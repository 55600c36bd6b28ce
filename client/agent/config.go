package agent

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
)

const (
	configFile   = "agent.json"
	rootFile     = "root.json"
	configFormat = 1
	maxRoot      = 512 << 10
	maxServers   = 64
)

// Config is agent.json: what this machine was told at enrolment, and believes
// from nobody else.
type Config struct {
	Format      int          `json:"format"`
	Servers     []string     `json:"servers"` // base URLs, tried in order
	Ring        string       `json:"ring"`
	MachineID   string       `json:"machine_id"`
	InstallRoot string       `json:"install_root"`     // of archives and delivered files
	System      string       `json:"system,omitempty"` // root that packages go into; "": the running system
	Kinds       []patch.Kind `json:"kinds,omitempty"`  // that this machine takes; none: all
	Access
}

func readConfig(dir string) (*Config, error) {
	path := filepath.Join(dir, configFile)
	data, err := readFile(path, 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (there is no %s)", ErrNotEnrolled, path)
	}
	if err != nil {
		return nil, fmt.Errorf("read enrolment: %w", err)
	}
	var c Config
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		if !json.Valid(data) {
			return nil, fmt.Errorf("the enrolment %s is %w: enroll this machine again, with --force", path, ErrDamaged)
		}
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return &c, nil
}

func (c *Config) check() error {
	if c.Format != configFormat {
		return fmt.Errorf("format %d is not known to this version (it knows %d)", c.Format, configFormat)
	}
	if len(c.Servers) == 0 || len(c.Servers) > maxServers {
		return fmt.Errorf("%d servers, 1 to %d are allowed", len(c.Servers), maxServers)
	}
	for _, s := range c.Servers {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			return fmt.Errorf("server %q is not a URL like https://updates.example.org", s)
		}
	}
	if err := layout.CheckName(c.Ring); err != nil {
		return fmt.Errorf("ring: %w", err)
	}
	if c.MachineID == "" || len(c.MachineID) > 128 || strings.ContainsFunc(c.MachineID, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("machine id %q is not 1 to 128 printable characters", c.MachineID)
	}
	if !filepath.IsAbs(c.InstallRoot) || c.System != "" && !filepath.IsAbs(c.System) {
		return errors.New("install root and system root must be absolute paths")
	}
	if err := c.Access.check(); err != nil {
		return err
	}
	for _, k := range c.Kinds {
		if !slices.Contains(patch.Kinds, k) {
			return fmt.Errorf("kind %q is none of %v", k, patch.Kinds)
		}
	}
	return nil
}

// takes reports whether the machine takes patches of a kind.
func (c *Config) takes(k patch.Kind) bool { return len(c.Kinds) == 0 || slices.Contains(c.Kinds, k) }

// newMachineID derives an id from the system's own, so that it is the same
// after a new enrolment and tells nobody the system's; or else draws one.
func newMachineID() (string, error) {
	for _, path := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
		if data, err := os.ReadFile(path); err == nil && len(bytes.TrimSpace(data)) >= 32 {
			sum := sha256.Sum256(append([]byte("patchkeep machine id\x00"), bytes.TrimSpace(data)...))
			return hex.EncodeToString(sum[:16]), nil
		}
	}
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("draw machine id: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}
