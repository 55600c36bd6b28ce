//go:build unix

package install_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// entry is one entry of an archive; kind is a tar type, 0 for a file.
type entry struct {
	name, body string // body: content, or where a link leads
	kind       byte
	mode       int64
}

func makeTar(t *testing.T, w io.Writer, entries []entry) {
	t.Helper()
	tw := tar.NewWriter(w)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(e.body))}
		if e.mode != 0 {
			h.Mode = e.mode
		}
		if e.kind != 0 {
			h.Typeflag, h.Size, h.Linkname = e.kind, 0, e.body
			if e.kind == tar.TypeDir || e.kind == tar.TypeChar {
				h.Linkname = ""
			}
		}
		mustDo(t, tw.WriteHeader(h))
		if h.Size > 0 {
			if _, err := io.WriteString(tw, e.body); err != nil {
				t.Fatal(err)
			}
		}
	}
	mustDo(t, tw.Close())
}

func makeZip(t *testing.T, entries []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := zip.NewWriter(&b)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate}
		switch e.kind {
		case tar.TypeSymlink:
			h.SetMode(fs.ModeSymlink | 0o777)
		case tar.TypeChar:
			h.SetMode(fs.ModeDevice | fs.ModeCharDevice | 0o666)
		default:
			h.SetMode(fs.FileMode(max(e.mode, 0o644)))
		}
		w, err := zw.CreateHeader(h)
		mustDo(t, err)
		if !strings.HasSuffix(e.name, "/") {
			_, err = io.WriteString(w, e.body)
			mustDo(t, err)
		}
	}
	mustDo(t, zw.Close())
	return b.Bytes()
}

// pack makes an archive of the format that the name tells.
func pack(t *testing.T, name string, entries []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	switch {
	case strings.HasSuffix(name, ".zip"):
		return makeZip(t, entries)
	case strings.HasSuffix(name, ".gz"):
		z := gzip.NewWriter(&b)
		makeTar(t, z, entries)
		mustDo(t, z.Close())
	case strings.HasSuffix(name, ".zst"):
		z, err := zstd.NewWriter(&b)
		mustDo(t, err)
		makeTar(t, z, entries)
		mustDo(t, z.Close())
	default:
		makeTar(t, &b, entries)
	}
	return b.Bytes()
}

