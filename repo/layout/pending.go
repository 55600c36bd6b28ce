package layout

import (
	"fmt"
	"net/url"
	"strings"
)

// Changes that wait for signatures lie below PendingDir, each in a directory
// named by its id:
//
//	pending/<id>/change.json                      what it is, and which roles it edits
//	pending/<id>/<role>.json                      the metadata to be signed
//	pending/<id>/signatures/<role>/<keyid>.json   one signature
//	pending/<id>/closed.json                      how it ended
const (
	pendingChange     = "change.json"
	pendingClosed     = "closed.json"
	pendingSignatures = "signatures"

	// maxRoleLen bounds a role's name: a prefix and a name.
	maxRoleLen = MaxNameLen + 16
)

// CheckPendingID checks the id of a change that waits for signatures.
func CheckPendingID(id string) error {
	if err := CheckName(id); err != nil {
		return err
	}
	if id == "uploads" { // kept by the S3 driver
		return fmt.Errorf("%w: %q is no change", ErrBadName, id)
	}
	return nil
}

// CheckPendingRole checks that a role's metadata can wait for signatures: its
// name is one of ours, and no other object of a change has it.
func CheckPendingRole(role string) error {
	if role == "" || len(role) > maxRoleLen {
		return fmt.Errorf("role: %w: its name has %d characters, 1 to %d are allowed", ErrBadName, len(role), maxRoleLen)
	}
	for i := 0; i < len(role); i++ {
		if CheckName("a"+role[i:i+1]+"a") != nil {
			return fmt.Errorf("role: %w: %q: letters, digits and . _ + ~ - only", ErrBadName, role)
		}
	}
	if role[0] == '.' {
		return fmt.Errorf("role: %w: %q begins with a dot", ErrBadName, role)
	}
	if file := role + ".json"; file == pendingChange || file == pendingClosed || role == pendingSignatures {
		return fmt.Errorf("role: %w: %q", ErrBadName, role)
	}
	return nil
}

// PendingPrefix is what the names of all objects of a change begin with.
func PendingPrefix(id string) string { return PendingDir + "/" + id + "/" }

// PendingChange names the description of a change. It is written last, so a
// change that has one is whole.
func PendingChange(id string) string { return PendingPrefix(id) + pendingChange }

// PendingClosed names the object that says how a change ended.
func PendingClosed(id string) string { return PendingPrefix(id) + pendingClosed }

// PendingRole names a role's metadata in a change.
func PendingRole(id, role string) string { return PendingPrefix(id) + url.PathEscape(role) + ".json" }

// PendingSignature names a key's signature over a role's metadata in a change.
func PendingSignature(id, role, keyID string) string {
	return PendingPrefix(id) + pendingSignatures + "/" + url.PathEscape(role) + "/" + keyID + ".json"
}

// ParsePendingChange is the inverse of PendingChange.
func ParsePendingChange(object string) (id string, ok bool) {
	id, rest, _ := strings.Cut(strings.TrimPrefix(object, PendingDir+"/"), "/")
	if rest != pendingChange || CheckPendingID(id) != nil || PendingChange(id) != object {
		return "", false
	}
	return id, true
}

// ParsePendingSignature is the inverse of PendingSignature. The key id is in
// lower-case hex, as TUF makes them.
func ParsePendingSignature(object string) (id, role, keyID string, ok bool) {
	parts := strings.Split(object, "/")
	if len(parts) != 5 {
		return "", "", "", false
	}
	id = parts[1]
	role, err := url.PathUnescape(parts[3])
	if err != nil {
		return "", "", "", false
	}
	keyID, found := strings.CutSuffix(parts[4], ".json")
	if !found || !IsSHA256(keyID) || CheckPendingID(id) != nil || CheckPendingRole(role) != nil || PendingSignature(id, role, keyID) != object {
		return "", "", "", false
	}
	return id, role, keyID, true
}
