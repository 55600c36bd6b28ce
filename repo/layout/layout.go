// Package layout names everything that lies in a repository: objects in the
// store, target paths, roles. It is pure: no I/O, no clock, no dependency.
//
//	metadata/<N>.<role>.json  metadata/timestamp.json
//	targets/<dir>/<sha256>.<file>
//	pending/…  audit/…
//
// The layout is that of TUF 1.0.34 with consistent snapshots, so any TUF
// client can read a repository straight from a bucket or through a CDN.
package layout

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"path"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Directories of the store, and the one object that is ever replaced.
const (
	MetadataDir = "metadata"
	TargetsDir  = "targets"
	PendingDir  = "pending"
	AuditDir    = "audit"

	TimestampName   = "timestamp.json"
	TimestampObject = MetadataDir + "/" + TimestampName
)

// Top-level and fixed delegated roles.
const (
	RoleRoot      = "root"
	RoleTargets   = "targets"
	RoleSnapshot  = "snapshot"
	RoleTimestamp = "timestamp"
	RoleHalt      = "halt"
	RoleMirrors   = "mirrors"

	productPrefix = "product-"
	ringPrefix    = "ring-"
)

// Target paths with a fixed place.
const (
	HaltsPath   = "halts/halts.json"
	MirrorsPath = "mirrors/mirrors.json"

	patchesDir  = "patches"
	ringsDir    = "rings"
	blockSuffix = ".blocks"
	deltaInfix  = ".from-"
	deltaSuffix = ".delta"
	deltaBase   = 16 // hex digits of the base's SHA-256 between the two
	deltaEnding = len(deltaInfix) + deltaBase + len(deltaSuffix)
)

// Block lists: a target of BlockListMin bytes or more has a sister target
// that holds the SHA-256 of each BlockSize bytes of it.
const (
	BlockSize    = 1 << 20
	BlockListMin = 4<<20 + 1
	blockHashLen = 32
)

// Bounds on names; a longer one is refused.
const (
	MaxNameLen = 64   // product, ring, version, platform, change id
	MaxFileLen = 180  // a patch's file name in bytes: 64 hex, dot and suffix still fit a file system's 255
	MaxPathLen = 1024 // a target path in bytes
)

// ErrBadName is wrapped by every error about a name that is refused.
var ErrBadName = errors.New("bad name")

// ProductRole and RingRole name the delegated role of a product or a ring.
func ProductRole(product string) string { return productPrefix + product }

// RingRole names the delegated role of a ring.
func RingRole(ring string) string { return ringPrefix + ring }

// ProductOfRole is the inverse of ProductRole.
func ProductOfRole(role string) (product string, ok bool) {
	return strings.CutPrefix(role, productPrefix)
}

// RingOfRole is the inverse of RingRole.
func RingOfRole(role string) (ring string, ok bool) { return strings.CutPrefix(role, ringPrefix) }

// The path patterns of the delegations (TUF 1.0.34 §4.5 PATHPATTERN: a `*`
// never matches a slash, so each depth is a pattern of its own).

// ProductPatterns covers patches/<product>/<version>/<platform>/<file>.
func ProductPatterns(product string) []string {
	return []string{patchesDir + "/" + product + "/*/*/*"}
}

// RingPatterns covers rings/<ring>/plan.json and rings/<ring>/changes/<id>.json.
func RingPatterns(ring string) []string {
	return []string{ringsDir + "/" + ring + "/*", ringsDir + "/" + ring + "/changes/*"}
}

// HaltPatterns covers halts/….
func HaltPatterns() []string { return []string{"halts/*"} }

// MirrorsPatterns covers mirrors/….
func MirrorsPatterns() []string { return []string{"mirrors/*"} }

// PlanPath is the target path of a ring's plan.
func PlanPath(ring string) string { return ringsDir + "/" + ring + "/plan.json" }

// ChangePath is the target path of a change record.
func ChangePath(ring, id string) string { return ringsDir + "/" + ring + "/changes/" + id + ".json" }

// PatchPath builds and checks a patch's target path.
func PatchPath(product, version, platform, file string) (string, error) {
	for _, f := range []struct{ what, s string }{
		{"product", product}, {"version", version}, {"platform", platform},
	} {
		if err := CheckName(f.s); err != nil {
			return "", fmt.Errorf("%s: %w", f.what, err)
		}
	}
	if err := CheckFile(file); err != nil {
		return "", fmt.Errorf("file: %w", err)
	}
	return path.Join(patchesDir, product, version, platform, file), nil
}

