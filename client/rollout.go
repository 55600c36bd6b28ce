package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// Plan returns the plan of a ring, or nil if none is published. One that is not
// signed by the ring's own role is refused (tuf.ErrNotTrusted).
func (c *Client) Plan(ctx context.Context, ring string) (*rollout.Plan, error) {
	if err := layout.CheckName(ring); err != nil {
		return nil, fmt.Errorf("read plan: ring: %w", err)
	}
	data, err := c.signedBy(ctx, layout.PlanPath(ring), layout.RingRole(ring), rollout.MaxPlanSize)
	if data == nil || err != nil {
		return nil, err
	}
	plan, err := rollout.ParsePlan(data)
	if err != nil {
		return nil, fmt.Errorf("read plan of ring %s: %w", ring, err)
	}
	if plan.Ring != ring {
		return nil, fmt.Errorf("read plan of ring %s: %w: it says of itself that it is for ring %s", ring, tuf.ErrNotTrusted, plan.Ring)
	}
	return plan, nil
}

// Halts returns the patches that are stopped now. A list that is not signed by
// the role halt is refused (tuf.ErrNotTrusted).
func (c *Client) Halts(ctx context.Context) ([]rollout.Halt, error) {
	data, err := c.signedBy(ctx, layout.HaltsPath, layout.RoleHalt, rollout.MaxHaltsSize)
	if data == nil || err != nil {
		return nil, err
	}
	halts, err := rollout.ParseHalts(data)
	if err != nil {
		return nil, fmt.Errorf("read halts: %w", err)
	}
	return halts.Halts, nil
}

// signedBy reads a document that only role may sign; nil if there is none.
func (c *Client) signedBy(ctx context.Context, path, role string, max int64) ([]byte, error) {
	t, err := c.Target(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if t.Role != role {
		return nil, fmt.Errorf("read %s: %w: signed by %s, and only %s may", path, tuf.ErrNotTrusted, t.Role, role)
	}
	// A document that is signed and yet missing must not pass for one that was
	// never published: that would lift a halt.
	data, _, err := c.ReadTarget(ctx, path, max)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read %s: %w: it is signed, and no mirror has it", path, tuf.ErrOffline)
	}
	if err == nil && data == nil {
		data = []byte{}
	}
	return data, err
}

// Patch returns what a product's engineers say about a patch target, and the
// target. It is refused (tuf.ErrNotTrusted) if another role signed it, or if it
// says of itself something else than its path.
func (c *Client) Patch(ctx context.Context, path string) (*patch.Patch, *tuf.Target, error) {
	product, _, _, _, ok := layout.SplitPatchPath(path)
	if !ok {
		return nil, nil, fmt.Errorf("read patch: %w: %q is not the path of a patch", layout.ErrBadName, path)
	}
	t, err := c.Target(ctx, path)
	if err != nil {
		return nil, nil, err
	}
	if role := layout.ProductRole(product); t.Role != role {
		return nil, nil, fmt.Errorf("read patch %s: %w: signed by %s, and only %s may", path, tuf.ErrNotTrusted, t.Role, role)
	}
	p, err := patch.FromCustom(t.Custom)
	if err != nil {
		return nil, nil, fmt.Errorf("read patch %s: %w", path, err)
	}
	if p == nil || !p.MatchesPath(path) {
		return nil, nil, fmt.Errorf("read patch %s: %w: what is signed about it does not fit its path", path, tuf.ErrNotTrusted)
	}
	return p, t, nil
}
