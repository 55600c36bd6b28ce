// Package storetest is what every driver of package store must do, as tests.
package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/store"
)

// Run tests the store that newStore returns: a new, empty one at each call.
func Run(t *testing.T, newStore func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, store.Store)
	}{
		{"empty store", testEmpty},
		{"create and read", testCreate},
		{"names", testNames},
		{"bad names", testBadNames},
		{"list", testList},
		{"many objects", testMany},
		{"create once", testCreateOnce},
		{"create race", testCreateRace},
		{"replace", testReplace},
		{"replace race", testReplaceRace},
		{"reader fails", testReaderFails},
		{"cancelled", testCancelled},
		{"delete", testDelete},
		{"large", testLarge},
		{"memory", testMemory},
		{"stage", testStage},
		{"probe", testProbe},
		{"string", testString},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, newStore(t)) })
	}
}

var jsonOpt = store.Options{ContentType: "application/json", CacheControl: "no-cache"}

func mustCreate(t *testing.T, s store.Store, name, body string) store.Info {
	t.Helper()
	info, err := s.Create(t.Context(), name, strings.NewReader(body), int64(len(body)), jsonOpt)
	if err != nil {
		t.Fatal(err)
	}
	if info.Name != name || info.Size != int64(len(body)) || info.ETag == "" {
		t.Fatalf("Create(%q) = %+v", name, info)
	}
	return info
}

func read(t *testing.T, s store.Reader, name string, offset int64) (string, store.Info) {
	t.Helper()
	rc, info, err := s.Open(t.Context(), name, offset)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), info
}

