// Package repo publishes to a repository: it stages a change on top of what is
// published, signs it, lets three clients walk the outcome, and commits it by
// the one write that replaces the timestamp.
//
// Nothing is believed because it lies in the store. Every change starts from
// metadata that verifies from the oldest root onward, and a change is signed
// only with keys that this metadata names. A publisher that loses a race, or
// that is killed at any moment, leaves a whole, valid repository behind.
package repo

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/store"
)

// Errors of this package, to be found with [errors.Is]. A product, ring, patch
// or halt that is not there is [io/fs.ErrNotExist].
var (
	// ErrExists says that what was to be added is published already.
	ErrExists = errors.New("exists already")
	// ErrNotTrusted says that what lies in the store does not verify.
	ErrNotTrusted = errors.New("repository not trusted")
	// ErrExpired says that clients would refuse the outcome as expired.
	ErrExpired = errors.New("metadata expired")
	// ErrKeys says that the given keys do not reach a role's threshold.
	ErrKeys = errors.New("keys missing")
	// ErrStale says that a waiting change no longer fits what is published.
	ErrStale = errors.New("change is stale")
	// ErrClosed says that a waiting change was given up.
	ErrClosed = errors.New("change is closed")
	// ErrBadPending says that what lies in pending/, or in a file of it, is not
	// what it has to be.
	ErrBadPending = errors.New("bad waiting change")
	// ErrUnknownRing says that the repository has no such ring.
	ErrUnknownRing = errors.New("unknown ring")
	// ErrNoRepository says that the store holds no repository.
	ErrNoRepository = errors.New("no repository")
	// ErrBusy says that other publishers won every race.
	ErrBusy = errors.New("repository is busy")
	// ErrFaults says that a verification found faults.
	ErrFaults = errors.New("repository has faults")
)

// Signer signs with one key.
type Signer interface {
	KeyID() string // TUF key id
	Public() crypto.PublicKey
	// Sign returns the signature over payload: raw for ed25519, ASN.1 DER over
	// SHA-256 for ECDSA P-256.
	Sign(ctx context.Context, payload []byte) ([]byte, error)
}

// Keys finds signers by TUF key id. A key that it does not have is an error
// that wraps [io/fs.ErrNotExist]; any other error ends the change.
type Keys func(ctx context.Context, keyID string) (Signer, error)

// Config is what a Repository needs beside its store.
type Config struct {
	Keys Keys             // nil: nothing can be signed
	Root []byte           // pinned root metadata; nil: the store's oldest is taken at its word
	Now  func() time.Time // nil: time.Now

	Pending Waiting // what becomes of changes that need further signatures
	By      string  // who stages, for people to read; it proves nothing
}

// Repository publishes to one store. It is safe for concurrent use, also by
// several processes on the same store.
type Repository struct {
	store store.Store
	keys  Keys
	root  []byte
	now   func() time.Time

	waiting Waiting
	by      string

	making *InitConfig // only while the repository is being made
}

// Open makes a Repository. It does not touch the store.
func Open(s store.Store, cfg Config) *Repository {
	r := &Repository{store: s, keys: cfg.Keys, root: cfg.Root, now: cfg.Now, waiting: cfg.Pending, by: cfg.By}
	if r.keys == nil {
		r.keys = func(context.Context, string) (Signer, error) {
			return nil, fmt.Errorf("%w: no keys were given", ErrKeys)
		}
	}
	if r.now == nil {
		r.now = time.Now
	}
	return r
}

// moment is now as metadata says it: UTC, whole seconds.
func (r *Repository) moment() time.Time { return r.now().UTC().Truncate(time.Second) }

// Change is what a publish does, or would do.
type Change struct {
	Roles     []RoleChange `json:"roles"`
	Timestamp int64        `json:"timestamp"` // version of the timestamp that committed it; 0: nothing was published
	Attempts  int          `json:"attempts"`  // 1, and one more for each lost race
	DryRun    bool         `json:"dry_run,omitempty"`

	// Pending is set if the change waits for signatures. Then nothing was
	// published.
	Pending *Pending `json:"pending,omitempty"`
}

// RoleChange is what a publish does to one role.
type RoleChange struct {
	Role    string         `json:"role"`
	From    int64          `json:"from"` // 0: the role is new
	To      int64          `json:"to"`
	Expires time.Time      `json:"expires"`
	Signers []string       `json:"signers,omitempty"` // key ids
	Targets []TargetChange `json:"targets,omitempty"`
}

// TargetChange is what a publish does to one target.
type TargetChange struct {
	Path   string `json:"path"`
	Action string `json:"action"` // add, change, remove
	Length int64  `json:"length,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

// lifetimeField is in the signed part of every role, beside tuf.SignedAtField:
// how long its metadata is valid, as time.ParseDuration reads it.
const lifetimeField = "x-patchkeep-lifetime"

// DefaultLifetime is how long a role's metadata is valid after it was signed.
func DefaultLifetime(role string) time.Duration {
	switch role {
	case layout.RoleTimestamp:
		return 48 * time.Hour
	case layout.RoleSnapshot:
		return 30 * 24 * time.Hour
	}
	return 365 * 24 * time.Hour
}

func roleLifetime(role string, fields map[string]any) time.Duration {
	if s, ok := fields[lifetimeField].(string); ok {
		if d, err := time.ParseDuration(s); err == nil && d > 0 {
			return d
		}
	}
	return DefaultLifetime(role)
}

// targetFile makes the TUF description of a target.
func targetFile(path string, length int64, sum [32]byte) *metadata.TargetFiles {
	return &metadata.TargetFiles{
		Path:   path,
		Length: length,
		Hashes: metadata.Hashes{"sha256": sum[:]},
	}
}

func logger(ctx context.Context) *zerolog.Logger { return zerolog.Ctx(ctx) }