// SplitPatchPath takes a patch's target path apart. ok is false for any other
// path, block lists and deltas included.
func SplitPatchPath(p string) (product, version, platform, file string, ok bool) {
	s := strings.Split(p, "/")
	if len(s) != 5 || s[0] != patchesDir || strings.HasSuffix(p, blockSuffix) {
		return "", "", "", "", false
	}
	if _, err := PatchPath(s[1], s[2], s[3], s[4]); err != nil {
		return "", "", "", "", false
	}
	return s[1], s[2], s[3], s[4], true
}

// BlocksPath is the target path of the block list of a target.
func BlocksPath(target string) string { return target + blockSuffix }

// BlocksOf is the inverse of BlocksPath.
func BlocksOf(p string) (target string, ok bool) { return strings.CutSuffix(p, blockSuffix) }

// DeltaPath is the target path of the delta that makes a patch's file out of a
// base with that SHA-256. A file name that is too long to have one, or anything
// but a patch, is ErrBadName.
func DeltaPath(target, baseSHA256 string) (string, error) {
	_, _, _, file, ok := SplitPatchPath(target)
	switch {
	case !ok:
		return "", fmt.Errorf("%w: %q is not the path of a patch", ErrBadName, target)
	case !IsSHA256(baseSHA256):
		return "", fmt.Errorf("%w: %q is not a SHA-256", ErrBadName, baseSHA256)
	case len(file) > MaxFileLen-deltaEnding:
		return "", fmt.Errorf("%w: the file name is longer than %d bytes, so there is no room for the name of a delta", ErrBadName, MaxFileLen-deltaEnding)
	}
	return target + deltaInfix + baseSHA256[:deltaBase] + deltaSuffix, nil
}

// DeltaOf is the inverse of DeltaPath, as far as a path can tell: base is how the
// SHA-256 of the base begins.
func DeltaOf(p string) (target, base string, ok bool) {
	target, base, ok = cutDelta(p)
	if _, _, _, file, is := SplitPatchPath(target); !ok || !is || len(file) > MaxFileLen-deltaEnding {
		return "", "", false
	}
	return target, base, true
}

// cutDelta cuts the ending of a delta off a name.
func cutDelta(s string) (name, base string, ok bool) {
	rest, ok := strings.CutSuffix(s, deltaSuffix)
	if !ok || len(rest) < deltaBase+len(deltaInfix) {
		return "", "", false
	}
	rest, base = rest[:len(rest)-deltaBase], rest[len(rest)-deltaBase:]
	for _, c := range []byte(base) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", "", false
		}
	}
	name, ok = strings.CutSuffix(rest, deltaInfix)
	return name, base, ok
}

// PatchOf is the target path of the patch that a target belongs to: itself, or
// what it is a block list or a delta of.
func PatchOf(p string) (patch string, ok bool) {
	if target, is := BlocksOf(p); is {
		p = target
	}
	if target, _, is := DeltaOf(p); is {
		p = target
	}
	_, _, _, _, ok = SplitPatchPath(p)
	return p, ok
}

// BlockCount is the number of blocks of a target of length bytes.
func BlockCount(length int64) int64 { return (length + BlockSize - 1) / BlockSize }

// BlockListLen is the size in bytes of the block list of a target of length
// bytes, and 0 if such a target has none.
func BlockListLen(length int64) int64 {
	if length < BlockListMin {
		return 0
	}
	return BlockCount(length) * blockHashLen
}

// CheckName checks the name of a product, ring, version, platform or change:
// 1 to MaxNameLen bytes out of a-z, A-Z, 0-9 and `._+~-`, beginning with a
// letter or a digit. No such name means anything to a shell, a URL, a glob, a
// file system or a TUF path pattern. ('+' and '~' are common in versions.)
func CheckName(s string) error {
	if s == "" {
		return fmt.Errorf("%w: empty", ErrBadName)
	}
	if len(s) > MaxNameLen {
		return fmt.Errorf("%w: %q is longer than %d characters", ErrBadName, s[:16]+"…", MaxNameLen)
	}
	for i, c := range []byte(s) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("._+~-", rune(c))) {
			return fmt.Errorf("%w: %q: letters, digits and . _ + ~ - only, a letter or a digit first", ErrBadName, s)
		}
	}
	if strings.HasSuffix(s, ".") {
		return fmt.Errorf("%w: %q ends with a dot", ErrBadName, s)
	}
	return nil
}

// CheckFile checks a patch's file name: any printable UTF-8 without a slash,
// a backslash or a control character, not beginning with a dot, not ending
// with a dot or a space (Windows drops them), in `.blocks` or like a delta.
func CheckFile(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%w: empty", ErrBadName)
	case len(s) > MaxFileLen:
		return fmt.Errorf("%w: file name is longer than %d bytes", ErrBadName, MaxFileLen)
	case s[0] == '.':
		return fmt.Errorf("%w: %q begins with a dot", ErrBadName, s)
	case strings.HasSuffix(s, ".") || strings.HasSuffix(s, " "):
		return fmt.Errorf("%w: %q ends with a dot or a space", ErrBadName, s)
	case strings.HasSuffix(s, blockSuffix):
		return fmt.Errorf("%w: %q: the ending %s is kept for block lists", ErrBadName, s, blockSuffix)
	}
	if _, _, is := cutDelta(s); is {
		return fmt.Errorf("%w: %q: the ending %s<hex>%s is kept for deltas", ErrBadName, s, deltaInfix, deltaSuffix)
	}
	return checkPart(s)
}

