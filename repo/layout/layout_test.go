package layout

import (
	"errors"
	"strings"
	"testing"
)

func TestPatchPath(t *testing.T) {
	good := []string{"hello.deb", "a b.msi", "100%.exe", "naïve ünïcode.pkg", "日本語.bin", "%2e%2e", "[x]*?.sh", "-rf"}
	for _, f := range good {
		p, err := PatchPath("hello", "1.0~rc1+b2", "linux-amd64", f)
		if err != nil {
			t.Errorf("file %q: %v", f, err)
			continue
		}
		product, version, platform, file, ok := SplitPatchPath(p)
		if !ok || product != "hello" || version != "1.0~rc1+b2" || platform != "linux-amd64" || file != f {
			t.Errorf("SplitPatchPath(%q) = %q %q %q %q %v", p, product, version, platform, file, ok)
		}
	}
	bad := []struct{ product, version, platform, file string }{
		{"", "1", "any", "f"},
		{"..", "1", "any", "f"},
		{"a/b", "1", "any", "f"},
		{"a*", "1", "any", "f"},
		{"a", "../1", "any", "f"},
		{"a", "1", ".any", "f"},
		{"a", "1", "any", ""},
		{"a", "1", "any", ".."},
		{"a", "1", "any", ".hidden"},
		{"a", "1", "any", "x/y"},
		{"a", "1", "any", `x\y`},
		{"a", "1", "any", "x\x00y"},
		{"a", "1", "any", "x\ny"},
		{"a", "1", "any", "x\xff"},
		{"a", "1", "any", "exe.\u202efdp"},
		{"a", "1", "any", "x."},
		{"a", "1", "any", "x "},
		{"a", "1", "any", "x.blocks"},
		{"a", "1", "any", "x.from-0123456789abcdef.delta"},
		{"a", "1", "any", strings.Repeat("x", MaxFileLen+1)},
		{strings.Repeat("x", MaxNameLen+1), "1", "any", "f"},
	}
	for _, b := range bad {
		if p, err := PatchPath(b.product, b.version, b.platform, b.file); !errors.Is(err, ErrBadName) {
			t.Errorf("PatchPath(%q) = %q, %v; want ErrBadName", b, p, err)
		}
	}
}

func TestDeltaPath(t *testing.T) {
	sum := strings.Repeat("0123456789abcdef", 4)
	for _, file := range []string{"f", "a b.msi", "x.delta", "x.from-0123456789abcdef", "x.from-0123456789ABCDEF.delta", "x.from-123456789abcdef.delta", strings.Repeat("x", 152)} {
		target, err := PatchPath("p", "1", "any", file)
		if err != nil {
			t.Fatal(err)
		}
		p, err := DeltaPath(target, sum)
		if err != nil || p != target+".from-0123456789abcdef.delta" {
			t.Errorf("DeltaPath(%q) = %q, %v", target, p, err)
			continue
		}
		if got, base, ok := DeltaOf(p); !ok || got != target || base != sum[:16] {
			t.Errorf("DeltaOf(%q) = %q %q %v", p, got, base, ok)
		}
		for _, sister := range []string{target, p, BlocksPath(target), BlocksPath(p)} {
			if got, ok := PatchOf(sister); !ok || got != target {
				t.Errorf("PatchOf(%q) = %q %v", sister, got, ok)
			}
			if _, name, _ := strings.Cut(TargetFile(sister, sum), "any/"); len(name) > 255 {
				t.Errorf("%q has %d bytes", name, len(name))
			}
			if _, _, _, _, ok := SplitPatchPath(sister); ok != (sister == target) {
				t.Errorf("SplitPatchPath(%q) = %v", sister, ok)
			}
		}
	}
	long, err := PatchPath("p", "1", "any", strings.Repeat("x", 153))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ target, sum string }{
		{long, sum}, {"patches/p/1/any/f", sum[:63]}, {"patches/p/1/any/f", strings.ToUpper(sum)}, {"patches/p/1/any/f.blocks", sum}, {"halts/halts.json", sum}, {"", sum},
	} {
		if p, err := DeltaPath(c.target, c.sum); !errors.Is(err, ErrBadName) {
			t.Errorf("DeltaPath(%q, %q) = %q, %v; want ErrBadName", c.target, c.sum, p, err)
		}
	}
	for _, p := range []string{
		"", ".delta", "patches/p/1/any/f.delta", "patches/p/1/any/.from-0123456789abcdef.delta", "patches/p/1/any/f.from-0123456789abcdeg.delta",
		"rings/r/f.from-0123456789abcdef.delta", long + ".from-0123456789abcdef.delta", "patches/p/1/any/f.blocks.from-0123456789abcdef.delta",
	} {
		if target, base, ok := DeltaOf(p); ok {
			t.Errorf("DeltaOf(%q) = %q %q, want refused", p, target, base)
		}
		_, isPatch := PatchOf(p) // a name that only resembles a delta's
		if _, _, _, _, ok := SplitPatchPath(p); ok != isPatch {
			t.Errorf("PatchOf(%q) is %v", p, isPatch)
		}
	}
}

