package repo

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// policiesField is in the signed part of targets: rollout.Policies. It stands
// there and not in a ring's own documents, since those are signed by whom it
// binds; and not in the delegations, since some clients drop what they do not
// know there, and with it the signature.
const policiesField = "x-patchkeep-policies"

// policiesOf reads the policies that targets signs; none are no error.
func policiesOf(targets *metadata.TargetsType) (*rollout.Policies, error) {
	field, ok := targets.UnrecognizedFields[policiesField]
	if !ok {
		return &rollout.Policies{Format: rollout.Format}, nil
	}
	data, err := json.Marshal(field)
	if err != nil {
		return nil, fmt.Errorf("read policies: %w", err)
	}
	return rollout.ParsePolicies(data)
}

func (d *draft) policies(ctx context.Context) (*rollout.Policies, error) {
	targets, err := d.read(ctx, layout.RoleTargets)
	if err != nil {
		return nil, err
	}
	return policiesOf(targets)
}

func (d *draft) putPolicy(ctx context.Context, policy rollout.Policy) error {
	targets, err := d.edit(ctx, layout.RoleTargets)
	if err != nil {
		return err
	}
	all, err := policiesOf(targets)
	if err != nil {
		return err
	}
	all.Put(policy)
	data, err := all.Encode()
	if err != nil {
		return err
	}
	var field map[string]any
	if err := json.Unmarshal(data, &field); err != nil {
		return err
	}
	targets.UnrecognizedFields[policiesField] = field
	return nil
}

// AddRing makes a ring, whose approvers hold the keys of cfg, under a policy.
// It needs the signatures of targets and of the new ring, which signs an empty
// plan. A ring that is there is ErrExists.
func (r *Repository) AddRing(ctx context.Context, cfg RoleConfig, policy rollout.Policy, dryRun bool) (*Change, error) {
	if err := policy.Check(); err != nil {
		return nil, err
	}
	return r.publish(ctx, dryRun, func(ctx context.Context, d *draft) error {
		if err := d.checkAfter(policy); err != nil {
			return err
		}
		if err := d.add(ctx, cfg, layout.RingRole(policy.Ring), layout.RingPatterns(policy.Ring)); err != nil {
			return err
		}
		if err := d.putPolicy(ctx, policy); err != nil {
			return err
		}
		return d.putPlan(ctx, &rollout.Plan{Format: rollout.Format, Ring: policy.Ring, Entries: []rollout.Entry{}})
	})
}

// SetPolicy changes the policy of a ring with edit, which gets the one that is
// in force. It needs the signatures of targets.
func (r *Repository) SetPolicy(ctx context.Context, ring string, edit func(*rollout.Policy) error, dryRun bool) (*Change, error) {
	return r.publish(ctx, dryRun, func(ctx context.Context, d *draft) error {
		if _, err := d.ringPlan(ctx, ring); err != nil {
			return err
		}
		all, err := d.policies(ctx)
		if err != nil {
			return err
		}
		policy := all.Of(ring)
		if err := edit(&policy); err != nil {
			return err
		}
		if err := d.checkAfter(policy); err != nil {
			return err
		}
		return d.putPolicy(ctx, policy)
	})
}

func (d *draft) checkAfter(policy rollout.Policy) error {
	if policy.After != "" && !slices.Contains(d.base.rings(), policy.After) {
		return fmt.Errorf("policy of ring %s: after: %w %s", policy.Ring, ErrUnknownRing, policy.After)
	}
	return nil
}

// Ring is a ring, who approves for it, and what is demanded of it.
type Ring struct {
	RoleInfo
	Policy  rollout.Policy `json:"policy"`
	Signers []string       `json:"signers"` // key ids under the plan in force
	Expires time.Time      `json:"expires"`
}

// Rings lists the rings.
func (r *Repository) Rings(ctx context.Context) ([]Ring, error) {
	base, err := r.load(ctx)
	if err != nil {
		return nil, err
	}
	all, err := policiesOf(&base.trusted.Targets[layout.RoleTargets].Signed)
	if err != nil {
		return nil, err
	}
	rings := []Ring{}
	for _, del := range base.delegations() {
		name, ok := layout.RingOfRole(del.Name)
		if !ok {
			continue
		}
		md, err := base.role(ctx, del.Name)
		if err != nil {
			return nil, err
		}
		rings = append(rings, Ring{
			RoleInfo: RoleInfo{Name: name, Version: md.Signed.Version, KeyIDs: del.KeyIDs, Threshold: del.Threshold, Targets: len(md.Signed.Targets)},
			Policy:   all.Of(name), Signers: signersOf(md, del.KeyIDs), Expires: md.Signed.Expires,
		})
	}
	return rings, nil
}

// signersOf lists the keys of a role that stand under its metadata.
func signersOf(md *metadata.Metadata[metadata.TargetsType], keyIDs []string) []string {
	signers := []string{}
	for _, s := range md.Signatures {
		if slices.Contains(keyIDs, s.KeyID) && !slices.Contains(signers, s.KeyID) {
			signers = append(signers, s.KeyID)
		}
	}
	return signers
}
