//go:build unix

package install_test

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/patchkeep/patchkeep/client/install"
)

// FuzzArchive unpacks whatever it is given; nothing may lie outside the directory,
// lead out of it, or be more than a file, a directory or a link.
func FuzzArchive(f *testing.F) {
	var t testing.T
	entries := []entry{
		{name: "bin/hello", body: "x", mode: 0o4755},
		{name: "a/l", body: "../bin/hello", kind: tar.TypeSymlink},
		{name: "b", body: "a", kind: tar.TypeSymlink},
	}
	for _, name := range []string{"a.tar", "a.tar.gz", "a.tar.zst", "a.zip"} {
		f.Add(pack(&t, name, entries))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		inside := filepath.Join(dir, "inside")
		mustDo(t, os.Mkdir(inside, 0o755))
		root, err := os.OpenRoot(inside)
		mustDo(t, err)
		defer root.Close()
		// Refused or not: what is there afterwards must be harmless.
		_ = install.Extract(t.Context(), root, io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data))), install.ArchiveLimits{Files: 100, Bytes: 1 << 20})
		if got := names(t, dir); strings.Join(got, " ") != "inside" {
			t.Fatalf("%v lie around", got)
		}
		err = filepath.WalkDir(inside, func(path string, e fs.DirEntry, err error) error {
			mustDo(t, err)
			info, err := e.Info()
			mustDo(t, err)
			switch mode := info.Mode(); {
			case mode&fs.ModeSymlink != 0:
				if to, err := filepath.EvalSymlinks(path); err == nil && to != inside && !strings.HasPrefix(to, inside+"/") {
					t.Errorf("%s leads to %s", path, to)
				}
			case mode&fs.ModeSymlink == 0 && !mode.IsRegular() && !mode.IsDir(), mode&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0, mode.IsRegular() && mode.Perm()&0o022 != 0:
				t.Errorf("%s has mode %v", path, mode)
			}
			return nil
		})
		mustDo(t, err)
	})
}

// FuzzLogText reads the end of whatever a program has written as its log: what is
// shown is text, and not too long.
func FuzzLogText(f *testing.F) {
	for _, s := range []string{"", "a\r\nb", "\xFF\xFEa\x00\n\x00", "\xFE\xFF\x00a", "\xFF\xFE\x3D\xD8", "\xEF\xBB\xBFx", "\xFF\xFEa"} {
		f.Add([]byte(s), 10)
	}
	f.Fuzz(func(t *testing.T, data []byte, limit int) {
		limit = min(max(limit, 1), 1<<16)
		text, err := install.LogText(io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data))), limit)
		if err != nil || len(text) > limit || !utf8.ValidString(text) {
			t.Fatalf("%d bytes %q, %v; at most %d are wanted", len(text), text, err, limit)
		}
	})
}

// FuzzSigners reads whatever the programs say that check signatures: a signer
// looks like one.
func FuzzSigners(f *testing.F) {
	f.Add(pkgSigned)
	f.Add("RSA/SHA512, Wed Nov 25 00:03:59 2026, Key ID 0242e503a7c0b12b\n(none)\n")
	f.Fuzz(func(t *testing.T, said string) {
		if team, err := install.PkgTeam(said); err == nil && (len(team) != 10 || !strings.Contains(said, "Status: signed by a ")) {
			t.Errorf("team %q", team)
		}
		for _, id := range install.RPMSigners(said) {
			if len(id) < 16 || len(id) > 64 || strings.Trim(id, "0123456789abcdef") != "" {
				t.Errorf("key %q", id)
			}
		}
	})
}
