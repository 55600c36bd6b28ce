// Package delta makes a file out of an older one and what is new in it. A delta
// is a target of its own beside the patch whose file it makes: see
// layout.DeltaPath.
//
// It does what bsdiff does, in memory and time that do not depend on luck:
// stretches of the base are taken over byte by byte with what is to be added to
// each, so that a program whose addresses all moved by a little costs little.
// What is to be added, and what is new, goes through zstd at its best level. The
// format is described in docs/formats.md:
//
//	one zstd frame, window at most 8 MiB, of
//	  magic
//	  pieces: uvarint number of instructions, 1 to MaxOps
//	          instructions: uvarint length<<2 | kind; for copy and add a varint,
//	                        from the end of the base's range used before
//	          one byte for each that is added, then the inserted bytes,
//	          together at most maxPayload
//	  0
//
// Apply holds a piece and the window in memory, not the base and not the result.
// It is fed bytes that the product's role has signed, and trusts them no further
// than that: nothing is read outside of the base, nothing written beyond the
// signed length. Whoever calls it checks the result's hash.
package delta

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/patchkeep/patchkeep/repo/internal/document"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// Format is the version of the format that this package reads and writes.
const Format = 1

const (
	// MaxFile is how many bytes a base and a result may have.
	MaxFile = 1 << 30
	// Memory is what Apply takes at most, in bytes.
	Memory = 32 << 20
	// maxMemory is what a delta of this format may say that it takes.
	maxMemory = 128 << 20

	maxSize   = 4 << 10 // bytes of custom.patchkeep-delta
	maxCustom = 1 << 20 // bytes of custom, others' fields included

	magic      = "patchkeep-delta\x01"
	window     = 8 << 20  // of the zstd frame
	maxPayload = 4 << 20  // bytes of a piece that are added or inserted
	maxOps     = 64 << 10 // instructions of a piece
)

// The instructions.
const (
	opCopy   = iota // bytes of the base as they are
	opAdd           // bytes of the base, each with one added
	opInsert        // new bytes
	opKinds
)

var (
	// ErrBad is wrapped by every error about a delta, or what is said of it, that
	// is refused.
	ErrBad = errors.New("bad delta")
	// ErrTooLarge says that there is no point in a delta, or that files are too
	// large to make one.
	ErrTooLarge = errors.New("too large")
)

// Info is the custom.patchkeep-delta of a delta target: what it is made from and
// what comes out.
type Info struct {
	Format     int    `json:"format"`
	From       string `json:"from"` // version of the base, for people
	BaseSHA256 string `json:"base_sha256"`
	BaseLength int64  `json:"base_length"`
	SHA256     string `json:"sha256"` // of the result
	Length     int64  `json:"length"`
	Memory     int64  `json:"memory"` // bytes that applying it takes at most

	Unknown document.Unknown `json:"-"` // fields of a newer format
}

// Parse reads and checks a custom.patchkeep-delta value.
func Parse(data []byte) (*Info, error) {
	var i Info
	unknown, err := document.Decode(data, maxSize, &i)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBad, err)
	}
	i.Unknown = unknown
	if err := i.Check(); err != nil {
		return nil, err
	}
	return &i, nil
}

// custom is the custom object of a delta target.
type custom struct {
	Delta json.RawMessage `json:"patchkeep-delta"`
}

// FromCustom reads what a target's custom object says of a delta. A target that
// is none is ErrBad.
func FromCustom(raw json.RawMessage) (*Info, error) {
	var c custom
	if _, err := document.Decode(raw, maxCustom, &c); err != nil {
		return nil, fmt.Errorf("%w: custom: %w", ErrBad, err)
	}
	if len(c.Delta) == 0 {
		return nil, fmt.Errorf("%w: custom.patchkeep-delta is missing", ErrBad)
	}
	return Parse(c.Delta)
}

// ToCustom makes the custom object of a delta target.
func (i *Info) ToCustom() (json.RawMessage, error) {
	if err := i.Check(); err != nil {
		return nil, err
	}
	raw, err := document.Encode(i, i.Unknown)
	if err != nil {
		return nil, fmt.Errorf("encode delta: %w", err)
	}
	return document.Encode(custom{raw}, nil)
}

// Check reports the first thing that is wrong.
func (i *Info) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrBad}, args...)...)
	}
	if i.Format != Format {
		return bad("format %d is not known to this version (it knows %d)", i.Format, Format)
	}
	if err := layout.CheckName(i.From); err != nil {
		return bad("from: %w", err)
	}
	if !layout.IsSHA256(i.BaseSHA256) || !layout.IsSHA256(i.SHA256) {
		return bad("base_sha256 and sha256 are 64 lower-case hex digits")
	}
	for _, n := range []int64{i.BaseLength, i.Length} {
		if n < 1 || n > MaxFile {
			return bad("a file of %d bytes, 1 to %d are allowed", n, MaxFile)
		}
	}
	if i.Memory < 1 || i.Memory > maxMemory {
		return bad("it takes %d bytes of memory, 1 to %d are allowed", i.Memory, maxMemory)
	}
	return nil
}

// Fits reports what is wrong with the delta as one that makes a target of that
// SHA-256 and length and lies at a target path. The path says the base, too, so
// that a role cannot put the right name on another base's delta.
func (i *Info) Fits(path, target, sum string, length int64) error {
	want, err := layout.DeltaPath(target, i.BaseSHA256)
	switch {
	case err != nil || want != path:
		return fmt.Errorf("%w: it is made from another base than its name says", ErrBad)
	case i.SHA256 != sum || i.Length != length:
		return fmt.Errorf("%w: it makes another file than %s", ErrBad, target)
	}
	return nil
}
