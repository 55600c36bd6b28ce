package cache

import "testing"

// FuzzProgress: whatever lies in a progress file, no more bytes are believed
// than there are.
func FuzzProgress(f *testing.F) {
	f.Add([]byte(`{"synced":33554432,"boot":"0a"}`), int64(40<<20), int64(39<<20))
	f.Add([]byte(`{"synced":-1}`), int64(1), int64(1))
	f.Add([]byte(`{"synced":1e99}`), int64(5), int64(5))
	f.Add([]byte(`{"boot":"here"}`), int64(7), int64(6))
	f.Fuzz(func(t *testing.T, data []byte, size, have int64) {
		if size < 0 || have < 0 || have > size {
			return
		}
		p := parseProgress(data, size)
		for _, boot := range []string{"", "here", p.Boot} {
			if n := p.trust(have, boot); n < 0 || n > have || boot != p.Boot && n > p.Synced {
				t.Errorf("%q: %d of %d bytes on %q", data, n, have, boot)
			}
		}
	})
}

// FuzzPartName: a name means one object, or nothing.
func FuzzPartName(f *testing.F) {
	sum := "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for _, s := range []string{sum + "-17", sum + "-017", sum + "--1", sum, "../" + sum + "-1", sum + "-9223372036854775807"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if sum, size, ok := parsePart(name); ok && (partBase(sum, size) != tmpDir+"/"+name || size <= 0) {
			t.Errorf("%q is %s of %d bytes", name, sum, size)
		}
	})
}
