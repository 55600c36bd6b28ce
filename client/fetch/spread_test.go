package fetch_test

import (
	"bytes"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/tuf"
)

// patient is patience for tests on a busy machine in which little has to be
// waited for.
var patient = fetch.Options{
	Stall: 3 * time.Second, RateWindow: 2 * time.Second, MinRate: 20 << 10,
	Attempts: 2, BackoffMin: time.Millisecond, BackoffMax: 4 * time.Millisecond,
}

// spreadRequest is one whose blocks are taken from all of urls at once.
func spreadRequest(t *testing.T, o object, urls ...string) fetch.Request {
	r := request(t, o, urls...)
	r.Blocks, r.Peers = o.blocks, len(urls)
	if len(urls) == 1 {
		r.Bases = []fetch.Base{{Path: "/nonexistent"}}
	}
	return r
}

// Each fault, alone and beside a good mirror: never a wrong file, and the good
// one is enough.
func TestFaultsOfPeers(t *testing.T) {
	o := newObject(9*mib + 123)
	for name, c := range faults(o) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := spreadRequest(t, o, newMirror(t, c.mirror).url)
			_, err := fetch.New(patient).File(t.Context(), r)
			switch {
			case err == nil: // also from one that goes on after the last byte
				if c.err != nil && name != "endless" {
					t.Errorf("no error, want %v", c.err)
				}
				want(t, r, o)
			case c.err == nil || !errors.Is(err, c.err):
				t.Errorf("error %v, want %v", err, c.err)
			default:
				if _, err := os.Stat(r.Dest); !errors.Is(err, fs.ErrNotExist) {
					t.Error("there is a file although the download failed")
				}
			}
			for i := range 2 {
				urls := []string{newMirror(t, c.mirror).url, newMirror(t, c.mirror).url, newMirror(t, c.mirror).url}
				urls[2*i] = newMirror(t, good(o)).url
				r := spreadRequest(t, o, urls...)
				if _, err := fetch.New(patient).File(t.Context(), r); err != nil {
					t.Fatal(err)
				}
				want(t, r, o)
			}
		})
	}
}

// paced serves at a rate.
func paced(o object, perSecond int, sent *atomic.Int64) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		good(o)(&slow{w, time.Now(), perSecond, 0, sent}, r)
	}
}

type slow struct {
	http.ResponseWriter
	start     time.Time
	perSecond int
	n         int
	sent      *atomic.Int64
}

func (s *slow) Write(p []byte) (int, error) {
	for i := 0; i < len(p); i += 16 << 10 {
		piece := p[i:min(len(p), i+16<<10)]
		if _, err := s.ResponseWriter.Write(piece); err != nil {
			return i, err
		}
		s.n += len(piece)
		s.sent.Add(int64(len(piece)))
		time.Sleep(time.Until(s.start.Add(time.Duration(s.n) * time.Second / time.Duration(s.perSecond))))
	}
	return len(p), nil
}

