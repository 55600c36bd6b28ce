package upstream

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// maxWindow bounds the memory in bytes that decompressing takes (RFC 8878
// §3.1.1.1.2 asks everyone to take 8 MB).
const maxWindow = 8 << 20

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
	header := http.Header{"Accept-Encoding": {"zstd, gzip;q=0.9"}}
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
	// What is compressed is not much larger than the plain bytes, and may not
	// go on for ever without yielding any.
	wire := &io.LimitedReader{R: resp.Body, N: max + max/64 + 4<<10}
	limit := wire.N
	data, err := decode(wire, resp.Header.Get("Content-Encoding"), max)
	h.metadata.received.Add(limit - wire.N)
	switch {
	case wire.N <= 0:
		return nil, fmt.Errorf("more than %d bytes: %w", limit-1, tuf.ErrTooLarge)
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

// decode reads a body to its end; more than max plain bytes are tuf.ErrTooLarge.
func decode(wire io.Reader, coding string, max int64) ([]byte, error) {
	switch coding {
	case "", "identity":
		return readAll(wire, max)
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(wire)
		if err != nil {
			return nil, err
		}
		defer z.Close()
		return readAll(z, max)
	case "zstd":
		z, err := zstd.NewReader(wire, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		return readAll(z, max)
	}
	return nil, fmt.Errorf("it sends %q, which nobody asked for", coding)
}
