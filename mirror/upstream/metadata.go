package upstream

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	"github.com/patchkeep/patchkeep/client/coding"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// ETag is what a mirror gives metadata: it stands for these very bytes, in
// whatever coding they are sent.
func ETag(body []byte) string { return `"` + Tag(body) + `"` }

// Tag is an ETag without its quotes.
func Tag(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:16])
}

// metadataState is what is kept between looks at the metadata.
type metadataState struct {
	timestamp atomic.Pointer[[]byte] // as fetched last; nobody has verified it
	received  atomic.Int64
}

// MetadataBytes returns how many bytes of metadata came over the line, as they
// were sent: compressed, and without headers. It is 0 unless u is over HTTP.
func MetadataBytes(u Upstream) int64 {
	if g, ok := u.(*guarded); ok {
		u = g.Upstream
	}
	if h, ok := u.(*overHTTP); ok {
		return h.metadata.received.Load()
	}
	return 0
}

// FetchMetadata asks for compressed bytes; and for the timestamp only if it is
// another one than the last. The tag for that is made of the bytes themselves:
// who sent wrong ones once cannot have them taken for the right ones later, as
// he could with a tag of his choice.
func (h *overHTTP) FetchMetadata(ctx context.Context, name string, max int64) ([]byte, error) {
	data, err := h.fetchMetadata(ctx, name, max)
	if err == nil {
		return data, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("fetch %s/metadata/%s: %w", h, name, err)
}

func (h *overHTTP) fetchMetadata(ctx context.Context, name string, max int64) ([]byte, error) {
	header := http.Header{"Accept-Encoding": {coding.Accept}}
	var known *[]byte
	if name == layout.TimestampName {
		if known = h.metadata.timestamp.Load(); known != nil && int64(len(*known)) <= max {
			header.Set("If-None-Match", ETag(*known))
		}
	}
	// The role in name is percent-encoded as TUF clients do it: that is what
	// goes on the wire, not encoded once more.
	resp, err := h.get(ctx, layout.MetadataDir+"/"+name, header)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotModified:
		return *known, nil
	default:
		return nil, fmt.Errorf("%w: status %d", tuf.ErrOffline, resp.StatusCode)
	}
	data, wire, err := coding.Read(resp.Body, resp.Header.Get("Content-Encoding"), max)
	h.metadata.received.Add(wire)
	switch {
	case err != nil && !errors.Is(err, tuf.ErrTooLarge):
		return nil, fmt.Errorf("%w: %w", tuf.ErrOffline, err)
	case err != nil:
		return nil, err
	}
	if name == layout.TimestampName {
		h.metadata.timestamp.Store(&data)
	}
	return data, nil
}