func TestArchiveInstallSwitchAndRollback(t *testing.T) {
	for _, format := range []string{"a.tar", "a.tar.gz", "a.tar.zst", "a.zip"} {
		b := newBench(t)
		program := func(version string) []entry {
			return []entry{
				{name: "bin/", kind: tar.TypeDir},
				{name: "bin/hello", body: "#!/bin/sh\necho " + version + "\n", mode: 0o4777},
				{name: "./share/doc/ü x.txt", body: version},
				{name: "hi", body: "bin/hello", kind: tar.TypeSymlink},
				{name: "share/up", body: "../bin/hello", kind: tar.TypeSymlink},
			}
		}
		var jobs []install.Job
		for i, v := range []string{"1.0", "1.1", "1.2"} {
			job := b.job(t, patch.KindArchive, v, v+format, pack(t, format, program(v)))
			if i > 0 {
				job.Previous = jobs[i-1].Patch.Version
			}
			jobs = append(jobs, job)
			if got, err := b.Detect(t.Context(), job.Patch, install.Known{}); got != job.Previous || err != nil {
				t.Errorf("%s: Detect before %s = %q, %v", format, v, got, err)
			}
			if out := run(t, b, job); out.Result != patch.Success {
				t.Fatalf("%s: outcome %+v", format, out)
			}
			if got := read(t, b.Root, "hello/current/share/doc/ü x.txt"); got != v {
				t.Errorf("%s: current holds %q, want %s", format, got, v)
			}
		}
		info, err := os.Stat(filepath.Join(b.Root, "hello/current/bin/hello"))
		if err != nil || info.Mode() != 0o755 {
			t.Errorf("%s: mode %v, %v; want setuid and write rights stripped", format, info.Mode(), err)
		}
		for _, link := range []string{"hi", "share/up"} {
			if got := read(t, b.Root, "hello/current", link); !strings.Contains(got, "1.2") {
				t.Errorf("%s: %s leads to %q", format, link, got)
			}
		}
		if got := names(t, filepath.Join(b.Root, "hello/versions")); !slices.Equal(got, []string{"1.1", "1.2"}) {
			t.Errorf("%s: versions %v are left", format, got)
		}
		// Back, twice: the second time it is there already.
		for range 2 {
			if r, err := b.Rollback(t.Context(), jobs[2]); err != nil || r.Result != patch.Success {
				t.Fatalf("%s: Rollback = %+v, %v", format, r, err)
			}
			if got := read(t, b.Root, "hello/current/share/doc/ü x.txt"); got != "1.1" {
				t.Errorf("%s: current holds %q after the roll-back", format, got)
			}
		}
		// Forth again, over what lies there; then back to nothing.
		jobs[2].Previous = ""
		if out := run(t, b, jobs[2]); out.Result != patch.Success {
			t.Fatalf("%s: again: %+v", format, out)
		}
		if out := run(t, b, jobs[2]); out.Result != patch.Success {
			t.Fatalf("%s: over itself: %+v", format, out)
		}
		if _, err := b.Rollback(t.Context(), jobs[2]); err != nil {
			t.Fatal(err)
		}
		if got, err := b.Detect(t.Context(), jobs[2].Patch, install.Known{}); got != "" || err != nil {
			t.Errorf("%s: Detect = %q, %v; want nothing", format, got, err)
		}
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestFileIsDelivered(t *testing.T) {
	b := newBench(t)
	for _, v := range []string{"1", "2"} {
		job := b.job(t, patch.KindFile, v, "Ä %41 b.dat", []byte("data "+v))
		if out := run(t, b, job); out.Result != patch.Success {
			t.Fatalf("outcome %+v", out)
		}
		if got := read(t, b.Root, "hello/current/Ä %41 b.dat"); got != "data "+v {
			t.Errorf("content %q", got)
		}
	}
	if out := run(t, b, b.job(t, patch.KindFile, "3", "empty", nil)); out.Result != patch.Success {
		t.Errorf("empty file: %+v", out)
	}
}

func TestHostileArchives(t *testing.T) {
	link := func(name, to string) entry { return entry{name: name, body: to, kind: tar.TypeSymlink} }
	hard := func(name, to string) entry { return entry{name: name, body: to, kind: tar.TypeLink} }
	file := func(name string) entry { return entry{name: name, body: "x"} }
	tests := []struct {
		name    string
		tarOnly bool
		entries []entry
	}{
		{"up", false, []entry{file("../evil")}},
		{"up later", false, []entry{file("a/../../evil")}},
		{"up and down again", false, []entry{file("a/../b")}},
		{"absolute", false, []entry{file("/evil")}},
		{"backslash", false, []entry{file(`..\evil`)}},
		{"control character", false, []entry{file("a\nb")}},
		{"not UTF-8", false, []entry{file("a\xff")}},
		{"link up", false, []entry{link("l", "../../evil")}},
		{"link just up", false, []entry{link("a/l", "../..")}},
		{"link absolute", false, []entry{link("l", "/etc/passwd")}},
		{"link to nothing", true, []entry{link("l", "")}},
		{"link through a directory up", false, []entry{link("d", "."), link("l", "d/d/../../evil")}},
		{"through a link", false, []entry{link("d", "."), file("d/x")}},
		{"deep through a link", false, []entry{link("a", "b"), file("a/b/c")}},
		{"file over a link", false, []entry{link("l", "x"), file("l")}},
		{"link over a file", false, []entry{file("l"), link("l", "x")}},
		{"twice", false, []entry{file("a"), file("a")}},
		{"directory over a file", false, []entry{file("a"), file("a/b")}},
		{"hard link out", true, []entry{hard("l", "../../../etc/passwd")}},
		{"hard link absolute", true, []entry{hard("l", "/etc/passwd")}},
		{"hard link to a link", true, []entry{file("f"), link("s", "f"), hard("l", "s")}},
		{"hard link through a link", true, []entry{file("d/f"), link("s", "d"), hard("l", "s/f")}},
		{"hard link to later", true, []entry{hard("l", "f"), file("f")}},
		{"device", false, []entry{{name: "null", kind: tar.TypeChar}}},
		{"pipe", true, []entry{{name: "p", kind: tar.TypeFifo}}},
	}
	for _, tt := range tests {
		for _, format := range []string{"a.tar", "a.zip"} {
			if tt.tarOnly && format == "a.zip" {
				continue
			}
			refuse(t, tt.name+" in "+format, install.ArchiveLimits{}, pack(t, format, append([]entry{{name: "good", body: "1"}}, tt.entries...)))
		}
	}
}

// refuse installs 1.0, then tries the archive as 1.1, and looks that 1.0 stays
// and nothing else is there.
func refuse(t *testing.T, name string, limits install.ArchiveLimits, archive []byte) {
	t.Helper()
	b := newBench(t)
	b.Archive = limits
	good := b.job(t, patch.KindArchive, "1.0", "good.tar", pack(t, "a.tar", []entry{{name: "v", body: "1.0"}}))
	if out := run(t, b, good); out.Result != patch.Success {
		t.Fatalf("%s: good one: %+v", name, out)
	}
	job := b.job(t, patch.KindArchive, "1.1", "evil", archive)
	job.Previous = "1.0"
	out := run(t, b, job)
	if out.Result != patch.Failure || !strings.Contains(out.Why, "bad archive: ") {
		t.Errorf("%s: outcome %+v, want a refusal", name, out)
	}
	if got := read(t, b.Root, "hello/current/v"); got != "1.0" {
		t.Errorf("%s: current holds %q", name, got)
	}
	if got := names(t, filepath.Join(b.Root, "hello/versions")); !slices.Equal(got, []string{"1.0"}) {
		t.Errorf("%s: versions holds %v", name, got)
	}
	if got := names(t, b.Root); !slices.Equal(got, []string{"hello"}) {
		t.Errorf("%s: root holds %v", name, got)
	}
	if got := names(t, b.dir); !slices.Equal(got, []string{"files", "root", "work"}) && !slices.Equal(got, []string{"files", "root"}) {
		t.Errorf("%s: %v lie around", name, got)
	}
}

func TestBombsAndRubbish(t *testing.T) {
	zeros := strings.Repeat("\x00", 2<<20)
	var many []entry
	for i := range 50 {
		many = append(many, entry{name: fmt.Sprintf("d/%d", i)})
	}
	deep := []entry{{name: strings.Repeat("d/", 60) + "f"}}
	limits := install.ArchiveLimits{Files: 50, Bytes: 1 << 20}
	for _, format := range []string{"a.tar.gz", "a.tar.zst", "a.zip"} {
		refuse(t, "bomb "+format, limits, pack(t, format, []entry{{name: "a", body: zeros}}))
		refuse(t, "bomb in parts "+format, limits, pack(t, format, []entry{{name: "a", body: zeros[:700<<10]}, {name: "b", body: zeros[:700<<10]}}))
		refuse(t, "many files "+format, limits, pack(t, format, many))
		refuse(t, "deep "+format, limits, pack(t, format, deep))
		whole := pack(t, format, []entry{{name: "a", body: strings.Repeat("some text ", 10000)}})
		refuse(t, "cut "+format, limits, whole[:len(whole)/2])
	}
	refuse(t, "empty", limits, nil)
	refuse(t, "text", limits, []byte(strings.Repeat("hello ", 100)))
	refuse(t, "gzip of text", limits, func() []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		fmt.Fprint(z, strings.Repeat("hello ", 1000))
		mustDo(t, z.Close())
		return b.Bytes()
	}())
}

// The root of installations must not be in the hands of others.
func TestInstallRootOfOthers(t *testing.T) {
	b := newBench(t)
	mustDo(t, os.Mkdir(b.Root, 0o755))
	mustDo(t, os.Chmod(b.Root, 0o777))
	job := b.job(t, patch.KindArchive, "1.0", "good.tar", pack(t, "a.tar", []entry{{name: "v", body: "1.0"}}))
	if _, err := b.Run(t.Context(), job); !errors.Is(err, install.ErrUnsafe) {
		t.Errorf("Run = %v, want ErrUnsafe", err)
	}
}

// So many files that they are synced all at once.
func TestManyFiles(t *testing.T) {
	b := newBench(t)
	var many []entry
	for i := range 300 {
		many = append(many, entry{name: fmt.Sprintf("d%d/%d", i%7, i), body: fmt.Sprint(i)})
	}
	if out := run(t, b, b.job(t, patch.KindArchive, "1.0", "many.tar.zst", pack(t, "a.tar.zst", many))); out.Result != patch.Success {
		t.Fatalf("outcome %+v", out)
	}
	if got := read(t, b.Root, "hello/current/d5/299"); got != "299" {
		t.Errorf("content %q", got)
	}
}