func TestMetadataFileRoundTrip(t *testing.T) {
	for _, role := range []string{"root", "product-a", "../x", "a/b", "1.root", "ü %", "..", "?#", ""} {
		name := MetadataFile(role, 7)
		if strings.Contains(name, "/") {
			t.Errorf("MetadataFile(%q) = %q has a slash", role, name)
		}
		r, v, ok := ParseMetadataFile(name)
		if role == "" {
			if ok {
				t.Errorf("ParseMetadataFile(%q) accepted an empty role", name)
			}
			continue
		}
		if !ok || r != role || v != 7 {
			t.Errorf("ParseMetadataFile(%q) = %q %d %v", name, r, v, ok)
		}
	}
	for _, name := range []string{"", "root.json", "0.root.json", "-1.root.json", "01.root.json", "+1.root.json", "1.root", "1..json", "99999999999999999999.root.json", "1.a%2.json", "1.%61.json", "timestamp"} {
		if r, v, ok := ParseMetadataFile(name); ok {
			t.Errorf("ParseMetadataFile(%q) = %q %d, want refused", name, r, v)
		}
	}
}

func TestTargetFileRoundTrip(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	for _, p := range []string{"a", "a/b.c", "patches/p/1/any/x y%.z", "d/.x"} {
		name := TargetFile(p, sum)
		got, s, ok := ParseTargetFile(name)
		if !ok || got != p || s != sum {
			t.Errorf("ParseTargetFile(%q) = %q %q %v", name, got, s, ok)
		}
	}
	for _, name := range []string{"", sum, sum + ".", "../" + sum + ".x", "a//" + sum + ".x", strings.ToUpper(sum) + ".x", "a/b"} {
		if p, _, ok := ParseTargetFile(name); ok {
			t.Errorf("ParseTargetFile(%q) = %q, want refused", name, p)
		}
	}
}

func TestBlockListLen(t *testing.T) {
	for length, want := range map[int64]int64{0: 0, 4 << 20: 0, 4<<20 + 1: 5 * 32, 5 << 20: 5 * 32, 5<<20 + 1: 6 * 32} {
		if got := BlockListLen(length); got != want {
			t.Errorf("BlockListLen(%d) = %d, want %d", length, got, want)
		}
	}
}

func FuzzParseNames(f *testing.F) {
	f.Add("1.root.json")
	f.Add("timestamp.json")
	f.Add("patches/p/1/any/f.from-0123456789abcdef.delta")
	f.Add("patches/p/1/any/" + strings.Repeat("0f", 32) + ".x")
	f.Fuzz(func(t *testing.T, name string) {
		if role, version, ok := ParseMetadataFile(name); ok && MetadataFile(role, version) != name {
			t.Errorf("metadata %q does not round-trip", name)
		}
		if p, sum, ok := ParseTargetFile(name); ok {
			if TargetFile(p, sum) != name {
				t.Errorf("target %q does not round-trip", name)
			}
			if strings.Contains("/"+p+"/", "/../") {
				t.Errorf("target %q leaves its root", name)
			}
		}
		if target, base, ok := DeltaOf(name); ok {
			if p, err := DeltaPath(target, base+strings.Repeat("0", 48)); err != nil || p != name {
				t.Errorf("delta %q does not round-trip: %q, %v", name, p, err)
			}
		}
		if err := CheckTargetPath(name); err == nil && (strings.HasPrefix(name, "/") || strings.Contains(name, "\\")) {
			t.Errorf("CheckTargetPath accepted %q", name)
		}
	})
}
