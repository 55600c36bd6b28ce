package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/tuf"
)

const mib = 1 << 20

// fault is what a mirror may do, and how a download from it alone ends.
type fault struct {
	mirror http.HandlerFunc
	err    error // nil: well
}

func faults(o object) map[string]fault {
	moved := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) }
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", code) }
	}
	short, long := o, o
	short.data, long.data = o.data[:len(o.data)-1], append(bytes.Clone(o.data), 'x')
	return map[string]fault{
		"good":               {good(o), nil},
		"cut":                {cutAfter(o, mib+77), nil},
		"flipped bit":        {flipped(o, 3*mib+5), fetch.ErrCorrupt},
		"html":               {body("text/html", []byte("<html>sign in</html>")), fetch.ErrCaptivePortal},
		"html of its length": {body("text/html", bytes.Repeat([]byte("<"), len(o.data))), fetch.ErrCaptivePortal},
		"empty":              {body("", nil), fetch.ErrCorrupt},
		"one byte short":     {good(short), fetch.ErrCorrupt},
		"one byte long":      {good(long), fetch.ErrCorrupt},
		"endless":            {endless(o), fetch.ErrCorrupt},
		"silent":             {silent(o, 2*mib), tuf.ErrOffline},
		"silent from start":  {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, tuf.ErrOffline},
		"drip":               {drip(o), tuf.ErrOffline},
		"absent":             {status(404), fs.ErrNotExist},
		"forbidden":          {status(403), fs.ErrNotExist},
		"broken":             {status(503), tuf.ErrOffline},
		"redirects for ever": {moved("/object"), tuf.ErrOffline},
		"redirect to file":   {moved("file:///etc/passwd"), tuf.ErrOffline},
		"compressed": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			good(o)(w, r)
		}, fetch.ErrCorrupt},
		"part unasked": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(o.data)-1, len(o.data)))
			w.WriteHeader(206)
			w.Write(o.data)
		}, fetch.ErrCorrupt},
		"range of elsewhere":   {lyingRange(o, func(from int) string { return fmt.Sprintf("bytes %d-%d/%d", from-1, len(o.data)-2, len(o.data)) }), fetch.ErrCorrupt},
		"range of other total": {lyingRange(o, func(from int) string { return fmt.Sprintf("bytes %d-%d/%d", from, len(o.data)-1, len(o.data)+9) }), fetch.ErrCorrupt},
		"range without total":  {lyingRange(o, func(from int) string { return fmt.Sprintf("bytes %d-%d/*", from, len(o.data)-1) }), fetch.ErrCorrupt},
		"range is rubbish":     {lyingRange(o, func(int) string { return "bytes ever-onwards" }), fetch.ErrCorrupt},
		"range not satisfiable": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			cutAfter(o, 2*mib+9)(w, r)
		}, fetch.ErrCorrupt},
	}
}

// Each fault alone, with block list and without: never a wrong file.
func TestFaults(t *testing.T) {
	o := newObject(5*mib + 123)
	for name, c := range faults(o) {
		for _, blocks := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/blocks=%t", name, blocks), func(t *testing.T) {
				t.Parallel()
				bad := newMirror(t, c.mirror)
				r := request(t, o, bad.url)
				if blocks {
					r.Blocks = o.blocks
				}
				_, err := fetch.New(quick).File(t.Context(), r)
				if c.err == nil {
					if err != nil {
						t.Fatal(err)
					}
					want(t, r, o)
				} else {
					if !errors.Is(err, c.err) {
						t.Fatalf("error %v, want %v", err, c.err)
					}
					if _, err := os.Stat(r.Dest); !errors.Is(err, fs.ErrNotExist) {
						t.Fatal("there is a file although the download failed")
					}
				}
				if errors.Is(err, fetch.ErrCorrupt) && !errors.Is(err, tuf.ErrNotTrusted) {
					t.Error("ErrCorrupt must be tuf.ErrNotTrusted")
				}

				// With a good mirror behind the bad one it always ends well, also
				// on top of what the bad one left.
				r.URLs = append(r.URLs, newMirror(t, good(o)).url)
				if _, err := fetch.New(quick).File(t.Context(), r); err != nil {
					t.Fatal(err)
				}
				want(t, r, o)
			})
		}
	}
}