func list(t *testing.T, s store.Reader, prefix string) []string {
	t.Helper()
	var names []string
	err := s.List(t.Context(), prefix, func(i store.Info) error {
		names = append(names, i.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

// wantNothing checks that the object is not there in any way.
func wantNothing(t *testing.T, s store.Store, name string) {
	t.Helper()
	_, err := s.Stat(t.Context(), name)
	wantErr(t, "Stat "+name, err, fs.ErrNotExist)
	_, _, err = s.Open(t.Context(), name, 0)
	wantErr(t, "Open "+name, err, fs.ErrNotExist)
	if got := list(t, s, ""); slices.Contains(got, name) {
		t.Errorf("List shows %s", name)
	}
}

func testEmpty(t *testing.T, s store.Store) {
	wantNothing(t, s, "metadata/timestamp.json")
	if got := list(t, s, ""); len(got) != 0 {
		t.Errorf("List = %q", got)
	}
	if got := list(t, s, "targets/none/"); len(got) != 0 {
		t.Errorf("List = %q", got)
	}
	if err := s.Delete(t.Context(), "metadata/timestamp.json"); err != nil {
		t.Error(err)
	}
	_, err := s.Replace(t.Context(), "metadata/timestamp.json", []byte("x"), "0123", store.Options{})
	wantErr(t, "Replace of what is not there", err, store.ErrConflict)
}

func testCreate(t *testing.T, s store.Store) {
	const name, body = "metadata/1.root.json", "0123456789"
	made := mustCreate(t, s, name, body)
	stat, err := s.Stat(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if stat.Name != name || stat.Size != 10 || stat.ETag != made.ETag || stat.Modified.IsZero() || stat.Modified.Location().String() != "UTC" {
		t.Errorf("Stat = %+v, Create = %+v", stat, made)
	}
	for _, c := range []struct {
		offset int64
		want   string
	}{{0, body}, {1, "123456789"}, {9, "9"}, {10, ""}, {11, ""}, {1 << 40, ""}} {
		got, info := read(t, s, name, c.offset)
		if got != c.want || info.Size != 10 || info.ETag != made.ETag || info.Name != name {
			t.Errorf("Open at %d = %q, %+v; want %q", c.offset, got, info, c.want)
		}
	}
	if _, _, err := s.Open(t.Context(), name, -1); err == nil {
		t.Error("a negative offset is accepted")
	}
	// Directories are not objects, and what is below an object is not there.
	for _, n := range []string{"metadata", "metadata/1.root.json/x"} {
		_, err := s.Stat(t.Context(), n)
		wantErr(t, "Stat "+n, err, fs.ErrNotExist)
	}
	// Sizes: none, unknown, and unknown without any content.
	mustCreate(t, s, "targets/empty", "")
	if got, info := read(t, s, "targets/empty", 0); got != "" || info.Size != 0 {
		t.Errorf("empty object: %q, %+v", got, info)
	}
	if got, _ := read(t, s, "targets/empty", 5); got != "" {
		t.Errorf("empty object: %q", got)
	}
	for name, body := range map[string]string{"targets/unknown": "some", "targets/unknown-empty": ""} {
		info, err := s.Create(t.Context(), name, iotest.OneByteReader(strings.NewReader(body)), -1, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := read(t, s, name, 0); got != body || info.Size != int64(len(body)) {
			t.Errorf("%s: %q, %+v", name, got, info)
		}
	}
}

func testNames(t *testing.T, s store.Store) {
	names := []string{
		"targets/a b/c d.deb", "targets/100%.bin", "targets/%2e%2e", "targets/%41", "targets/a+b", "targets/ärger/日本語.msi",
		"targets/#hash", "targets/q?x=1&y=2", "targets/semi;colon=,", "targets/'quote\"", "targets/~tilde!*()@$", "targets/...", "targets/.hidden",
		"targets/" + strings.Repeat("n", 240), "targets/" + strings.Repeat("d/", 60) + "deep", "x",
	}
	for _, n := range names {
		mustCreate(t, s, n, "body of "+n)
	}
	for _, n := range names {
		if got, _ := read(t, s, n, 0); got != "body of "+n {
			t.Errorf("%s: read %q", n, got)
		}
		if info, err := s.Stat(t.Context(), n); err != nil || info.Name != n {
			t.Errorf("Stat = %+v, %v", info, err)
		}
	}
	slices.Sort(names)
	if got := list(t, s, ""); !slices.Equal(got, names) {
		t.Errorf("List = %q\nwant %q", got, names)
	}
	for _, n := range names {
		if err := s.Delete(t.Context(), n); err != nil {
			t.Error(err)
		}
	}
	if got := list(t, s, ""); len(got) != 0 {
		t.Errorf("after Delete: %q", got)
	}
}

func testBadNames(t *testing.T, s store.Store) {
	for _, n := range []string{
		"", "/", "/etc/passwd", "..", "../x", "a/../b", "a/..", "./a", "a/.", "a//b", "a/", "//a", `a\b`, `..\x`, "a\x00b", "a\nb", "\xff",
		".patchkeep/lock", ".patchkeep/tmp/x", ".Patchkeep/x", ".patchkeep", strings.Repeat("a", layout.MaxPathLen+1),
	} {
		_, _, err := s.Open(t.Context(), n, 0)
		wantErr(t, fmt.Sprintf("Open %q", n), err, layout.ErrBadName)
		_, err = s.Stat(t.Context(), n)
		wantErr(t, fmt.Sprintf("Stat %q", n), err, layout.ErrBadName)
		_, err = s.Create(t.Context(), n, strings.NewReader("x"), 1, store.Options{})
		wantErr(t, fmt.Sprintf("Create %q", n), err, layout.ErrBadName)
		_, err = s.Replace(t.Context(), n, []byte("x"), "", store.Options{})
		wantErr(t, fmt.Sprintf("Replace %q", n), err, layout.ErrBadName)
		wantErr(t, fmt.Sprintf("Delete %q", n), s.Delete(t.Context(), n), layout.ErrBadName)
	}
	for _, p := range []string{"/", "../", "a/../", "a//", ".patchkeep/"} {
		err := s.List(t.Context(), p, func(store.Info) error { return nil })
		wantErr(t, fmt.Sprintf("List %q", p), err, layout.ErrBadName)
	}
	if got := list(t, s, ""); len(got) != 0 {
		t.Errorf("List = %q", got)
	}
}

func testList(t *testing.T, s store.Store) {
	// In the order of the names as bytes, which is not that of a walk through
	// directories: '-' and '.' come before '/', '0' after it.
	want := []string{"a-b", "a.b", "a.b.c/x", "a/b", "a/b-", "a/b.d/y", "a/c/d/e", "a0", "ab/c", "b", "ä", "日"}
	for _, i := range rand.Perm(len(want)) {
		mustCreate(t, s, want[i], strings.Repeat("x", i))
	}
	for _, c := range []struct {
		prefix string
		want   []string
	}{
		{"", want},
		{"a", want[:9]},
		{"a/", []string{"a/b", "a/b-", "a/b.d/y", "a/c/d/e"}},
		{"a/b", []string{"a/b", "a/b-", "a/b.d/y"}},
		{"a/b-", []string{"a/b-"}},
		{"a/c/d/e", []string{"a/c/d/e"}},
		{"a/c/d/e/", nil},
		{"a.b", []string{"a.b", "a.b.c/x"}},
		{"c", nil},
		{"日", []string{"日"}},
	} {
		if got := list(t, s, c.prefix); !slices.Equal(got, c.want) {
			t.Errorf("List(%q) = %q, want %q", c.prefix, got, c.want)
		}
	}
	err := s.List(t.Context(), "", func(i store.Info) error {
		if i.Size != int64(slices.Index(want, i.Name)) || i.Modified.IsZero() {
			t.Errorf("List gives %+v", i)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	stop, calls := errors.New("stop"), 0
	err = s.List(t.Context(), "a", func(store.Info) error {
		if calls++; calls == 3 {
			return stop
		}
		return nil
	})
	if err != stop || calls != 3 {
		t.Errorf("List = %v after %d calls", err, calls)
	}
}

// testMany has more objects than fit into one answer of S3.
func testMany(t *testing.T, s store.Store) {
	const n = 1005
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 8 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < n; i = next.Add(1) - 1 {
				if _, err := s.Replace(t.Context(), fmt.Sprintf("m/%d/%d.x", i%7, i), []byte("x"), "", store.Options{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got := list(t, s, "")
	if len(got) != n || !slices.IsSorted(got) || len(slices.Compact(got)) != n {
		t.Errorf("List shows %d objects of %d, sorted: %v", len(got), n, slices.IsSorted(got))
	}
}

func testCreateOnce(t *testing.T, s store.Store) {
	made := mustCreate(t, s, "a/b", "first")
	_, err := s.Create(t.Context(), "a/b", strings.NewReader("second"), 6, store.Options{})
	wantErr(t, "second Create", err, store.ErrConflict)
	_, err = s.Replace(t.Context(), "a/b", []byte("third"), "", store.Options{})
	wantErr(t, "Replace without an ETag", err, store.ErrConflict)
	if got, info := read(t, s, "a/b", 0); got != "first" || info.ETag != made.ETag {
		t.Errorf("now %q, %+v", got, info)
	}
	// A name that would have to be both an object and a directory is at most
	// one of them.
	for _, n := range []string{"a", "a/b/c"} {
		_, err := s.Create(t.Context(), n, strings.NewReader("x"), 1, store.Options{})
		if errors.Is(err, store.ErrConflict) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Create(%q): %v", n, err)
		}
	}
	if got, _ := read(t, s, "a/b", 0); got != "first" {
		t.Errorf("now %q", got)
	}
}

// race runs fn in n goroutines at once and returns how many succeeded; any
// error but ErrConflict fails the test.
func race(t *testing.T, n int, fn func(i int) error) int {
	t.Helper()
	var wg sync.WaitGroup
	var won atomic.Int64
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			switch err := fn(i); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, store.ErrConflict):
				t.Error(err)
			}
		})
	}
	close(start)
	wg.Wait()
	return int(won.Load())
}

func testCreateRace(t *testing.T, s store.Store) {
	for round := range 5 {
		name := fmt.Sprintf("race/%d/object", round)
		won := race(t, 8, func(i int) error {
			body := strings.Repeat(fmt.Sprint(i), 1000+i)
			_, err := s.Create(t.Context(), name, strings.NewReader(body), int64(len(body)), store.Options{})
			return err
		})
		got, _ := read(t, s, name, 0)
		if won != 1 || len(got) != 1000+int(got[0]-'0') || strings.Count(got, got[:1]) != len(got) {
			t.Errorf("%d writers of %s have won; content %.20q", won, name, got)
		}
	}
}

func testReplace(t *testing.T, s store.Store) {
	const name = "metadata/timestamp.json"
	first, err := s.Replace(t.Context(), name, []byte("v1"), "", jsonOpt)
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Replace(t.Context(), name, []byte("v2"), first.ETag, jsonOpt)
	if err != nil {
		t.Fatal(err)
	}
	if second.ETag == first.ETag || second.Size != 2 || second.Name != name {
		t.Errorf("Replace = %+v after %+v", second, first)
	}
	_, err = s.Replace(t.Context(), name, []byte("v3"), first.ETag, jsonOpt)
	wantErr(t, "stale Replace", err, store.ErrConflict)
	if got, info := read(t, s, name, 0); got != "v2" || info.ETag != second.ETag {
		t.Errorf("now %q, %+v", got, info)
	}
	// A reader that has begun gets the old object or an error, never a mix.
	old := strings.Repeat("o", store.MaxReplace)
	third, err := s.Replace(t.Context(), name, []byte(old), second.ETag, jsonOpt)
	if err != nil {
		t.Fatal(err)
	}
	rc, _, err := s.Open(t.Context(), name, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if _, err := s.Replace(t.Context(), name, bytes.Repeat([]byte("n"), store.MaxReplace), third.ETag, jsonOpt); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(rc); err == nil && string(got) != old {
		t.Errorf("an open reader sees a mix: %d old bytes of %d", strings.Count(string(got), "o"), len(got))
	}
	if _, err := s.Replace(t.Context(), name, make([]byte, store.MaxReplace+1), third.ETag, jsonOpt); err == nil || errors.Is(err, store.ErrConflict) {
		t.Errorf("too large: %v", err)
	}
	if err := s.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	_, err = s.Replace(t.Context(), name, []byte("v4"), third.ETag, jsonOpt)
	wantErr(t, "Replace after Delete", err, store.ErrConflict)
	wantNothing(t, s, name)
}

// testReplaceRace counts with a compare-and-replace, as publishers do.
func testReplaceRace(t *testing.T, s store.Store) {
	const name, writers, each = "counter", 6, 5
	if _, err := s.Replace(t.Context(), name, []byte("0"), "", store.Options{}); err != nil {
		t.Fatal(err)
	}
	race(t, writers, func(int) error {
		for done := 0; done < each; {
			body, info := read(t, s, name, 0)
			var n int
			fmt.Sscan(body, &n)
			_, err := s.Replace(t.Context(), name, []byte(fmt.Sprint(n+1)), info.ETag, store.Options{})
			if err == nil {
				done++
			} else if !errors.Is(err, store.ErrConflict) {
				return err
			}
		}
		return nil
	})
	if got, _ := read(t, s, name, 0); got != fmt.Sprint(writers*each) {
		t.Errorf("the counter is %s after %d writes", got, writers*each)
	}
	info, err := s.Stat(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	won := race(t, 8, func(i int) error {
		_, err := s.Replace(t.Context(), name, []byte(fmt.Sprint("w", i)), info.ETag, store.Options{})
		return err
	})
	if won != 1 {
		t.Errorf("%d writers have replaced one version", won)
	}
}

func testReaderFails(t *testing.T, s store.Store) {
	broken := errors.New("cannot read the patch")
	const large = 12 << 20
	for _, c := range []struct {
		name string
		r    io.Reader
		size int64
		want error // nil: any but ErrConflict
	}{
		{"fails/at-once", iotest.ErrReader(broken), 10, broken},
		{"fails/midway", io.MultiReader(strings.NewReader("12345"), iotest.ErrReader(broken)), 10, broken},
		{"fails/unknown-size", io.MultiReader(strings.NewReader("12345"), iotest.ErrReader(broken)), -1, broken},
		{"fails/at-the-end", io.MultiReader(strings.NewReader("12345"), iotest.ErrReader(broken)), 5, broken},
		{"fails/large", io.MultiReader(zeros(large-1), iotest.ErrReader(broken)), large, broken},
		{"fails/large-unknown", io.MultiReader(zeros(large-1), iotest.ErrReader(broken)), -1, broken},
		{"short/empty", strings.NewReader(""), 1, io.ErrUnexpectedEOF},
		{"short/small", strings.NewReader("1234"), 5, io.ErrUnexpectedEOF},
		{"short/large", zeros(large - 1), large, io.ErrUnexpectedEOF},
		{"long/empty", strings.NewReader("1"), 0, nil},
		{"long/small", strings.NewReader("123456"), 5, nil},
		{"long/large", zeros(large + 1), large, nil},
	} {
		_, err := s.Create(t.Context(), c.name, c.r, c.size, store.Options{})
		if err == nil || errors.Is(err, store.ErrConflict) || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.want)
		}
		wantNothing(t, s, c.name)
		mustCreate(t, s, c.name, "after") // the name is free
	}
}

func zeros(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func testCancelled(t *testing.T, s store.Store) {
	made := mustCreate(t, s, "there", "body")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := s.Open(ctx, "there", 0)
	wantErr(t, "Open", err, context.Canceled)
	_, err = s.Stat(ctx, "there")
	wantErr(t, "Stat", err, context.Canceled)
	wantErr(t, "List", s.List(ctx, "", func(store.Info) error { return nil }), context.Canceled)
	_, err = s.Create(ctx, "new", strings.NewReader("x"), 1, store.Options{})
	wantErr(t, "Create", err, context.Canceled)
	_, err = s.Replace(ctx, "there", []byte("x"), made.ETag, store.Options{})
	wantErr(t, "Replace", err, context.Canceled)
	wantErr(t, "Delete", s.Delete(ctx, "there"), context.Canceled)
	wantErr(t, "Probe", s.Probe(ctx), context.Canceled)
	wantNothing(t, s, "new")
	if got, _ := read(t, s, "there", 0); got != "body" {
		t.Errorf("now %q", got)
	}
	// In the middle of an upload, with parts already sent.
	for _, size := range []int64{20 << 20, -1} {
		ctx, cancel = context.WithCancel(t.Context())
		_, err = s.Create(ctx, "new", io.MultiReader(zeros(16<<20), callReader(cancel), zeros(4<<20)), size, store.Options{})
		wantErr(t, "Create", err, context.Canceled)
		wantNothing(t, s, "new")
	}
}

// callReader calls f, and is empty.
type callReader func()

func (f callReader) Read([]byte) (int, error) {
	f()
	return 0, io.EOF
}

func testDelete(t *testing.T, s store.Store) {
	mustCreate(t, s, "d/e/f", "x")
	mustCreate(t, s, "d/g", "y")
	for range 2 {
		if err := s.Delete(t.Context(), "d/e/f"); err != nil {
			t.Fatal(err)
		}
	}
	wantNothing(t, s, "d/e/f")
	if err := s.Delete(t.Context(), "d"); err != nil { // a directory is no object
		t.Error(err)
	}
	if got := list(t, s, ""); !slices.Equal(got, []string{"d/g"}) {
		t.Errorf("List = %q", got)
	}
	if err := s.Delete(t.Context(), "d/g"); err != nil {
		t.Fatal(err)
	}
	mustCreate(t, s, "d", "an object now") // no directory is in the way
	if err := s.Delete(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
}

// testLarge is beyond one part of a multipart upload; 25 MiB and a bit, known
// and unknown in size.
func testLarge(t *testing.T, s store.Store) {
	const size = 25<<20 + 12345
	content := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{1}), size) }
	h := sha256.New()
	io.Copy(h, content())
	want := hex.EncodeToString(h.Sum(nil))
	for name, n := range map[string]int64{"large/known": size, "large/unknown": -1} {
		made, err := s.Create(t.Context(), name, content(), n, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		stat, err := s.Stat(t.Context(), name)
		if err != nil || made.Size != size || stat.Size != size || stat.ETag != made.ETag {
			t.Errorf("%s: Create = %+v, Stat = %+v, %v", name, made, stat, err)
		}
		for _, offset := range []int64{0, 7 << 20} {
			rc, _, err := s.Open(t.Context(), name, offset)
			if err != nil {
				t.Fatal(err)
			}
			h := sha256.New()
			io.CopyN(h, content(), offset)
			_, err = io.Copy(h, rc)
			rc.Close()
			if got := hex.EncodeToString(h.Sum(nil)); err != nil || got != want {
				t.Errorf("%s from %d: sha256 %s, want %s, %v", name, offset, got, want, err)
			}
		}
		_, err = s.Create(t.Context(), name, content(), n, store.Options{})
		wantErr(t, "second Create", err, store.ErrConflict)
	}
	// All begin before one is there, so that none is refused beforehand.
	var begun sync.WaitGroup
	begun.Add(2)
	won := race(t, 2, func(int) error {
		meet := sync.OnceFunc(func() { begun.Done(); begun.Wait() })
		_, err := s.Create(t.Context(), "large/race", io.MultiReader(callReader(meet), zeros(11<<20)), 11<<20, store.Options{})
		return err
	})
	if won != 1 {
		t.Errorf("%d writers of one large object have won", won)
	}
}

// testMemory: what lives on the heap in the middle of an upload does not
// depend on the size of the object.
func testMemory(t *testing.T, s store.Store) {
	const size, step, most = 64 << 20, 16 << 20, 24 << 20
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for name, n := range map[string]int64{"known": size, "unknown": -1} {
		before := heap()
		var readers []io.Reader
		for range size / step {
			readers = append(readers, zeros(step), callReader(func() {
				if grown := heap() - before; grown > most {
					t.Errorf("%s: the heap has grown by %d MiB", name, grown>>20)
				}
			}))
		}
		if _, err := s.Create(t.Context(), name, io.MultiReader(readers...), n, store.Options{}); err != nil {
			t.Fatal(err)
		}
	}
}

func testStage(t *testing.T, s store.Store) {
	const large = 11 << 20
	for name, c := range map[string]struct{ length, size int64 }{
		"targets/ä b/empty": {0, 0}, "targets/ä b/small": {5, 5}, "targets/ä b/small-unknown": {5, -1},
		"targets/ä b/large": {large, large}, "targets/ä b/large-unknown": {large, -1},
	} {
		for round := range 2 { // the second one meets a taken name
			st, err := s.Stage(t.Context(), zeros(c.length), c.size, jsonOpt)
			if err != nil {
				t.Fatal(err)
			}
			if round == 0 {
				wantNothing(t, s, name)
			}
			info, err := st.Commit(t.Context(), name)
			if round == 0 && (err != nil || info.Size != c.length || info.Name != name) {
				t.Fatalf("Commit(%s) = %+v, %v", name, info, err)
			}
			if round == 1 {
				wantErr(t, "second Commit", err, store.ErrConflict)
			}
			if err := st.Discard(t.Context()); err != nil {
				t.Error(err)
			}
			got, now := read(t, s, name, 0)
			if int64(len(got)) != c.length || strings.Trim(got, "\x00") != "" || now.Size != c.length {
				t.Errorf("%s has %d bytes, %+v", name, len(got), now)
			}
		}
		if err := s.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		st, err := s.Stage(t.Context(), zeros(c.length), c.size, jsonOpt)
		if err != nil {
			t.Fatal(err)
		}
		_, err = st.Commit(t.Context(), "../"+name)
		wantErr(t, "Commit", err, layout.ErrBadName)
		if err := st.Discard(t.Context()); err != nil {
			t.Error(err)
		}
	}
	broken := errors.New("cannot read the patch")
	for _, n := range []int64{1, large} {
		_, err := s.Stage(t.Context(), io.MultiReader(zeros(n), iotest.ErrReader(broken)), n+1, jsonOpt)
		wantErr(t, "Stage", err, broken)
		_, err = s.Stage(t.Context(), zeros(n), n+1, jsonOpt)
		wantErr(t, "Stage", err, io.ErrUnexpectedEOF)
	}
	if got := list(t, s, ""); len(got) != 0 {
		t.Errorf("Stage leaves %q", got)
	}
}

func testProbe(t *testing.T, s store.Store) {
	for range 2 {
		if err := s.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := list(t, s, ""); len(got) != 0 {
		t.Errorf("Probe leaves %q", got)
	}
}

func testString(t *testing.T, s store.Store) {
	if s.String() == "" {
		t.Error("String is empty")
	}
}
