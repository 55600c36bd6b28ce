package signing

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
)

// SchemeFile is the scheme of key files and directories of them.
const SchemeFile = "file"

// ErrRef says that a key reference is malformed or of an unknown kind.
var ErrRef = errors.New("bad key reference")

// Ref is a parsed key reference.
type Ref struct {
	Scheme string // SchemeFile
	Path   string // of a file or a directory, in the system's own form, cleaned
}

// ParseRef reads a key reference:
//
//	PATH  file:PATH  file:///PATH    a key file NAME.key, or a directory of them
//	<scheme>://…                     a service that keeps keys
//
// PATH is taken literally, without percent-decoding. A relative path that looks
// like a scheme is written with a leading "./". No service is known yet; the
// error says so. Errors are [ErrRef].
func ParseRef(s string) (Ref, error) {
	path := s
	if scheme, rest, ok := splitScheme(s); ok {
		if scheme != SchemeFile {
			return Ref{}, fmt.Errorf("%w: scheme %q in %q is not supported by this version; supported: a path, file:PATH", ErrRef, scheme, s)
		}
		path = rest
		if authority, isURL := strings.CutPrefix(rest, "//"); isURL {
			if !strings.HasPrefix(authority, "/") {
				return Ref{}, fmt.Errorf("%w: %q names a host; write file:PATH or file:///PATH", ErrRef, s)
			}
			path = authority
		}
	}
	switch {
	case path == "":
		return Ref{}, fmt.Errorf("%w: %q names no file", ErrRef, s)
	case strings.ContainsRune(path, 0):
		return Ref{}, fmt.Errorf("%w: %q contains a zero byte", ErrRef, s)
	}
	return Ref{Scheme: SchemeFile, Path: filepath.Clean(path)}, nil
}

// String gives the reference in a form that [ParseRef] reads to the same.
func (r Ref) String() string {
	if strings.HasPrefix(r.Path, "//") { // a share on Windows
		return r.Scheme + "://" + r.Path
	}
	return r.Scheme + ":" + r.Path
}

// Two letters at least, so that "C:\keys" is a path.
var scheme = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9+.-]+$`)

func splitScheme(s string) (name, rest string, ok bool) {
	name, rest, ok = strings.Cut(s, ":")
	if !ok || !scheme.MatchString(name) {
		return "", "", false
	}
	name = strings.ToLower(name)
	return name, rest, name == SchemeFile || strings.HasPrefix(rest, "//")
}
