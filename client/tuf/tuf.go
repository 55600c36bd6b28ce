// Package tuf is the client's side of The Update Framework (specification
// 1.0.34, section 5): it keeps a small set of verified metadata up to date and
// says which target files that metadata vouches for.
//
// It trusts one root file, given at the first start. Everything else is
// hostile until it verifies: the network, the server, mirrors on the way, and
// also the files of its own state but the root. It knows no HTTP and no S3;
// bytes come from a Fetcher.
//
// What it promises against an attacker who owns the network and the server but
// fewer keys than a role's threshold:
//
//   - arbitrary metadata, mix-and-match: refused, nothing of it is kept;
//   - rollback: no role ever goes back, across restarts too;
//   - freeze: noticed when the metadata expires, by a clock that may not stand
//     behind the newest time that the repository itself has signed;
//   - fast-forward: undone by rotating the keys in a new root;
//   - endless data, deep or huge delegation graphs: cut at fixed bounds;
//   - a role signed for one delegator is not taken for another: each walk
//     verifies each role against the delegator that it came from.
//
// Types, canonical JSON and signatures are go-tuf's metadata package. The
// workflow is our own rather than go-tuf's trustedmetadata, which cannot take a
// new root after a timestamp, panics on some unsigned input, and refuses a
// role for one key that it does not know although enough others signed.
package tuf

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Every error of this package wraps exactly one of these, or fs.ErrNotExist
// (no role signs this target), or the context's error, or, unwrapped, the
// operating system's about the local state.
var (
	// ErrNotTrusted: metadata that is malformed, not signed by enough keys,
	// older than what is trusted already, or inconsistent with the rest.
	ErrNotTrusted = errors.New("not trusted")
	// ErrExpired: metadata that is genuine but too old, or a clock too far ahead.
	ErrExpired = errors.New("expired")
	// ErrOffline: the repository could not be reached, or lacks a file that its
	// own metadata names. Trying again later may help.
	ErrOffline = errors.New("repository not reachable")
	// ErrClock: this machine's clock stands behind a time the repository has signed.
	ErrClock = errors.New("clock is behind")
	// ErrLocked: another process uses this state.
	ErrLocked = errors.New("state is in use by another process")
	// ErrTooLarge: a file is longer than its bound.
	ErrTooLarge = errors.New("too large")
)

// SignedAtField is the unrecognised field that the publisher puts in every
// signed part: when it was signed, RFC 3339 UTC with whole seconds.
const SignedAtField = "x-patchkeep-signed-at"

// Fetcher reads metadata files of a repository.
//
// name is one path element as layout.MetadataFile makes it: "timestamp.json",
// "3.root.json", "7.product-x.json", the role percent-encoded; without the
// number in repositories that have no consistent snapshots. It returns at most
// max bytes; a longer file is an error wrapping ErrTooLarge. An absent file
// (HTTP 403 and 404 alike) wraps fs.ErrNotExist. A failure of the network or
// the server wraps ErrOffline.
type Fetcher interface {
	FetchMetadata(ctx context.Context, name string, max int64) ([]byte, error)
}

// Config says what a Client trusts and where it keeps it.
type Config struct {
	// Dir holds the trusted state across runs: root.json, timestamp.json,
	// <role>.json with the role percent-encoded. Empty: memory only.
	Dir string
	// Root is the trusted root to begin with, and may be nil if Dir has one.
	// If both are there, the newer version wins: Dir's root was reached through
	// signed successors, and Root comes from whoever installs this machine and
	// may replace it, say on a re-installation after the chain broke. A version
	// that Dir has trusted with other content is another repository's, and an
	// error.
	Root    []byte
	Fetcher Fetcher
	Now     func() time.Time // nil: time.Now
	Limits  Limits
	// ReadOnly neither writes Dir nor locks it; what is fetched stays in memory.
	ReadOnly bool
	// PassExpired gives out delegated roles that have expired like others: for
	// who only hands metadata on, as a mirror does, and must not stop at one
	// role that its owner forgot to renew. Role.Expires tells. The top-level
	// roles are as strict as ever.
	PassExpired bool
}

// Limits bound what the repository can make a Client do. Zero fields take the
// default.
type Limits struct {
	MaxRootRotations int // new roots in one refresh: 256
	MaxDelegations   int // delegated roles visited for one target: 32

	// Sizes in bytes, where the metadata itself does not say a length.
	Root      int64 // 512 KiB
	Timestamp int64 // 64 KiB
	Snapshot  int64 // 8 MiB
	Targets   int64 // 16 MiB
}

func (l Limits) withDefaults() Limits {
	def := func(v *int64, d int64) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.Root, 512<<10)
	def(&l.Timestamp, 64<<10)
	def(&l.Snapshot, 8<<20)
	def(&l.Targets, 16<<20)
	if l.MaxRootRotations <= 0 {
		l.MaxRootRotations = 256
	}
	if l.MaxDelegations <= 0 {
		l.MaxDelegations = 32
	}
	return l
}

// Target is a file that the metadata vouches for.
type Target struct {
	Path        string
	Length      int64             // exact, in bytes
	SHA256      string            // lower hex; empty if the role gives only others
	Hashes      map[string]string // algorithm → lower hex; a downloader checks all it is given and refuses an unknown one
	Custom      json.RawMessage   // as signed; nil if there is none
	Role        string            // who vouches
	RoleVersion int64
}

// Role is one verified targets role, the top-level one or a delegated one.
// It is read only.
type Role struct {
	Name        string
	Delegator   string // "root" for targets
	Version     int64
	Expires     time.Time
	Bytes       []byte // as verified
	Metadata    *metadata.Metadata[metadata.TargetsType]
	Terminating bool // the delegation is

	// What it was verified against, beside its bytes.
	delegation delegation
	listed     *metadata.MetaFiles
}

// Status tells what a Client holds.
type Status struct {
	Roles       map[string]RoleStatus // root, timestamp, snapshot, targets, and the delegated roles loaded so far
	TrustedTime time.Time             // newest time the repository signed; zero if it never said one
	Refreshed   time.Time             // last successful Refresh of this Client; zero if none
}

// RoleStatus describes one role.
type RoleStatus struct {
	Version   int64
	Expires   time.Time
	SignedAt  time.Time // zero if the role does not say
	KeyIDs    []string  // keys that may sign it
	Threshold int
}
