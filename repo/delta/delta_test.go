package delta_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/patchkeep/patchkeep/repo/delta"
)

// random returns the same n bytes each time.
func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

// program is like the code of a compiler: few different bytes, and an address
// into itself every now and then.
func program(n, origin int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 0, n)
	for len(b) < n {
		for range 8 + r.IntN(24) {
			b = append(b, byte(r.IntN(40)))
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(origin+r.IntN(n)))
	}
	return b[:n]
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func encode(t testing.TB, base, target []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := delta.Make(t.Context(), &b, base, target, math.MaxInt64); err != nil {
		t.Fatalf("make: %v", err)
	}
	return b.Bytes()
}

func apply(ctx context.Context, base, d []byte, length int) ([]byte, int64, error) {
	var out bytes.Buffer
	n, err := delta.Apply(ctx, &out, bytes.NewReader(base), int64(len(base)), bytes.NewReader(d), int64(length))
	return out.Bytes(), n, err
}

func TestRoundTrip(t *testing.T) {
	const mib = 1 << 20
	const k = mib / 4
	r, code := random(6*k, 1), program(k, 4096)
	for _, c := range []struct {
		name         string
		base, target []byte
		atMost       int // bytes of the delta
	}{
		{"the same", r, r, 100},
		{"nothing in common", random(1000, 2), random(100_000, 3), 101_000},
		{"nothing to begin with", nil, random(1000, 2), 1200},
		{"a single byte", []byte("a"), []byte("b"), 100},
		{"nothing left", r, nil, 100},
		{"inserted", r, join(r[:k+7], random(1000, 4), r[k+7:]), 1400},
		{"cut out", r, join(r[:k+7], r[2*k:]), 200},
		{"moved about", r, join(r[4*k:], r[k:3*k], r[:17], r[3*k:4*k]), 300},
		{"one byte in a thousand", r, func() []byte {
			b := bytes.Clone(r)
			for i := 0; i < len(b); i += 1000 {
				b[i]++
			}
			return b
		}(), 2000},
		{"addresses moved", code, program(k, 4096+256), k / 15},
		{"more new than a piece holds", r[:k], random(5*mib, 5), 5*mib + 2000},
		{"zeros", make([]byte, 5*k), make([]byte, 7*k), 1000},
		{"a run in a run", bytes.Repeat([]byte("ab"), k), join(bytes.Repeat([]byte("ab"), k/2), []byte("x"), bytes.Repeat([]byte("ba"), k)), 2000},
		{"a base of which not every place is known", join(random(17*mib, 6), r), join(r[5:3*k], r), 3000},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := encode(t, c.base, c.target)
			if len(d) > c.atMost {
				t.Errorf("the delta has %d bytes, at most %d were expected", len(d), c.atMost)
			}
			got, _, err := apply(t.Context(), c.base, d, len(c.target))
			if err != nil || !bytes.Equal(got, c.target) {
				t.Fatalf("apply: %d bytes, %v; want %d", len(got), err, len(c.target))
			}
		})
	}
}

func TestApplySaysWhatTheBaseGave(t *testing.T) {
	base := random(1<<20, 1)
	target := join(base, random(5000, 2))
	if _, n, err := apply(t.Context(), base, encode(t, base, target), len(target)); err != nil || n != 1<<20 {
		t.Errorf("the base gave %d bytes, %v", n, err)
	}
}

