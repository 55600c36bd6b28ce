// Package mirrors is the signed list of mirrors: where machines find the
// repository's files close by. It says nothing about what the files are, so who
// steals its key can slow machines down, and no more.
package mirrors

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/patchkeep/patchkeep/repo/internal/document"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// Format is the version of the format that this package writes.
const Format = 1

// Bounds on what is read; beyond them a list is refused.
const (
	MaxSize     = 512 << 10 // bytes
	maxMirrors  = 1000
	maxNetworks = 64 // of a mirror
	maxURL      = 512
	maxWeight   = 1000
)

// ErrBad is wrapped by every error about a list that is refused.
var ErrBad = errors.New("bad list of mirrors")

// List is mirrors/mirrors.json.
type List struct {
	Format  int      `json:"format"`
	Mirrors []Mirror `json:"mirrors"`

	Unknown document.Unknown `json:"-"`
}

// Mirror is a server that has the whole repository.
type Mirror struct {
	URL string `json:"url"` // base, as CanonicalURL writes it

	// Networks are those of the machines that it is for. None: it is for all.
	Networks []netip.Prefix `json:"networks,omitempty"`
	Region   string         `json:"region,omitempty"` // machines that say they are there take it first
	Weight   int            `json:"weight,omitempty"` // its share beside others as near; 0 counts as 1
	Origin   bool           `json:"origin,omitempty"` // asked when no other answers

	Unknown document.Unknown `json:"-"`
}

type plainMirror Mirror // without the methods, which would call themselves

// UnmarshalJSON keeps the fields that it does not know: the whole list is
// written again whenever a mirror is added.
func (m *Mirror) UnmarshalJSON(data []byte) (err error) {
	m.Unknown, err = document.Decode(data, MaxSize, (*plainMirror)(m))
	return err
}

// MarshalJSON writes the fields that it does not know too.
func (m Mirror) MarshalJSON() ([]byte, error) { return document.Encode(plainMirror(m), m.Unknown) }

// Parse reads and checks a list.
func Parse(data []byte) (*List, error) {
	var l List
	unknown, err := document.Decode(data, MaxSize, &l)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBad, err)
	}
	l.Unknown = unknown
	if err := l.Check(); err != nil {
		return nil, err
	}
	return &l, nil
}

// Encode checks the list and writes it.
func (l *List) Encode() ([]byte, error) {
	if err := l.Check(); err != nil {
		return nil, err
	}
	data, err := document.Encode(l, l.Unknown)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	if len(data) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrBad, len(data), MaxSize)
	}
	return data, nil
}

// Check reports the first thing that is wrong with the list.
func (l *List) Check() error {
	if l.Format != Format {
		return fmt.Errorf("%w: format %d is not known to this version (it knows %d)", ErrBad, l.Format, Format)
	}
	if len(l.Mirrors) > maxMirrors {
		return fmt.Errorf("%w: %d mirrors, at most %d are allowed", ErrBad, len(l.Mirrors), maxMirrors)
	}
	seen := make(map[string]bool, len(l.Mirrors))
	for i := range l.Mirrors {
		m := &l.Mirrors[i]
		if err := m.Check(); err != nil {
			return fmt.Errorf("%w: mirror %d: %w", ErrBad, i+1, err)
		}
		if seen[m.URL] {
			return fmt.Errorf("%w: mirror %d: %s stands twice", ErrBad, i+1, m.URL)
		}
		seen[m.URL] = true
	}
	return nil
}

