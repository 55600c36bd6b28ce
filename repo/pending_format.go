package repo

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/repo/internal/document"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// pendingFormat is the version of the formats that lie in pending/.
const pendingFormat = 1

// Bounds on what is read from pending/, and from files of it.
const (
	maxDescriptor    = 256 << 10 // bytes
	maxSignatureFile = 8 << 10   // bytes
	maxPendingRoles  = 256       // roles that one change edits
	maxPendingKeys   = 128       // keys of one role
	maxPendingText   = 1 << 10   // bytes of a title or a name
	maxPending       = 1000      // changes that are listed
)

// descriptor is pending/<id>/change.json. It says which bytes belong together;
// what they do is read from these bytes alone.
type descriptor struct {
	Format  int       `json:"format"`
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	Title   string    `json:"title"`
	By      string    `json:"by,omitempty"`
	Rebased string    `json:"rebased,omitempty"` // id of the change whose place it takes

	Base  descriptorBase   `json:"base"`
	Roles []descriptorRole `json:"roles"`

	// Lifetimes of the online roles, which are made when a new repository is
	// published: durations by role.
	Lifetimes map[string]string `json:"lifetimes,omitempty"`
}

// makes reports whether the change makes a new repository.
func (c *descriptor) makes() bool {
	return slices.ContainsFunc(c.Roles, func(r descriptorRole) bool { return r.Role == layout.RoleRoot })
}

// descriptorBase is what the change was made on top of.
type descriptorBase struct {
	Root    int64 `json:"root"`
	Targets int64 `json:"targets"`
}

// descriptorRole is an edited role. Who signs it is written down to notice when
// that changes; whose signatures count is never taken from here.
type descriptorRole struct {
	Role      string   `json:"role"`
	From      int64    `json:"from"` // 0: the role is new
	To        int64    `json:"to"`
	SHA256    string   `json:"sha256"` // of the signed part in canonical JSON, which is what keys sign
	Threshold int      `json:"threshold"`
	KeyIDs    []string `json:"keyids"`
}

// makeID names the change by what is to be signed, and on top of what: whoever
// reads the id aloud names the very bytes.
func (c *descriptor) makeID() (string, error) {
	data, err := json.Marshal(struct {
		Rebased   string
		Base      descriptorBase
		Roles     []descriptorRole
		Lifetimes map[string]string `json:",omitempty"`
	}{c.Rebased, c.Base, c.Roles, c.Lifetimes})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	return c.Created.UTC().Format("20060102") + "-" + hex.EncodeToString(sum[:16]), nil
}

func parseDescriptor(data []byte, id string) (*descriptor, error) {
	var c descriptor
	if _, err := document.Decode(data, maxDescriptor, &c); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadPending, err)
	}
	if err := c.check(id); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadPending, err)
	}
	return &c, nil
}

func (c *descriptor) check(id string) error {
	if c.Format != pendingFormat {
		return fmt.Errorf("format %d is not known to this version (it knows %d)", c.Format, pendingFormat)
	}
	if made, err := c.makeID(); err != nil || made != c.ID || c.ID != id {
		return fmt.Errorf("its id %q is not that of its content", c.ID)
	}
	if len(c.Title) > maxPendingText || len(c.By) > maxPendingText {
		return fmt.Errorf("title or by is longer than %d bytes", maxPendingText)
	}
	if c.Rebased != "" {
		if err := layout.CheckPendingID(c.Rebased); err != nil {
			return fmt.Errorf("rebased: %w", err)
		}
	}
	if len(c.Roles) == 0 || len(c.Roles) > maxPendingRoles {
		return fmt.Errorf("it edits %d roles, 1 to %d are allowed", len(c.Roles), maxPendingRoles)
	}
	seen := make(map[string]bool)
	for _, r := range c.Roles {
		if err := layout.CheckPendingRole(r.Role); err != nil {
			return err
		}
		switch {
		case seen[r.Role]:
			return fmt.Errorf("role %s stands twice", r.Role)
		case r.Role == layout.RoleSnapshot, r.Role == layout.RoleTimestamp:
			return fmt.Errorf("role %s cannot wait for signatures", r.Role)
		case r.From < 0 || r.To <= r.From || r.To-r.From > maxSkips: // no fast-forward
			return fmt.Errorf("role %s goes from version %d to %d", r.Role, r.From, r.To)
		case !layout.IsSHA256(r.SHA256):
			return fmt.Errorf("role %s has no sha256", r.Role)
		case len(r.KeyIDs) > maxPendingKeys:
			return fmt.Errorf("role %s names more than %d keys", r.Role, maxPendingKeys)
		}
		seen[r.Role] = true
	}
	if !c.makes() {
		if len(c.Lifetimes) > 0 {
			return errors.New("only a new repository has lifetimes")
		}
		return nil
	}
	for _, r := range c.Roles {
		// Later versions of root cannot wait yet. Of no role is there a later
		// one in a new repository: signed here, it would count in an old one.
		if r.From != 0 || r.To != 1 || c.Base != (descriptorBase{}) {
			return errors.New("it makes a new repository on top of another one")
		}
	}
	for role, life := range c.Lifetimes {
		d, err := time.ParseDuration(life)
		if err != nil || d < time.Second || role != layout.RoleSnapshot && role != layout.RoleTimestamp {
			return fmt.Errorf("%q is not a lifetime of role %q", clean(life), clean(role))
		}
	}
	return nil
}

// signatureFile is pending/<id>/signatures/<role>/<keyid>.json.
type signatureFile struct {
	Format    int       `json:"format"`
	KeyID     string    `json:"keyid"`
	Signature string    `json:"sig"` // hex, as in TUF metadata
	Signed    time.Time `json:"signed,omitzero"`
	By        string    `json:"by,omitempty"` // for people; it proves nothing
}

