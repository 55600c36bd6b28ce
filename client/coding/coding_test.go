package coding_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/patchkeep/patchkeep/client/coding"
	"github.com/patchkeep/patchkeep/client/tuf"
)

func zipped(data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(data)
	w.Close()
	return b.Bytes()
}

func zstandard(data []byte, opts ...zstd.EOption) []byte {
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, opts...)
	if err != nil {
		panic(err)
	}
	w.Write(data)
	w.Close()
	return b.Bytes()
}

// endless repeats bytes for ever, and counts what was read of them.
type endless struct {
	data []byte
	read int64
}

func (e *endless) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		at := int((e.read + int64(n)) % int64(len(e.data)))
		n += copy(p[n:], e.data[at:])
	}
	e.read += int64(n)
	return n, nil
}

func TestRead(t *testing.T) {
	const max = 10_000
	text := []byte(strings.Repeat("0123456789", max/10))
	random := zstandard(text, zstd.WithEncoderLevel(zstd.SpeedFastest))
	other := errors.New("any other")
	for _, c := range []struct {
		name, encoding string
		body           io.Reader
		want           error
	}{
		{"plain", "", bytes.NewReader(text), nil},
		{"identity", "identity", bytes.NewReader(text), nil},
		{"gzip", "gzip", bytes.NewReader(zipped(text)), nil},
		{"gzip by its old name", "x-gzip", bytes.NewReader(zipped(text)), nil},
		{"gzip of two members", "gzip", bytes.NewReader(append(zipped(text[:10]), zipped(text[10:])...)), nil},
		{"zstd", "zstd", bytes.NewReader(zstandard(text)), nil},
		{"zstd of two frames", "zstd", bytes.NewReader(append(zstandard(text[:10]), zstandard(text[10:])...)), nil},

		{"one byte too many", "", bytes.NewReader(append(text, 'x')), tuf.ErrTooLarge},
		{"a gzip bomb", "gzip", bytes.NewReader(zipped(make([]byte, 10<<20))), tuf.ErrTooLarge},
		{"a zstd bomb", "zstd", bytes.NewReader(zstandard(make([]byte, 10<<20))), tuf.ErrTooLarge},
		{"gzip that yields nothing for ever", "gzip", &endless{data: zipped(nil)}, tuf.ErrTooLarge},
		{"zstd that yields nothing for ever", "zstd", &endless{data: []byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 'x'}}, tuf.ErrTooLarge},
		{"plain for ever", "", &endless{data: text}, tuf.ErrTooLarge},
		{"a window of a gigabyte", "zstd", bytes.NewReader([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 20 << 3, 1, 0, 0}), other},
		{"cut off", "zstd", bytes.NewReader(random[:len(random)/2]), other},
		{"not gzip", "gzip", bytes.NewReader(text), other},
		{"not zstd", "zstd", bytes.NewReader(text), other},
		{"not asked for", "br", bytes.NewReader(text), other},
		{"twice", "gzip, zstd", bytes.NewReader(text), other},
	} {
		data, wire, err := coding.Read(c.body, c.encoding, max)
		switch {
		case c.want == nil && (err != nil || !bytes.Equal(data, text)):
			t.Errorf("%s: %d bytes, %v", c.name, len(data), err)
		case c.want == other && (err == nil || errors.Is(err, tuf.ErrTooLarge)):
			t.Errorf("%s: %v", c.name, err)
		case c.want == tuf.ErrTooLarge && !errors.Is(err, c.want):
			t.Errorf("%s: %v", c.name, err)
		}
		if wire > coding.MaxWire(max)+1 {
			t.Errorf("%s: %d bytes were read", c.name, wire)
		}
		if e, ok := c.body.(*endless); ok && e.read > 2*coding.MaxWire(max) {
			t.Errorf("%s: %d bytes were read", c.name, e.read)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(zipped([]byte("hello")), "gzip")
	f.Add(zstandard([]byte("hello")), "zstd")
	f.Fuzz(func(t *testing.T, body []byte, encoding string) {
		if data, _, err := coding.Read(bytes.NewReader(body), encoding, 1000); err == nil && len(data) > 1000 {
			t.Errorf("%d bytes", len(data))
		}
	})
}
