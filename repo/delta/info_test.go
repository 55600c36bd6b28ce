package delta_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/repo/delta"
	"github.com/patchkeep/patchkeep/repo/layout"
)

var (
	sumA = strings.Repeat("a1", 32)
	sumB = strings.Repeat("b2", 32)
)

func info() *delta.Info {
	return &delta.Info{Format: 1, From: "1.0", BaseSHA256: sumA, BaseLength: 100, SHA256: sumB, Length: 120, Memory: delta.Memory}
}

func TestInfoRoundTrip(t *testing.T) {
	i := info()
	i.Unknown = map[string]json.RawMessage{"newer": json.RawMessage(`{"x":1}`)}
	raw, err := i.ToCustom()
	if err != nil {
		t.Fatal(err)
	}
	got, err := delta.FromCustom(raw)
	if err != nil || got.BaseSHA256 != sumA || got.Length != 120 || string(got.Unknown["newer"]) != `{"x":1}` {
		t.Errorf("%s becomes %+v, %v", raw, got, err)
	}
	for _, bad := range []string{``, `{}`, `[]`, `{"patchkeep":{}}`, `{"patchkeep-delta":null}`, `{"patchkeep-delta":{}}`, `{"patchkeep-delta":{"format":1},"patchkeep-delta":{"format":1}}`} {
		if _, err := delta.FromCustom(json.RawMessage(bad)); !errors.Is(err, delta.ErrBad) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestInfoFits(t *testing.T) {
	target := "patches/p/2.0/any/f"
	path, err := layout.DeltaPath(target, sumA)
	if err != nil {
		t.Fatal(err)
	}
	if err := info().Fits(path, target, sumB, 120); err != nil {
		t.Errorf("its own patch: %v", err)
	}
	for name, err := range map[string]error{
		"another patch":  info().Fits(path, "patches/p/2.1/any/f", sumB, 120),
		"another file":   info().Fits(path, target, sumA, 120),
		"another length": info().Fits(path, target, sumB, 121),
		"another base":   info().Fits(strings.Replace(path, "a1a1", "a2a1", 1), target, sumB, 120),
	} {
		if !errors.Is(err, delta.ErrBad) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	raw, err := info().ToCustom()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(raw))
	f.Fuzz(func(t *testing.T, data []byte) {
		i, err := delta.FromCustom(data)
		if err != nil {
			return
		}
		again, err := i.ToCustom()
		if err != nil {
			t.Fatalf("%s is read and cannot be written: %v", data, err)
		}
		if _, err := delta.FromCustom(again); err != nil {
			t.Errorf("%s is written and cannot be read: %v", again, err)
		}
	})
}