func checkPart(s string) error {
	if s == "" || s == "." || s == ".." {
		return fmt.Errorf("%w: path with an empty, . or .. part", ErrBadName)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%w: %q is not UTF-8", ErrBadName, s)
	}
	for _, r := range s {
		if r == '/' || r == '\\' || unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return fmt.Errorf("%w: %q has a slash, a backslash, a control or a direction character", ErrBadName, s)
		}
	}
	return nil
}

// CheckTargetPath checks any target path, ours or foreign: relative, no empty,
// `.` or `..` part, no backslash, valid UTF-8, at most MaxPathLen bytes.
func CheckTargetPath(p string) error {
	if len(p) > MaxPathLen {
		return fmt.Errorf("%w: target path is longer than %d bytes", ErrBadName, MaxPathLen)
	}
	for s := range strings.SplitSeq(p, "/") {
		if err := checkPart(s); err != nil {
			return err
		}
	}
	return nil
}

// MetadataFile is the file name of a role's metadata below MetadataDir. The
// role's name is percent-encoded, as TUF clients do in URLs and file names.
func MetadataFile(role string, version int64) string {
	if role == RoleTimestamp {
		return TimestampName
	}
	return strconv.FormatInt(version, 10) + "." + url.PathEscape(role) + ".json"
}

// MetadataObject is the store's object name of a role's metadata.
func MetadataObject(role string, version int64) string {
	return MetadataDir + "/" + MetadataFile(role, version)
}

// ParseMetadataFile is the inverse of MetadataFile; the timestamp's version
// is 0. ok is false for anything that MetadataFile would not have made.
func ParseMetadataFile(name string) (role string, version int64, ok bool) {
	if name == TimestampName {
		return RoleTimestamp, 0, true
	}
	num, rest, found := strings.Cut(name, ".")
	if !found {
		return "", 0, false
	}
	rest, found = strings.CutSuffix(rest, ".json")
	if !found || rest == "" {
		return "", 0, false
	}
	version, err := strconv.ParseInt(num, 10, 64)
	if err != nil || version < 1 {
		return "", 0, false
	}
	role, err = url.PathUnescape(rest)
	if err != nil || MetadataFile(role, version) != name {
		return "", 0, false
	}
	return role, version, true
}

// TargetFile is a target's file name below TargetsDir: <dir>/<sha256>.<file>
// (TUF 1.0.34 §6.2, consistent snapshots). sha256 is lower-case hex.
func TargetFile(targetPath, sha256 string) string {
	dir, file := path.Split(targetPath)
	return dir + sha256 + "." + file
}

// TargetObject is the store's object name of a target.
func TargetObject(targetPath, sha256 string) string {
	return TargetsDir + "/" + TargetFile(targetPath, sha256)
}

// ParseTargetFile is the inverse of TargetFile.
func ParseTargetFile(name string) (targetPath, sha256 string, ok bool) {
	dir, file := path.Split(name)
	sum, base, found := strings.Cut(file, ".")
	if !found || !IsSHA256(sum) || CheckTargetPath(dir+base) != nil {
		return "", "", false
	}
	return dir + base, sum, true
}

// IsSHA256 reports whether s is a SHA-256 in lower-case hex.
func IsSHA256(s string) bool {
	if len(s) != 64 || strings.ToLower(s) != s {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

// EscapePath percent-encodes each part of a slash-separated name for a URL.
func EscapePath(p string) string {
	parts := strings.Split(p, "/")
	for i, s := range parts {
		parts[i] = url.PathEscape(s)
	}
	return strings.Join(parts, "/")
}

// ContentType is the media type under which an object is stored and served.
// Targets are never given a type that a browser would render.
func ContentType(object string) string {
	if strings.HasPrefix(object, TargetsDir+"/") || !strings.HasSuffix(object, ".json") {
		return "application/octet-stream"
	}
	return "application/json"
}

// CacheControl is how long an object may be kept by caches on the way: all
// that is published never changes, but for the timestamp; what is not published
// is for no cache.
func CacheControl(object string) string {
	switch {
	case object == TimestampObject:
		return "no-cache"
	case strings.HasPrefix(object, PendingDir+"/"):
		return "no-store"
	}
	return "public, max-age=31536000, immutable"
}
