package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"github.com/patchkeep/patchkeep/client"
	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// EnrollOptions say to whom a machine listens from now on.
type EnrollOptions struct {
	Dir         string   // state directory
	Servers     []string // base URLs
	Root        []byte   // trusted root metadata, brought here by a safe way
	Ring        string
	MachineID   string // "": the one before, or from the system's, or random
	InstallRoot string // "": DefaultInstallRoot
	System      string // see Config
	Kinds       []patch.Kind
	Access      Access

	Force   bool // over an enrolment that is there
	Offline bool // do not ask the servers

	Fetch     fetch.Options // patience with mirrors
	HTTP      *http.Client
	UserAgent string
	Now       func() time.Time
}

// Enroll pins a root and a ring. Unless Offline, a server must serve a
// repository that chains from that root and has a plan for that ring. On any
// error an enrolment that was there before stays as it was.
func Enroll(ctx context.Context, o EnrollOptions) (*Config, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	old, err := readConfig(dir)
	switch {
	case err == nil && !o.Force:
		return nil, fmt.Errorf("%w: in ring %s with %s", ErrEnrolled, old.Ring, strings.Join(old.Servers, ", "))
	case err != nil && !errors.Is(err, ErrNotEnrolled) && !o.Force:
		return nil, err
	}
	c, err := o.config(old)
	if err != nil {
		return nil, fmt.Errorf("enroll: %w", err)
	}
	if err := install.PrivateDir(dir); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	lock := flock.New(filepath.Join(dir, "agent.lock"), flock.SetPermissions(0o600))
	if ok, err := lock.TryLock(); err != nil || !ok {
		return nil, errors.Join(fmt.Errorf("%w on %s", ErrBusy, dir), err)
	}
	defer lock.Unlock()

	scratch, err := os.MkdirTemp(dir, ".enroll-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(scratch)
	if err := o.ask(ctx, scratch, c); err != nil {
		return nil, fmt.Errorf("enroll: %w", err)
	}
	if err := o.write(dir, scratch, c); err != nil {
		return nil, fmt.Errorf("enroll: %w", err)
	}
	return c, nil
}

func (o *EnrollOptions) config(old *Config) (*Config, error) {
	c := &Config{
		Format: configFormat, Ring: o.Ring, MachineID: o.MachineID, InstallRoot: o.InstallRoot, System: o.System, Kinds: o.Kinds, Access: o.Access,
	}
	if err := c.absolute(); err != nil {
		return nil, err
	}
	for _, s := range o.Servers {
		c.Servers = append(c.Servers, strings.TrimRight(s, "/"))
	}
	if c.MachineID == "" && old != nil {
		c.MachineID = old.MachineID
	}
	var err error
	if c.MachineID == "" {
		if c.MachineID, err = newMachineID(); err != nil {
			return nil, err
		}
	}
	if c.InstallRoot == "" {
		c.InstallRoot = DefaultInstallRoot()
	}
	if c.InstallRoot, err = filepath.Abs(c.InstallRoot); err != nil {
		return nil, err
	}
	if c.System != "" {
		if c.System, err = filepath.Abs(c.System); err != nil {
			return nil, err
		}
	}
	if len(o.Root) == 0 {
		return nil, errors.New("no root metadata to pin")
	}
	if len(o.Root) > maxRoot {
		return nil, fmt.Errorf("root metadata of %d bytes, at most %d are allowed", len(o.Root), maxRoot)
	}
	return c, c.check()
}

// ask lets a client that knows nothing but the root look at the servers.
func (o *EnrollOptions) ask(ctx context.Context, scratch string, c *Config) error {
	cfg, err := c.connect(client.Config{
		Dir: scratch, Root: o.Root, Mirrors: c.Servers, MachineID: c.MachineID, Fetch: o.Fetch, HTTP: o.HTTP, UserAgent: o.UserAgent, Now: o.Now,
	})
	if err != nil {
		return err
	}
	cl, err := client.Open(cfg)
	if err != nil {
		return fmt.Errorf("pin root: %w", err)
	}
	defer cl.Close()
	if o.Offline {
		return nil
	}
	if err := cl.Refresh(ctx); err != nil {
		return fmt.Errorf("ask %s for metadata under this root: %w", strings.Join(c.Servers, ", "), err)
	}
	plan, err := cl.Plan(ctx, c.Ring)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the plan of ring %s: %w", c.Ring, err)
	}
	if plan == nil {
		return fmt.Errorf("ring %s: %w: it has no plan", c.Ring, ErrUnknownRing)
	}
	return nil
}

// write puts the new enrolment in place; agent.json, which makes it one, last.
// What was learnt from a repository with another root is forgotten; halts that
// were seen stay as long as the root does.
func (o *EnrollOptions) write(dir, scratch string, c *Config) error {
	pinned, err := readFile(filepath.Join(dir, rootFile), maxRoot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Remove(filepath.Join(dir, configFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !bytes.Equal(pinned, o.Root) {
		for _, name := range []string{"metadata", "documents", "downloads", haltsFile, haltsCopy, seenFile, reportFile} {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		if err := os.Rename(filepath.Join(scratch, "metadata"), filepath.Join(dir, "metadata")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := writeFile(filepath.Join(dir, rootFile), o.Root); err != nil {
		return err
	}
	return writeJSON(filepath.Join(dir, configFile), c)
}