func TestMakeStops(t *testing.T) {
	err := delta.Make(t.Context(), io.Discard, random(1000, 1), random(100_000, 2), 60_000)
	if !errors.Is(err, delta.ErrTooLarge) {
		t.Errorf("beyond the limit: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := delta.Make(ctx, io.Discard, random(3<<20, 1), random(3<<20, 2), math.MaxInt64); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// The memory of Apply depends on no length.
func TestApplyTakesLittleMemory(t *testing.T) {
	base := random(24<<20, 1)
	target := join(random(3<<20, 2), base[1<<20:], base[:1<<20])
	for i := 0; i < len(target); i += 4001 {
		target[i]++
	}
	d := encode(t, base, target)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	n, err := delta.Apply(t.Context(), io.Discard, bytes.NewReader(base), int64(len(base)), bytes.NewReader(d), int64(len(target)))
	runtime.ReadMemStats(&after)
	if err != nil || n < 23<<20 {
		t.Fatalf("the base gave %d bytes, %v", n, err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > delta.Memory {
		t.Errorf("Apply took %d bytes in all, at most %d are documented", took, delta.Memory)
	}
}

// raw makes a delta by hand: its content, compressed.
func raw(t *testing.T, content []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	enc, err := zstd.NewWriter(nil, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return enc.EncodeAll(content, nil)
}

func TestBadDeltas(t *testing.T) {
	const magic = "patchkeep-delta\x01"
	base := random(1000, 1)
	uv := func(n ...uint64) (b []byte) {
		for _, n := range n {
			b = binary.AppendUvarint(b, n)
		}
		return b
	}
	copied := func(n, seek int64) []byte { return binary.AppendVarint(uv(uint64(n)<<2), seek) }
	piece := func(ops ...[]byte) []byte { return join([]byte(magic), uv(uint64(len(ops))), join(ops...)) }
	end := []byte{0}
	good := join(piece(copied(10, 0)), end)
	if _, _, err := apply(t.Context(), base, raw(t, good), 10); err != nil {
		t.Fatalf("a good one: %v", err)
	}
	many := join([]byte(magic), uv(64<<10+1), bytes.Repeat(copied(1, -1), 64<<10+1), end)
	for name, d := range map[string][]byte{
		"empty":                       nil,
		"no zstd":                     []byte("patchkeep-delta"),
		"another beginning":           raw(t, join([]byte("patchkeep-delta\x02"), good[16:])),
		"cut off in the beginning":    raw(t, good[:7]),
		"cut off in an instruction":   raw(t, good[:18]),
		"cut off before the end":      raw(t, good[:len(good)-1]),
		"cut off in the bytes":        raw(t, piece(uv(10<<2|2))),
		"too short":                   raw(t, join(piece(copied(9, 0)), end)),
		"too long":                    raw(t, join(piece(copied(11, 0)), end)),
		"longer in a later piece":     raw(t, join(piece(copied(10, 0)), uv(1), copied(1, 0), end)),
		"an instruction for no bytes": raw(t, join(piece(copied(0, 0), copied(10, 0)), end)),
		"an unknown instruction":      raw(t, join(piece(uv(10<<2|3)), end)),
		"before the base":             raw(t, join(piece(copied(10, -1)), end)),
		"behind the base":             raw(t, join(piece(copied(10, 991)), end)),
		"far behind the base":         raw(t, join(piece(copied(10, math.MaxInt64)), end)),
		"far before the base":         raw(t, join(piece(copied(5, 5), copied(5, math.MinInt64)), end)),
		"a length without end":        raw(t, join(piece(uv(math.MaxUint64-3)), end)),
		"a number without end":        raw(t, join([]byte(magic), bytes.Repeat([]byte{0xff}, 20))),
		"too many instructions":       raw(t, many),
		"more follows":                raw(t, join(good, []byte("x"))),
		"another frame follows":       join(raw(t, good), raw(t, []byte("x"))),
		"rubbish follows":             join(raw(t, good), []byte("rubbish")),
		"a window that is too large":  raw(t, join(good[:len(good)-1], make([]byte, 20<<20)), zstd.WithWindowSize(16<<20)),
	} {
		t.Run(name, func(t *testing.T) {
			got, _, err := apply(t.Context(), base, d, 10)
			if !errors.Is(err, delta.ErrBad) || len(got) > 10 {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	big := join(piece(uv(uint64(4<<20+1)<<2|2)), make([]byte, 4<<20+1), end)
	if _, _, err := apply(t.Context(), base, raw(t, big), 4<<20+1); !errors.Is(err, delta.ErrBad) {
		t.Errorf("a piece that is too large: %v", err)
	}
}

// Whatever becomes of a delta on its way, nothing goes beyond the length, and
// nothing is the right file that is not.
func TestDamagedDeltas(t *testing.T) {
	base := program(200_000, 4096)
	target := join(program(200_000, 5000), random(3000, 3))
	d := encode(t, base, target)
	check := func(what string, at int, damaged []byte) {
		got, _, err := apply(t.Context(), base, damaged, len(target))
		switch {
		case len(got) > len(target):
			t.Errorf("%s at %d: %d bytes", what, at, len(got))
		case err == nil && len(got) != len(target):
			t.Errorf("%s at %d: %d bytes and no error", what, at, len(got))
		case err != nil && !errors.Is(err, delta.ErrBad):
			t.Errorf("%s at %d: %v", what, at, err)
		}
	}
	for i := range 300 {
		at := i * (len(d) - 1) / 299
		flipped := bytes.Clone(d)
		flipped[at] ^= 1 << (i % 8)
		check("bit flipped", at, flipped)
		if _, _, err := apply(t.Context(), base, d[:at], len(target)); !errors.Is(err, delta.ErrBad) {
			t.Errorf("cut off at %d: %v", at, err)
		}
	}
	if _, _, err := apply(t.Context(), base[:1000], d, len(target)); !errors.Is(err, delta.ErrBad) {
		t.Errorf("a shorter base: %v", err)
	}
}

// A base that lost its end since it was looked at is an error, not bytes.
func TestBaseShrinks(t *testing.T) {
	base := random(100_000, 1)
	d := encode(t, base, base)
	_, err := delta.Apply(t.Context(), io.Discard, bytes.NewReader(base[:50_000]), int64(len(base)), bytes.NewReader(d), int64(len(base)))
	if !errors.Is(err, io.EOF) || errors.Is(err, delta.ErrBad) {
		t.Errorf("%v", err)
	}
}

func TestApplyIsCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	base := random(1000, 1)
	if _, _, err := apply(ctx, base, encode(t, base, base), len(base)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func FuzzApply(f *testing.F) {
	base := program(5000, 4096)
	f.Add(encode(f, base, program(5000, 5000)), base, 5000)
	f.Add([]byte("\x28\xb5\x2f\xfd"), base, 1)
	f.Fuzz(func(t *testing.T, d, base []byte, length int) {
		length = max(0, min(length, 1<<20))
		got, n, err := apply(t.Context(), base, d, length)
		if len(got) > length || err == nil && (len(got) != length || n > int64(length)) {
			t.Errorf("%d bytes instead of %d, %d from the base, %v", len(got), length, n, err)
		}
	})
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("the quick brown fox jumps over the lazy dog"), []byte("the quick red fox jumps over the lazy dog"))
	f.Add(program(3000, 4096), program(3000, 5000))
	f.Fuzz(func(t *testing.T, base, target []byte) {
		got, _, err := apply(t.Context(), base, encode(t, base, target), len(target))
		if err != nil || !bytes.Equal(got, target) {
			t.Errorf("%d bytes instead of %d, %v", len(got), len(target), err)
		}
	})
}