// The faster mirror brings more, and who is not needed is not asked.
func TestFasterPeerBringsMore(t *testing.T) {
	o := newObject(24 * mib)
	var slow, fast, origin atomic.Int64
	r := spreadRequest(t, o,
		newMirror(t, paced(o, 4*mib, &slow)).url,
		newMirror(t, paced(o, 32*mib, &fast)).url,
		newMirror(t, paced(o, 64*mib, &origin)).url)
	r.Peers = 2
	opt := patient
	opt.Stall = 10 * time.Second
	var last int64
	r.Progress = func(done, total int64) {
		if done < last || done > total {
			t.Errorf("progress %d after %d of %d", done, last, total)
		}
		last = done
	}
	res, err := fetch.New(opt).File(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	want(t, r, o)
	if fast.Load() < 2*slow.Load() || slow.Load() == 0 || origin.Load() != 0 {
		t.Errorf("slow %d, fast %d, origin %d bytes", slow.Load(), fast.Load(), origin.Load())
	}
	if len(res.Sources) != 3 || !res.Sources[0].Gave || !res.Sources[1].Gave || res.Sources[2].Gave || res.Bytes > 28*mib {
		t.Errorf("%+v", res)
	}
	if last != r.Length {
		t.Errorf("the last progress was %d", last)
	}
}

// A peer that falls silent holds nothing up: what it was to bring is fetched
// elsewhere long before it counts as stalled.
func TestSilentPeerHoldsNothingUp(t *testing.T) {
	o := newObject(12 * mib)
	opt := patient
	opt.Stall = time.Hour
	opt.RateWindow = time.Hour
	quiet := newMirror(t, func(w http.ResponseWriter, r *http.Request) {
		good(o)(&limitedSilent{w, r, mib + mib/2}, r)
	})
	r := spreadRequest(t, o, quiet.url, newMirror(t, good(o)).url)
	if _, err := fetch.New(opt).File(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	want(t, r, o)
}

// limitedSilent sends so much and then nothing.
type limitedSilent struct {
	http.ResponseWriter
	r    *http.Request
	left int
}

func (l *limitedSilent) Write(p []byte) (int, error) {
	if len(p) < l.left {
		l.left -= len(p)
		return l.ResponseWriter.Write(p)
	}
	l.ResponseWriter.Write(p[:l.left])
	http.NewResponseController(l.ResponseWriter).Flush()
	<-l.r.Context().Done()
	return 0, l.r.Context().Err()
}

func TestBadBlockIsBlamedOnItsPeer(t *testing.T) {
	o := newObject(16 * mib)
	bad, fine := newMirror(t, flipped(o, 1)), newMirror(t, good(o))
	bad2 := newObjectOf(bytes.Repeat([]byte{7}, 16*mib))
	worse := newMirror(t, good(bad2))
	r := spreadRequest(t, o, bad.url, worse.url, fine.url)
	res, err := fetch.New(patient).File(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	want(t, r, o)
	for i, s := range res.Sources {
		if blamed := errors.Is(s.Err, fetch.ErrCorrupt); blamed != (i == 1) && i > 0 {
			t.Errorf("%d: %+v", i, s)
		}
	}
	if n := len(worse.seen()); n != 1 {
		t.Errorf("a mirror that sent a wrong block was asked %d times", n)
	}
	// The one after the peers is asked when none of them is left.
	r = spreadRequest(t, o, worse.url, worse.url, fine.url)
	r.Peers = 2
	if _, err := fetch.New(patient).File(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	want(t, r, o)
}

// A cut at every turn of a mirror that has no company.
func TestPeerThatIsCutAgainAndAgain(t *testing.T) {
	o := newObject(9 * mib)
	r := spreadRequest(t, o, newMirror(t, cutAfter(o, 300<<10)).url, newMirror(t, cutAfter(o, 500<<10)).url)
	if _, err := fetch.New(patient).File(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	want(t, r, o)
}

// What came from several mirrors is gone on with, whoever is left, also by one
// at a time and without the block list.
func TestResumeOfSpread(t *testing.T) {
	o := newObject(20 * mib)
	for _, c := range []struct {
		name   string
		change func(*fetch.Request)
		twice  int64 // bytes fetched again
	}{
		{"peers", func(*fetch.Request) {}, 0},
		{"one mirror", func(r *fetch.Request) { r.Peers, r.URLs = 1, r.URLs[:1] }, 0},
		{"note lost", func(r *fetch.Request) { os.Remove(r.Dest + ".part.json") }, 0},
		{"no block list", func(r *fetch.Request) { r.Blocks = nil }, 20 * mib},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := spreadRequest(t, o, newMirror(t, diesAfter(o, 5*mib+99)).url, newMirror(t, diesAfter(o, 4*mib+99)).url)
			first, err := fetch.New(patient).File(t.Context(), r)
			if !errors.Is(err, tuf.ErrOffline) {
				t.Fatalf("%v: %+v", err, first)
			}
			wantFiles(t, r, "file.part", "file.part.json")
			fine := newMirror(t, good(o)).url
			r.URLs = []string{fine, newMirror(t, good(o)).url}
			c.change(&r)
			res, err := fetch.New(patient).File(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			want(t, r, o)
			if first.Bytes == 0 || first.Bytes+res.Bytes > r.Length+2*mib+c.twice {
				t.Errorf("first %+v, then %+v", first, res)
			}
		})
	}
}

// diesAfter serves n bytes in all, and nothing afterwards.
func diesAfter(o object, n int) http.HandlerFunc {
	var mu sync.Mutex
	left := n
	return func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if left == 0 {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		l := &limited{w, left}
		left = 0
		good(o)(l, r)
		left = l.left
	}
}

// Whatever a base is, the file is right; where it shares blocks they are not
// fetched.
func TestBases(t *testing.T) {
	o := newObject(12*mib + 345)
	changed := bytes.Clone(o.data)
	changed[5*mib+1] ^= 1
	moved := append(bytes.Clone(o.data[6*mib:]), o.data[:3*mib]...) // the first 3 MiB are no longer aligned
	write := func(t *testing.T, data []byte) string {
		name := filepath.Join(t.TempDir(), "base")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for _, c := range []struct {
		name   string
		base   func(t *testing.T) string
		copied int64
	}{
		{"same", func(t *testing.T) string { return write(t, o.data) }, 12*mib + 345},
		{"a block changed", func(t *testing.T) string { return write(t, changed) }, 11*mib + 345},
		{"moved by blocks", func(t *testing.T) string { return write(t, append(make([]byte, 2*mib), o.data[:9*mib]...)) }, 9 * mib},
		{"moved", func(t *testing.T) string { return write(t, moved) }, 6 * mib},
		{"shorter", func(t *testing.T) string { return write(t, o.data[:4*mib+9]) }, 4 * mib},
		{"much longer", func(t *testing.T) string {
			name := write(t, o.data[:mib])
			if err := os.Truncate(name, 1<<40); err != nil {
				t.Fatal(err)
			}
			return name
		}, mib},
		{"empty", func(t *testing.T) string { return write(t, nil) }, 0},
		{"absent", func(*testing.T) string { return "/nonexistent" }, 0},
		{"directory", func(t *testing.T) string { return t.TempDir() }, 0},
		{"device", func(*testing.T) string { return "/dev/zero" }, 0},
		{"link", func(t *testing.T) string {
			name := filepath.Join(t.TempDir(), "link")
			if err := os.Symlink(write(t, o.data), name); err != nil {
				t.Skip(err)
			}
			return name
		}, 0},
		{"pipe", func(t *testing.T) string { return pipe(t) }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := request(t, o, newMirror(t, good(o)).url)
			r.Blocks = o.blocks
			r.Bases = []fetch.Base{{Path: c.base(t), SHA256: strings.Repeat("a", 64)}}
			res, err := fetch.New(patient).File(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			want(t, r, o)
			if res.Copied != c.copied || res.Bytes != r.Length-c.copied {
				t.Errorf("%+v", res)
			}
		})
	}
}

// Without a block list a base serves if it is the file, and harms nothing if it
// only says so.
func TestWholeBase(t *testing.T) {
	o := newObject(3*mib + 5)
	for i, data := range [][]byte{o.data, o.data[1:], append(bytes.Clone(o.data), 1), bytes.Repeat([]byte{1}, len(o.data))} {
		base := filepath.Join(t.TempDir(), "base")
		if err := os.WriteFile(base, data, 0o600); err != nil {
			t.Fatal(err)
		}
		m := newMirror(t, good(o))
		r := request(t, o, m.url)
		r.Bases = []fetch.Base{{Path: base, SHA256: o.hashes["sha256"]}}
		res, err := fetch.New(patient).File(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		want(t, r, o)
		if copied := res.Copied > 0; copied != (i == 0) || len(m.seen()) == 0 != copied {
			t.Errorf("%d: %+v", i, res)
		}
	}
}