// Check reports the first thing that is wrong with the mirror.
func (m *Mirror) Check() error {
	switch canonical, err := CanonicalURL(m.URL); {
	case err != nil:
		return err
	case canonical != m.URL:
		return fmt.Errorf("URL %q must be written %q", m.URL, canonical)
	}
	if len(m.Networks) > maxNetworks {
		return fmt.Errorf("%d networks, at most %d are allowed", len(m.Networks), maxNetworks)
	}
	for i, n := range m.Networks {
		switch {
		case !n.IsValid():
			return fmt.Errorf("network %d is empty", i+1)
		case n.Addr().Is4In6():
			return fmt.Errorf("network %s: write an IPv4 network as such", n)
		case n != n.Masked():
			return fmt.Errorf("network %s has bits beyond its length: is %s meant?", n, n.Masked())
		case slices.Contains(m.Networks[:i], n):
			return fmt.Errorf("network %s stands twice", n)
		}
	}
	if m.Region != "" {
		if err := layout.CheckName(m.Region); err != nil {
			return fmt.Errorf("region: %w", err)
		}
	}
	if m.Weight < 0 || m.Weight > maxWeight {
		return fmt.Errorf("weight %d is not 1 to %d", m.Weight, maxWeight)
	}
	return nil
}

// Find returns the mirror with that URL, nil if there is none.
func (l *List) Find(canonicalURL string) *Mirror {
	i := slices.IndexFunc(l.Mirrors, func(m Mirror) bool { return m.URL == canonicalURL })
	if i < 0 {
		return nil
	}
	return &l.Mirrors[i]
}

// CanonicalURL checks the base URL of a mirror, and writes it in the one way
// by which two can be compared: scheme and host in lower case, no default port,
// no slash at the end. It has neither user, query nor fragment, and its host
// is a name or an address that a mirror can have.
func CanonicalURL(raw string) (string, error) {
	if len(raw) > maxURL {
		return "", fmt.Errorf("URL is longer than %d bytes", maxURL)
	}
	if strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r > '~' || r == '\\' }) {
		return "", fmt.Errorf("URL %q has blanks or characters beyond ASCII", raw)
	}
	u, err := url.Parse(raw)
	if err != nil || u.User != nil { // it may hold a password
		return "", errors.New("URL is not like https://mirror.example.org, without a user")
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Opaque != "" {
		return "", fmt.Errorf("URL %q is not like https://mirror.example.org", raw)
	}
	if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(raw, "#") {
		return "", fmt.Errorf("URL %q has a query or a fragment", raw)
	}
	host, err := canonicalHost(u)
	if err != nil {
		return "", fmt.Errorf("URL %q: %w", raw, err)
	}
	path := strings.TrimRight(u.EscapedPath(), "/")
	for part := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		if plain, err := url.PathUnescape(part); err != nil || path != "" && plain == "" || plain == "." || plain == ".." {
			return "", fmt.Errorf("URL %q has an empty, . or .. part in its path", raw)
		}
	}
	return u.Scheme + "://" + host + path, nil
}

func canonicalHost(u *url.URL) (string, error) {
	name := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if addr, err := netip.ParseAddr(name); err == nil {
		if addr.Zone() != "" || !Reachable(addr) {
			return "", fmt.Errorf("no mirror can have the address %s", addr)
		}
		name = addr.Unmap().String()
	} else if err := checkHostname(name); err != nil {
		return "", err
	}
	if strings.Contains(name, ":") {
		name = "[" + name + "]"
	}
	port := u.Port()
	if port == "" && strings.HasSuffix(u.Host, ":") {
		return "", errors.New("the port is missing")
	}
	if port == "" || port == map[string]string{"http": "80", "https": "443"}[u.Scheme] {
		return name, nil
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || port[0] == '0' {
		return "", fmt.Errorf("%s is no port", port)
	}
	return name + ":" + port, nil
}

// Reachable reports whether a mirror can have the address at all: neither
// unspecified, multicast nor link-local, where clouds and routers keep services
// of their own.
func Reachable(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLinkLocalUnicast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// checkHostname takes names of the DNS. One that ends in a number is none, but
// some resolvers read an address in it.
func checkHostname(name string) error {
	bad := fmt.Errorf("%q is not the name of a host", name)
	if len(name) > 253 {
		return bad
	}
	var last string
	for label := range strings.SplitSeq(name, ".") {
		last = label
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return bad
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return bad
			}
		}
	}
	if last[0] >= '0' && last[0] <= '9' {
		return bad
	}
	return nil
}
