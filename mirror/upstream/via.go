package upstream

import (
	"context"
	"net/http"
	"slices"
	"strings"
)

// viaHeader carries the mirrors that a request has passed (RFC 8586).
const viaHeader = "CDN-Loop"

const (
	viaPrefix  = "pk-"
	viaSibling = "sibling"

	// MaxHops is how many mirrors may stand in a row.
	MaxHops = 16
)

// Via is what a request for a target says about the mirrors that it has passed,
// so that a circle of them is noticed.
type Via struct {
	Hops    []string // their ids, the first to ask first
	Sibling bool     // the last of them is of the same site as the one it asks
}

// Passed reports whether the request has been here, or everywhere.
func (v Via) Passed(id string) bool {
	return slices.Contains(v.Hops, id) || len(v.Hops) >= MaxHops
}

type viaKey struct{}

// WithVia makes requests for targets say v.
func WithVia(ctx context.Context, v Via) context.Context { return context.WithValue(ctx, viaKey{}, v) }

func (v Via) set(h http.Header) {
	if len(v.Hops) == 0 {
		return
	}
	s := viaPrefix + strings.Join(v.Hops, ", "+viaPrefix)
	if v.Sibling {
		s += "; " + viaSibling
	}
	h.Set(viaHeader, s)
}

// ParseVia reads what a request says. Entries that are not a mirror's, such as a
// CDN's, do not count.
func ParseVia(h http.Header) (v Via) {
	for _, line := range h.Values(viaHeader) {
		for entry := range strings.SplitSeq(line, ",") {
			id, params, _ := strings.Cut(entry, ";")
			id, ok := strings.CutPrefix(strings.TrimSpace(id), viaPrefix)
			if !ok {
				continue
			}
			if v.Hops = append(v.Hops, id); len(v.Hops) >= MaxHops {
				return v
			}
			v.Sibling = strings.TrimSpace(params) == viaSibling
		}
	}
	return v
}
