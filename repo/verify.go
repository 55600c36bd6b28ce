package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/mirrors"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// Source is a repository as an outsider reads it, over whatever lies between.
type Source interface {
	tuf.Fetcher
	// OpenTarget returns the bytes of a target object from offset on, and the
	// object's whole size (-1 if that is not known). object is as
	// layout.TargetObject names it. A missing one is fs.ErrNotExist.
	OpenTarget(ctx context.Context, object string, offset int64) (io.ReadCloser, int64, error)
	String() string
}

// VerifyConfig says how a repository is verified.
type VerifyConfig struct {
	Root     []byte           // pinned root; nil: version 1 of the source is taken at its word
	Now      func() time.Time // nil: time.Now
	Quick    bool             // ask for the size of each target, but do not read it
	Progress func(what string, done, total int64)
}

// Report is what a verification found.
type Report struct {
	Source   string    `json:"source"`
	Roles    []Expiry  `json:"roles"`
	Targets  int       `json:"targets"`
	Bytes    int64     `json:"bytes"` // of targets that were read and hashed
	Patches  int       `json:"patches"`
	Deltas   int       `json:"deltas"`
	Faults   []Fault   `json:"faults"`
	Warnings []Fault   `json:"warnings"`
	Moment   time.Time `json:"moment"`

	expired bool
}

// Fault is one thing that is wrong, and where.
type Fault struct {
	Where string `json:"where"`
	What  string `json:"what"`
}

// Err is nil if there are no faults, else ErrFaults, with ErrExpired if nothing
// is wrong but that metadata has expired.
func (r *Report) Err() error {
	switch {
	case len(r.Faults) == 0:
		return nil
	case r.expired && len(r.Faults) == 1:
		return fmt.Errorf("%w: %w: %s", ErrFaults, ErrExpired, r.Faults[0].What)
	}
	return fmt.Errorf("%w: %d found", ErrFaults, len(r.Faults))
}

// Verify walks a whole repository as an outsider who has nothing but a root:
// every role, every target, every block list, plan and halt. What is wrong with
// the repository is in the report; an error means that it could not be looked
// at.
func Verify(ctx context.Context, src Source, cfg VerifyConfig) (*Report, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Progress == nil {
		cfg.Progress = func(string, int64, int64) {}
	}
	v := &verifier{src: src, cfg: cfg, report: &Report{
		Source: src.String(), Roles: []Expiry{}, Faults: []Fault{}, Warnings: []Fault{}, Moment: cfg.Now().UTC().Truncate(time.Second),
	}}
	if cfg.Root == nil {
		data, err := src.FetchMetadata(ctx, layout.MetadataFile(layout.RoleRoot, 1), 1<<20)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w at %s", ErrNoRepository, src)
		}
		if err != nil {
			return nil, err
		}
		v.cfg.Root = data
	}
	if err := v.run(ctx); err != nil {
		return nil, err
	}
	return v.report, nil
}

type verifier struct {
	src    Source
	cfg    VerifyConfig
	report *Report
	rings  map[string]bool // that targets delegates to

	policies *rollout.Policies // nil: none that can be read

	targets map[string]*metadata.TargetFiles // by path: what each role vouches for
	roles   map[string]string                // by path
}

func (v *verifier) fault(where, format string, args ...any) {
	v.report.Faults = append(v.report.Faults, Fault{where, fmt.Sprintf(format, args...)})
}

func (v *verifier) warn(where, format string, args ...any) {
	v.report.Warnings = append(v.report.Warnings, Fault{where, fmt.Sprintf(format, args...)})
}

// verdict tells a fault of the repository, which is noted, from an error on the
// way to it, which ends the verification.
func (v *verifier) verdict(where string, err error) error {
	switch {
	case errors.Is(err, tuf.ErrExpired):
		v.report.expired = true
		v.fault(where, "%v", err)
	case errors.Is(err, tuf.ErrNotTrusted), errors.Is(err, fs.ErrNotExist), errors.Is(err, tuf.ErrTooLarge), errors.Is(err, tuf.ErrClock):
		v.fault(where, "%v", err)
	default:
		return err
	}
	return nil
}