func TestBadMirrorIsLeftAfterOneBlock(t *testing.T) {
	o := newObject(8 * mib)
	bad, fine := newMirror(t, flipped(o, mib+1)), newMirror(t, good(o))
	r := request(t, o, bad.url, fine.url)
	r.Blocks = o.blocks
	res, err := fetch.New(patient).File(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	want(t, r, o)
	if got := fine.seen(); len(got) != 1 || got[0] != "bytes=1048576-" {
		t.Errorf("the good mirror was asked for %q: only the bad block and what follows is wanted", got)
	}
	if len(bad.seen()) != 1 {
		t.Errorf("the bad mirror was asked %d times", len(bad.seen()))
	}
	if len(res.From()) != 2 || res.Bytes > 9*mib {
		t.Errorf("result %+v", res)
	}
}

// On a fast line not each block is verified as it comes; the bad ones are found
// all the same, only they are fetched again, and nothing of them from who sent
// them.
func TestBadBlocksOnAFastLine(t *testing.T) {
	const size = 160 * mib
	o := newObject(size)
	wrong := object{data: bytes.Clone(o.data), hashes: o.hashes}
	for i := 100 * mib; i < size; i += 10*mib + 17 {
		wrong.data[i] ^= 0x40
	}
	bad, fine := newMirror(t, good(wrong)), newMirror(t, good(o))
	r := request(t, o, bad.url, fine.url)
	r.Blocks = o.blocks
	res, err := fetch.New(patient).File(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	want(t, r, o)
	if len(bad.seen()) != 1 || res.Bytes > size+10*mib {
		t.Errorf("the bad mirror was asked %d times, %d bytes came", len(bad.seen()), res.Bytes)
	}

	r = request(t, o, bad.url)
	r.Blocks = o.blocks
	if _, err := fetch.New(patient).File(t.Context(), r); !errors.Is(err, fetch.ErrCorrupt) {
		t.Errorf("error %v", err)
	}
	wantFiles(t, r, "file.part", "file.part.json")
	r.URLs = []string{fine.url}
	if res, err = fetch.New(patient).File(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	want(t, r, o)
	if res.Bytes > 70*mib {
		t.Errorf("%d bytes came again", res.Bytes)
	}
}

// A server that knows no ranges: what is verified is kept, the rest begins again.
func TestServerWithoutRanges(t *testing.T) {
	o := newObject(5*mib + 7)
	for _, blocks := range []bool{false, true} {
		var cut atomic.Bool
		m := newMirror(t, func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			if cut.CompareAndSwap(false, true) {
				cutAfter(o, 2*mib+9)(w, r)
				return
			}
			good(o)(w, r)
		})
		r := request(t, o, m.url)
		if blocks {
			r.Blocks = o.blocks
		}
		if _, err := fetch.New(patient).File(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		want(t, r, o)
	}
}

// A bad mirror that is cut, so that the file is a mixture, is found out without
// a block list too.
func TestMixtureIsTakenApart(t *testing.T) {
	o := newObject(6 * mib)
	var cut bool
	badFirst := flipped(o, 5)
	bad := newMirror(t, func(w http.ResponseWriter, r *http.Request) {
		if !cut {
			cut = true
			badFirst(&limited{w, 2 * mib}, r)
			return
		}
		badFirst(w, r)
	})
	fine := newMirror(t, good(o))
	r := request(t, o, bad.url, fine.url)
	if _, err := fetch.New(patient).File(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	want(t, r, o)
}

func TestResume(t *testing.T) {
	o := newObject(6*mib + 1)
	for _, blocks := range []bool{false, true} {
		t.Run(fmt.Sprint("blocks=", blocks), func(t *testing.T) {
			r := request(t, o, newMirror(t, cutAndDie(o, 4*mib+99)).url)
			if blocks {
				r.Blocks = o.blocks
			}
			if _, err := fetch.New(patient).File(t.Context(), r); !errors.Is(err, tuf.ErrOffline) {
				t.Fatal(err)
			}
			wantFiles(t, r, "file.part", "file.part.json")

			fine := newMirror(t, good(o))
			r.URLs = []string{fine.url}
			res, err := fetch.New(patient).File(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			want(t, r, o)
			if res.Resumed != 4*mib || res.Bytes != 2*mib+1 || fine.seen()[0] != fmt.Sprintf("bytes=%d-", 4*mib) {
				t.Errorf("%+v, asked for %q", res, fine.seen())
			}
		})
	}
}

// cutAndDie serves up to an offset once, and nothing afterwards.
func cutAndDie(o object, n int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if rangeOf(r) > 0 {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		cutAfter(o, n)(w, r)
	}
}

// Whatever lies on the disk from before, the file is right at the end.
func TestDamagedPartialFile(t *testing.T) {
	o := newObject(6*mib + 1)
	edit := func(name string, change func([]byte) []byte) func(string) error {
		return func(dest string) error {
			data, err := os.ReadFile(dest + name)
			if err != nil {
				return err
			}
			return os.WriteFile(dest+name, change(data), 0o600)
		}
	}
	replace := func(old, new string) func([]byte) []byte {
		return func(b []byte) []byte { return bytes.Replace(b, []byte(old), []byte(new), 1) }
	}
	for name, damage := range map[string]func(dest string) error{
		"bit in the synced part": edit(".part", func(b []byte) []byte { b[2*mib+3] ^= 1; return b }),
		"zeros at the end":       edit(".part", func(b []byte) []byte { clear(b[3*mib:]); return b }),
		"shorter":                edit(".part", func(b []byte) []byte { return b[:2*mib] }),
		"longer":                 edit(".part", func(b []byte) []byte { return append(b, make([]byte, 9*mib)...) }),
		"gone":                   func(dest string) error { return os.Remove(dest + ".part") },
		"no progress":            func(dest string) error { return os.Remove(dest + ".part.json") },
		"empty progress":         edit(".part.json", func([]byte) []byte { return nil }),
		"torn progress":          edit(".part.json", func(b []byte) []byte { return b[:len(b)/2] }),
		"progress of more":       edit(".part.json", replace(`"verified":4194304`, `"verified":5242880`)),
		"progress of less":       edit(".part.json", replace(`"verified":4194304`, `"verified":1048576`)),
		"negative progress":      edit(".part.json", replace(`"verified":4194304`, `"verified":-1048576`)),
		"progress of another":    edit(".part.json", replace(`"sha256":"`, `"sha256":"00`)),
		"other format":           edit(".part.json", replace(`"format":2`, `"format":3`)),
		"other state":            edit(".part.json", replace(`"states":{"sha256":"`, `"states":{"sha256":"AAAA`)),
	} {
		for _, blocks := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/blocks=%t", name, blocks), func(t *testing.T) {
				t.Parallel()
				r := request(t, o, newMirror(t, cutAndDie(o, 4*mib+99)).url)
				if blocks {
					r.Blocks = o.blocks
				}
				if _, err := fetch.New(patient).File(t.Context(), r); err == nil {
					t.Fatal("the mirror was cut")
				}
				if err := damage(r.Dest); err != nil {
					t.Fatal(err)
				}
				r.URLs = []string{newMirror(t, good(o)).url}
				if _, err := fetch.New(patient).File(t.Context(), r); err != nil {
					t.Fatal(err)
				}
				want(t, r, o)
			})
		}
	}
}

// Bytes that were written and never noted are used if the block list says so.
func TestUnnotedBlocksAreUsed(t *testing.T) {
	o := newObject(6 * mib)
	fine := newMirror(t, good(o))
	r := request(t, o, fine.url)
	r.Blocks = o.blocks
	if err := os.WriteFile(r.Dest+".part", o.data[:4*mib+5], 0o600); err != nil {
		t.Fatal(err)
	}
	res, err := fetch.New(patient).File(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	want(t, r, o)
	if res.Resumed != 4*mib || res.Bytes != 2*mib {
		t.Errorf("%+v", res)
	}
}

func TestWrongBlockListIsNotBelieved(t *testing.T) {
	o := newObject(6 * mib)
	data := bytes.Clone(o.data)
	data[0] ^= 1
	sum := newObjectOf(data)
	r := request(t, o, newMirror(t, good(sum)).url)
	r.Blocks = sum.blocks // fits what the mirror sends, not the signed hash
	if _, err := fetch.New(quick).File(t.Context(), r); !errors.Is(err, fetch.ErrCorrupt) {
		t.Fatalf("error %v", err)
	}
	wantFiles(t, r)
	r.Blocks = sum.blocks[32:]
	if _, err := fetch.New(quick).File(t.Context(), r); !errors.Is(err, fetch.ErrCorrupt) {
		t.Fatalf("error %v", err)
	}
}

func TestReuse(t *testing.T) {
	o := newObject(3000)
	m := newMirror(t, good(o))
	r := request(t, o, m.url)
	for i, content := range [][]byte{o.data, bytes.Repeat([]byte{1}, 3000), []byte("short")} {
		if err := os.WriteFile(r.Dest, content, 0o600); err != nil {
			t.Fatal(err)
		}
		res, err := fetch.New(patient).File(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		want(t, r, o)
		if res.Reused != (i == 0) || len(m.seen()) != i {
			t.Errorf("%d: %+v after %d requests", i, res, len(m.seen()))
		}
	}
}

func TestSmallFilesAndHashes(t *testing.T) {
	for _, n := range []int{0, 1, mib - 1, mib, mib + 1} {
		o := newObject(n)
		r := request(t, o, newMirror(t, good(o)).url)
		if _, err := fetch.New(quick).File(t.Context(), r); err != nil {
			t.Fatal(n, err)
		}
		want(t, r, o)
	}
	o := newObject(10)
	for name, hashes := range map[string]map[string]string{
		"none": {}, "unknown": {"md5": "00"}, "known and unknown": {"sha256": o.hashes["sha256"], "md5": "00"},
		"not hex": {"sha256": strings.Repeat("z", 64)}, "short": {"sha256": "00"},
		"one of two wrong": {"sha256": o.hashes["sha256"], "sha512": strings.Repeat("0", 128)},
	} {
		r := request(t, o, newMirror(t, good(o)).url)
		r.Hashes = hashes
		if _, err := fetch.New(quick).File(t.Context(), r); !errors.Is(err, fetch.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNoSpace(t *testing.T) {
	o := newObject(10)
	r := request(t, o, newMirror(t, good(o)).url)
	r.Length = 1 << 60
	if _, err := fetch.New(quick).File(t.Context(), r); !errors.Is(err, fetch.ErrNoSpace) {
		t.Fatalf("error %v", err)
	}
	wantFiles(t, r)
}

func TestOneDownloadAtATime(t *testing.T) {
	o := newObject(2 * mib)
	started := make(chan struct{}, 8)
	slow := newMirror(t, func(w http.ResponseWriter, r *http.Request) {
		started <- struct{}{}
		silent(o, 10)(w, r)
	})
	r := request(t, o, slow.url)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	opt := quick
	opt.Stall = time.Minute
	go func() {
		_, err := fetch.New(opt).File(ctx, r)
		done <- err
	}()
	<-started
	if _, err := fetch.New(quick).File(t.Context(), r); !errors.Is(err, fetch.ErrBusy) || !errors.Is(err, tuf.ErrLocked) {
		t.Errorf("error %v", err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestLinksAreNotFollowed(t *testing.T) {
	o := newObject(10)
	r := request(t, o, newMirror(t, good(o)).url)
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, r.Dest+".part"); err != nil {
		t.Fatal(err)
	}
	if _, err := fetch.New(quick).File(t.Context(), r); err == nil {
		t.Error("a link planted as the partial file was followed")
	}
	if got, _ := os.ReadFile(victim); string(got) != "precious" {
		t.Error("the file it points to was written to")
	}
}

func TestRetryAfter(t *testing.T) {
	o := newObject(10)
	busy := true
	m := newMirror(t, func(w http.ResponseWriter, r *http.Request) {
		if busy {
			busy = false
			w.Header().Set("Retry-After", "1")
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		good(o)(w, r)
	})
	r := request(t, o, m.url)
	start := time.Now()
	if _, err := fetch.New(quick).File(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < time.Second {
		t.Errorf("asked again after %s instead of a second", d)
	}
	// Who asks for too much patience is given up at once.
	tomorrow := newMirror(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "86400")
		http.Error(w, "closed", http.StatusServiceUnavailable)
	})
	r = request(t, o, tomorrow.url)
	if _, err := fetch.New(quick).File(t.Context(), r); !errors.Is(err, tuf.ErrOffline) || len(tomorrow.seen()) != 1 {
		t.Errorf("error %v after %d requests", err, len(tomorrow.seen()))
	}
}

func TestLimiterAndProgress(t *testing.T) {
	o := newObject(300 << 10)
	opt := quick
	opt.Limiter = rate.NewLimiter(1<<20, 32<<10)
	opt.Stall, opt.RateWindow, opt.MinRate = 50*time.Millisecond, 50*time.Millisecond, 2<<20 // the limiter's waits are not the mirror's fault
	r := request(t, o, newMirror(t, good(o)).url)
	var last, calls int64
	r.Progress = func(done, total int64) {
		if done < last || total != r.Length {
			t.Errorf("progress %d after %d of %d", done, last, total)
		}
		last = done
		calls++
	}
	start := time.Now()
	if _, err := fetch.New(opt).File(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	want(t, r, o)
	if d := time.Since(start); d < 200*time.Millisecond {
		t.Errorf("300 KiB at 1 MiB/s took %s", d)
	}
	if last != r.Length || calls > 20 {
		t.Errorf("%d calls, the last one says %d", calls, last)
	}
}

func TestErrorsTellNoSecrets(t *testing.T) {
	o := newObject(10)
	r := request(t, o, strings.Replace(newMirror(t, flipped(o, 1)).url, "http://", "http://user:hush@", 1)+"?token=hush", "http://user:hush@127.0.0.1:1/x?token=hush")
	_, err := fetch.New(quick).File(t.Context(), r)
	if err == nil || strings.Contains(err.Error(), "hush") || !strings.Contains(err.Error(), "127.0.0.1:1/x") {
		t.Errorf("error %v", err)
	}
}
