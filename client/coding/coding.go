// Package coding undoes the content codings (RFC 9110 §8.4) of small documents
// from servers that are hostile until what they sent is verified.
package coding

import (
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/patchkeep/patchkeep/client/tuf"
)

// Accept is the Accept-Encoding of a request whose answer goes to Read.
const Accept = "zstd, gzip;q=0.9"

// maxWindow bounds the memory in bytes that decompressing takes (RFC 8878
// §3.1.1.1.2 asks everyone to take 8 MB).
const maxWindow = 8 << 20

// MaxWire is how many bytes may come for a document of at most max: what is
// compressed is not much larger than the plain bytes, and may not go on for
// ever without yielding any.
func MaxWire(max int64) int64 { return max + max/64 + 4<<10 }

// Read reads a body with the given Content-Encoding to its end, and says how
// many bytes came. More than max plain ones, or more than MaxWire, wrap
// tuf.ErrTooLarge. A coding that Accept does not name is an error, and so is
// what is not in it.
func Read(body io.Reader, contentEncoding string, max int64) (data []byte, wire int64, err error) {
	limit := MaxWire(max)
	r := &io.LimitedReader{R: body, N: limit + 1}
	data, err = read(r, contentEncoding, max)
	wire = limit + 1 - r.N
	if wire > limit {
		return nil, wire, fmt.Errorf("more than %d bytes for a document of at most %d: %w", limit, max, tuf.ErrTooLarge)
	}
	return data, wire, err
}

func read(r io.Reader, contentEncoding string, max int64) ([]byte, error) {
	switch contentEncoding {
	case "", "identity":
		return readAll(r, max)
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, err
		}
		defer z.Close()
		return readAll(z, max)
	case "zstd":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		return readAll(z, max)
	}
	return nil, fmt.Errorf("Content-Encoding %.20q, which was not asked for", contentEncoding)
}

func readAll(r io.Reader, max int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, max+1))
	if err == nil && int64(len(data)) > max {
		return nil, fmt.Errorf("more than %d bytes: %w", max, tuf.ErrTooLarge)
	}
	return data, err
}