func (v *verifier) run(ctx context.Context) error {
	c, err := tuf.Open(tuf.Config{Root: v.cfg.Root, Fetcher: missing{v.src}, Now: v.cfg.Now})
	if err != nil {
		return v.verdict("root", err)
	}
	defer c.Close()
	if err := c.Refresh(ctx); err != nil {
		return v.verdict("metadata", err)
	}
	v.targets = make(map[string]*metadata.TargetFiles)
	v.roles = make(map[string]string)
	v.rings = make(map[string]bool)
	err = c.Walk(ctx, func(role *tuf.Role) error {
		return v.role(ctx, c, role)
	})
	if err != nil {
		if err := v.verdict("roles", err); err != nil {
			return err
		}
	}
	v.expiries(c)
	return v.contents(ctx)
}

// missing is a source in which what the metadata names must be there: a hole is
// a fault of the repository, not of the way to it.
type missing struct{ Source }

func (m missing) FetchMetadata(ctx context.Context, name string, limit int64) ([]byte, error) {
	data, err := m.Source.FetchMetadata(ctx, name, limit)
	if role, _, ok := layout.ParseMetadataFile(name); errors.Is(err, fs.ErrNotExist) && ok && role != layout.RoleRoot {
		return nil, fmt.Errorf("%s is missing: %w", name, tuf.ErrNotTrusted)
	}
	return data, err
}

func (v *verifier) expiries(c *tuf.Client) {
	st := c.Status()
	for _, name := range slices.Sorted(maps.Keys(st.Roles)) {
		r := st.Roles[name]
		life := DefaultLifetime(name)
		v.report.Roles = append(v.report.Roles, Expiry{Role: name, Version: r.Version, Expires: r.Expires, Lifetime: life})
		if left := r.Expires.Sub(v.report.Moment); left > 0 && left < life/10 {
			v.warn(name, "expires in %s, at %s", left.Round(time.Minute), r.Expires.Format(time.RFC3339))
		}
	}
	slices.SortStableFunc(v.report.Roles, func(a, b Expiry) int { return a.Expires.Compare(b.Expires) })
}

// role takes down what a role vouches for, as far as a client's walk from the
// top finds it there.
func (v *verifier) role(ctx context.Context, c *tuf.Client, role *tuf.Role) error {
	if ring, ok := layout.RingOfRole(role.Name); ok {
		v.rings[ring] = true
	}
	if role.Name == layout.RoleTargets {
		var err error
		if v.policies, err = policiesOf(&role.Metadata.Signed); err != nil {
			v.fault(role.Name, "%v", err)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(role.Metadata.Signed.Targets)) {
		where := role.Name + ": " + path
		if err := layout.CheckTargetPath(path); err != nil {
			v.fault(where, "%v", err)
			continue
		}
		got, err := c.Target(ctx, path)
		if err != nil {
			if err := v.verdict(where, err); err != nil {
				return err
			}
			continue
		}
		if got.Role != role.Name {
			v.fault(where, "no client finds it there: role %s answers for this path", got.Role)
			continue
		}
		v.targets[path] = role.Metadata.Signed.Targets[path]
		v.roles[path] = role.Name
	}
	return nil
}

func (v *verifier) contents(ctx context.Context) error {
	var total, done int64
	for _, tf := range v.targets {
		total += tf.Length
	}
	v.report.Targets = len(v.targets)
	for _, path := range slices.Sorted(maps.Keys(v.targets)) {
		v.cfg.Progress(path, done, total)
		if err := v.target(ctx, path); err != nil {
			return err
		}
		done += v.targets[path].Length
	}
	v.cfg.Progress("", total, total)
	return nil
}

func (v *verifier) target(ctx context.Context, path string) error {
	tf := v.targets[path]
	sum := tf.Hashes["sha256"].String()
	if !layout.IsSHA256(sum) {
		v.fault(path, "it has no sha256")
		return nil
	}
	v.described(path, tf)
	rc, size, err := v.src.OpenTarget(ctx, layout.TargetObject(path, sum), 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			v.fault(path, "its content is missing: %s", layout.TargetObject(path, sum))
			return nil
		}
		return err
	}
	defer rc.Close()
	if size >= 0 && size != tf.Length {
		v.fault(path, "it has %d bytes, and role %s signed %d", size, v.roles[path], tf.Length)
		return nil
	}
	if v.cfg.Quick {
		return nil
	}
	h := newBlockHasher()
	var keep bytes.Buffer
	out := io.Writer(h)
	if v.isDocument(path) {
		out = io.MultiWriter(h, &keep)
	}
	n, err := io.Copy(out, io.LimitReader(rc, tf.Length+1))
	v.report.Bytes += n
	got, blocks := h.Sum()
	if err != nil && ctx.Err() != nil {
		return err
	}
	if err != nil || n != tf.Length || hex.EncodeToString(got[:]) != sum {
		v.fault(path, "its content is not what role %s signed (read %d bytes with sha256 %x, signed are %d with %s)", v.roles[path], n, got, tf.Length, sum)
		return nil
	}
	v.blocks(path, tf, blocks)
	v.document(path, keep.Bytes())
	return nil
}

