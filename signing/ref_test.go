package signing_test

import (
	"errors"
	"runtime"
	"testing"

	"github.com/patchkeep/patchkeep/signing"
)

func TestParseRef(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // paths are spelt otherwise there
	}
	for in, path := range map[string]string{
		"keys":               "keys",
		"./keys/":            "keys",
		"/etc/keys/root.key": "/etc/keys/root.key",
		"file:keys":          "keys",
		"FILE:keys":          "keys",
		"file:/etc/keys":     "/etc/keys",
		"file:///etc/keys":   "/etc/keys",
		"file:a%20b":         "a%20b",
		`C:\keys`:            `C:\keys`,
		"./awskms:key":       "awskms:key",
		"name:with:colons":   "name:with:colons",
		"a b/ключ":           "a b/ключ",
	} {
		got, err := signing.ParseRef(in)
		if err != nil || got.Path != path || got.Scheme != signing.SchemeFile {
			t.Errorf("ParseRef(%q) = %+v, %v; want path %q", in, got, err, path)
		}
	}
	for _, in := range []string{
		"", "file:", "file://host/keys", "file://keys", "awskms:///alias/x", "gcpkms://p", "azurekms://v", "hashivault://k", "plugin://x", "a\x00b",
	} {
		if got, err := signing.ParseRef(in); !errors.Is(err, signing.ErrRef) {
			t.Errorf("ParseRef(%q) = %+v, %v; want %v", in, got, err, signing.ErrRef)
		}
	}
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"keys", "file:keys", "file:///k", "file://h/k", "awskms://x", "C:/k", "file:file:x", "//x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := signing.ParseRef(s)
		if err != nil {
			if !errors.Is(err, signing.ErrRef) {
				t.Errorf("ParseRef(%q): %v is not %v", s, err, signing.ErrRef)
			}
			return
		}
		again, err := signing.ParseRef(ref.String())
		if err != nil || again != ref {
			t.Errorf("ParseRef(%q) = %+v, and of its string %q = %+v, %v", s, ref, ref.String(), again, err)
		}
	})
}