// parseSignature returns the signature itself. Whether it counts is for
// verifySignature to say.
func parseSignature(data []byte, keyID string) ([]byte, error) {
	var s signatureFile
	if _, err := document.Decode(data, maxSignatureFile, &s); err != nil {
		return nil, fmt.Errorf("%w: signature: %w", ErrBadPending, err)
	}
	sig, err := hex.DecodeString(s.Signature)
	switch {
	case s.Format != pendingFormat:
		err = fmt.Errorf("format %d is not known to this version (it knows %d)", s.Format, pendingFormat)
	case s.KeyID != keyID:
		err = errors.New("it names another key than its place does")
	case len(s.By) > maxPendingText:
		err = fmt.Errorf("by is longer than %d bytes", maxPendingText)
	case err == nil && len(sig) == 0:
		err = errors.New("it is empty")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: signature: %w", ErrBadPending, err)
	}
	return sig, nil
}

// Closing is pending/<id>/closed.json: how a change ended.
type Closing struct {
	Format  int       `json:"format"`
	Outcome string    `json:"outcome"` // published, abandoned, rebased
	By      string    `json:"by,omitempty"`
	When    time.Time `json:"when"`
	Next    string    `json:"next,omitempty"`   // rebased: id of the change that took its place
	Reason  string    `json:"reason,omitempty"` // abandoned: why
}

// Outcomes of a change.
const (
	outcomePublished = "published"
	outcomeAbandoned = "abandoned"
	outcomeRebased   = "rebased"
)

func parseClosing(data []byte) (*Closing, error) {
	var c Closing
	if _, err := document.Decode(data, maxSignatureFile, &c); err != nil {
		return nil, fmt.Errorf("%w: closing: %w", ErrBadPending, err)
	}
	if c.Format != pendingFormat {
		return nil, fmt.Errorf("%w: closing: format %d is not known to this version (it knows %d)", ErrBadPending, c.Format, pendingFormat)
	}
	if c.Next != "" && layout.CheckPendingID(c.Next) != nil {
		return nil, fmt.Errorf("%w: closing: bad id of the next change", ErrBadPending)
	}
	switch c.Outcome {
	case outcomePublished, outcomeAbandoned, outcomeRebased:
	default:
		return nil, fmt.Errorf("%w: closing: outcome %q is not known", ErrBadPending, clean(c.Outcome))
	}
	c.By, c.Reason = clean(c.By), clean(c.Reason)
	return &c, nil
}

// targetsMetadata is the metadata of targets or of a delegated role.
type targetsMetadata = metadata.Metadata[metadata.TargetsType]

// rootMetadata is the metadata of root.
type rootMetadata = metadata.Metadata[metadata.RootType]

// encodeUnsigned gives the bytes that wait for signatures, and what keys sign.
func encodeUnsigned[T metadata.Roles](md *metadata.Metadata[T]) (data, payload []byte, err error) {
	unsigned := *md
	unsigned.Signatures = []metadata.Signature{}
	if data, err = unsigned.ToBytes(false); err != nil {
		return nil, nil, err
	}
	payload, err = cjson.EncodeCanonical(unsigned.Signed)
	return data, payload, err
}

// parseUnsigned reads bytes that wait for signatures. They have to be exactly
// those that encodeUnsigned gives, so that nothing in them escapes what is
// shown, and what is signed is what was read.
func parseUnsigned[T metadata.Roles](data []byte, check func(*T) error) (*metadata.Metadata[T], []byte, error) {
	md := &metadata.Metadata[T]{}
	var payload []byte
	err := guard(func() error {
		if _, err := md.FromBytes(data); err != nil {
			return err
		}
		if err := check(&md.Signed); err != nil {
			return err
		}
		var again []byte
		var err error
		if again, payload, err = encodeUnsigned(md); err != nil {
			return err
		}
		if !bytes.Equal(again, data) {
			return errors.New("it is not written as this version writes it")
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("%w: metadata: %w", ErrBadPending, err)
	}
	return md, payload, nil
}

// checkTargets refuses what would be nil later, and paths that lead elsewhere.
func checkTargets(t *metadata.TargetsType) error {
	for path, tf := range t.Targets {
		if tf == nil || tf.Length < 0 {
			return fmt.Errorf("target %q has no valid entry", path)
		}
		if err := layout.CheckTargetPath(path); err != nil {
			return err
		}
	}
	if t.Delegations != nil {
		return checkKeys(t.Delegations.Keys)
	}
	return nil
}

func checkRoot(r *metadata.RootType) error {
	for _, name := range metadata.TOP_LEVEL_ROLE_NAMES {
		if r.Roles[name] == nil {
			return fmt.Errorf("root names no role %s", name)
		}
	}
	if len(r.Roles) != len(metadata.TOP_LEVEL_ROLE_NAMES) || !r.ConsistentSnapshot {
		return errors.New("root names other roles, or has no consistent snapshots")
	}
	return checkKeys(r.Keys)
}

func checkKeys(keys map[string]*metadata.Key) error {
	for id, key := range keys {
		if key == nil {
			return fmt.Errorf("key %q is null", id)
		}
	}
	return nil
}

// guard runs a step that feeds hostile bytes to go-tuf, which dereferences
// members that are null.
func guard(step func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errors.New("malformed metadata")
		}
	}()
	return step()
}

// clean makes a text from elsewhere fit for a line of a terminal.
func clean(s string) string {
	if len(s) > maxPendingText {
		s = strings.ToValidUTF8(s[:maxPendingText], "") + "…"
	}
	return printable(s)
}

// printable replaces what could steer a terminal, or turn the direction of
// writing.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return utf8.RuneError
	}, s)
}