// digest is patch.Digest, or "" if what is signed is no description.
func (v *verifier) digest(tf *metadata.TargetFiles) string {
	if tf.Custom == nil {
		return ""
	}
	sum, err := patch.Digest(*tf.Custom)
	if err != nil {
		return "" // described has said so
	}
	return sum
}

// described checks what a patch says of itself.
func (v *verifier) described(path string, tf *metadata.TargetFiles) {
	if target, _, ok := layout.DeltaOf(path); ok {
		v.delta(path, target, tf)
		return
	}
	if _, _, _, _, ok := layout.SplitPatchPath(path); !ok {
		return
	}
	var p *patch.Patch
	var err error
	if tf.Custom != nil {
		p, err = patch.FromCustom(*tf.Custom)
	}
	switch {
	case err != nil:
		v.fault(path, "%v", err)
	case p == nil:
		v.fault(path, "it is not described: custom.patchkeep is missing")
	case !p.MatchesPath(path):
		v.fault(path, "it describes another patch: %s", p.ID)
	default:
		v.report.Patches++
	}
}

// delta checks what a delta says of itself.
func (v *verifier) delta(path, target string, tf *metadata.TargetFiles) {
	of := v.targets[target]
	if of == nil {
		v.warn(path, "it makes a file that no product vouches for")
		return
	}
	if v.roles[path] != v.roles[target] {
		v.fault(path, "role %s signed it, and role %s the patch: no client uses it", v.roles[path], v.roles[target])
		return
	}
	if _, err := deltaInfo(path, tf, target, of.Hashes["sha256"].String(), of.Length); err != nil {
		v.fault(path, "%v", err)
		return
	}
	v.report.Deltas++
}

// blocks compares a target with its block list, if there has to be one.
func (v *verifier) blocks(path string, tf *metadata.TargetFiles, want []byte) {
	if _, ok := layout.PatchOf(path); !ok || strings.HasSuffix(path, layout.BlocksPath("")) {
		return
	}
	list := v.targets[layout.BlocksPath(path)]
	if list == nil {
		if layout.BlockListLen(tf.Length) > 0 {
			v.warn(path, "it has no block list, so it is downloaded as a whole")
		}
		return
	}
	// The list is small, and its own hash is checked on its own turn.
	sum := sha256.Sum256(want)
	if !bytes.Equal(list.Hashes["sha256"], sum[:]) {
		v.fault(layout.BlocksPath(path), "it is not the block list of %s", path)
	}
}

func (v *verifier) isDocument(path string) bool {
	tf := v.targets[path]
	_, isPlan := v.planRing(path)
	return (isPlan || path == layout.HaltsPath || path == layout.MirrorsPath) && tf.Length <= rollout.MaxPlanSize
}

func (v *verifier) planRing(path string) (string, bool) {
	for ring := range v.rings {
		if path == layout.PlanPath(ring) {
			return ring, true
		}
	}
	return "", false
}

// document checks a plan, the halt list or the list of mirrors.
func (v *verifier) document(path string, data []byte) {
	var err error
	switch path {
	case layout.HaltsPath:
		_, err = rollout.ParseHalts(data)
	case layout.MirrorsPath:
		_, err = mirrors.Parse(data)
	}
	if err != nil {
		v.fault(path, "%v", err)
	}
	ring, ok := v.planRing(path)
	if !ok {
		return
	}
	p, err := rollout.ParsePlan(data)
	if err != nil {
		v.fault(path, "%v", err)
		return
	}
	if p.Ring != ring {
		v.fault(path, "it is the plan of ring %s", p.Ring)
	}
	policy := v.policies.Of(ring)
	for _, e := range p.Entries {
		if policy.ChangeRequired && e.Change == "" {
			v.warn(path, "it approves %s without a change record, and the ring's policy asks for one", e.Patch)
		}
		tf := v.targets[e.Patch]
		switch {
		case tf == nil:
			v.warn(path, "it approves %s, which no product vouches for (withdrawn?)", e.Patch)
		case tf.Hashes["sha256"].String() != e.SHA256:
			v.warn(path, "it approves other content of %s than its product vouches for", e.Patch)
		case v.digest(tf) != e.Custom:
			v.warn(path, "it approves other recipes of %s than its product vouches for", e.Patch)
		}
	}
}
