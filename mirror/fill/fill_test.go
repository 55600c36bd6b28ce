package fill

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/patchkeep/patchkeep/mirror/cache"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// fake is a source of some objects. hold is asked before each of their reads.
type fake struct {
	name    string
	objects map[string][]byte
	hold    func(object string)
	err     error
	opens   atomic.Int64

	mu    sync.Mutex
	order []string // objects as they were asked for; guarded by mu
}

func (s *fake) String() string { return s.name }

func (s *fake) OpenTarget(_ context.Context, object string, offset int64) (io.ReadCloser, int64, error) {
	s.opens.Add(1)
	s.mu.Lock()
	s.order = append(s.order, object)
	s.mu.Unlock()
	if s.err != nil {
		return nil, 0, s.err
	}
	data, ok := s.objects[object]
	if !ok {
		return nil, 0, fs.ErrNotExist
	}
	r := io.Reader(bytes.NewReader(data[offset:]))
	if s.hold != nil {
		r = &held{r, func() { s.hold(object) }}
	}
	return io.NopCloser(r), int64(len(data)), nil
}

func (s *fake) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.order...)
}

type held struct {
	r    io.Reader
	hold func()
}

func (h *held) Read(p []byte) (int, error) { h.hold(); return h.r.Read(p) }

// add gives the source an object of n bytes, of which no two are the same.
func (s *fake) add(name string, n int) Object {
	data := bytes.Repeat([]byte(name+"\n"), n/len(name)+1)[:n]
	if s.objects == nil {
		s.objects = map[string][]byte{}
	}
	s.objects[name] = data
	sum := sha256.Sum256(data)
	return Object{Name: name, Length: int64(n), SHA256: hex.EncodeToString(sum[:])}
}

func newFiller(t *testing.T, cfg Config) *Filler {
	t.Helper()
	c, err := cache.Open(context.Background(), cache.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Cache = c
	f := New(context.Background(), cfg)
	t.Cleanup(func() {
		f.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func read(t *testing.T, f *Filler, obj Object) ([]byte, error) {
	t.Helper()
	r, err := f.Open(t.Context(), obj, Request{})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// TestWhoseTurnItIs: with one transfer at a time a client's object comes before
// the prefills that were asked for earlier, a small one waits for nobody, and a
// prefill that a client comes for is a client's.
func TestWhoseTurnItIs(t *testing.T) {
	src := &fake{name: "up"}
	const large = 2 << 20
	first, second, third := src.add("first", large), src.add("second", large), src.add("third", large)
	wanted, promoted, tiny := src.add("wanted", large), src.add("promoted", large), src.add("tiny", 100)
	gate := make(chan struct{})
	src.hold = func(object string) {
		if object == "first" {
			<-gate
		}
	}
	f := newFiller(t, Config{Sources: []Source{src}, MaxFills: 1, MaxPrefills: 1})
	var wg sync.WaitGroup
	client := func(obj Object) {
		wg.Go(func() {
			if data, err := read(t, f, obj); err != nil || !bytes.Equal(data, src.objects[obj.Name]) {
				t.Errorf("%s: %d bytes, %v", obj.Name, len(data), err)
			}
		})
	}
	queued := func(n int) func() bool { return func() bool { return f.Stats().Queued == n } }
	client(first)
	until(t, "the first transfer", func() bool { return src.opens.Load() == 1 })
	for i, obj := range []Object{second, third, promoted} {
		wg.Go(func() {
			if err := f.Prefill(t.Context(), obj); err != nil {
				t.Error(err)
			}
		})
		if i > 0 {
			until(t, "a queued prefill", queued(i))
		} else {
			until(t, "a prefill begun", func() bool { return f.Stats().Transfer == 2 })
		}
	}
	client(wanted)
	until(t, "a queued client", queued(3))
	client(promoted)
	until(t, "a promoted prefill", func() bool {
		for _, p := range f.InProgress() {
			if p.Object == "promoted" && !p.Prefill {
				return true
			}
		}
		return false
	})
	if data, err := read(t, f, tiny); err != nil || len(data) != 100 {
		t.Errorf("a small object waits behind large ones: %v", err)
	}
	for _, p := range f.InProgress() {
		if p.Object == "second" && p.Bytes > 0 {
			t.Errorf("a prefill did not give way: %d bytes", p.Bytes)
		}
	}
	close(gate)
	wg.Wait()
	got := src.asked()
	at := map[string]int{}
	for i, o := range got {
		at[o] = i
	}
	if at["wanted"] > at["third"] || at["promoted"] > at["third"] || at["tiny"] > at["wanted"] || len(got) != 6 {
		t.Errorf("asked for %v", got)
	}
}

// TestRendezvous: the mirrors of a site agree on who fetches what, share it
// about evenly, and when one of them rests only its objects move.
func TestRendezvous(t *testing.T) {
	names := []string{"http://a:8080", "http://b:8080", "http://c:8080"}
	fillers := map[string]*Filler{}
	for _, self := range names {
		var siblings []Source
		for _, n := range names {
			if n != self {
				siblings = append(siblings, &fake{name: n})
			}
		}
		fillers[self] = newFiller(t, Config{Siblings: siblings, Self: self})
	}
	owner := func(self string, k key) string {
		f := fillers[self]
		f.mu.Lock()
		defer f.mu.Unlock()
		if s := f.owner(k); s != nil {
			return s.String()
		}
		return self
	}
	before, share := map[key]string{}, map[string]int{}
	for i := range 600 {
		sum := sha256.Sum256(fmt.Append(nil, i))
		k := key{hex.EncodeToString(sum[:]), 1}
		before[k] = owner(names[0], k)
		share[before[k]]++
		for _, self := range names[1:] {
			if o := owner(self, k); o != before[k] {
				t.Fatalf("%s says %s, %s says %s", names[0], before[k], self, o)
			}
		}
	}
	for _, n := range names {
		if share[n] < 140 || share[n] > 260 {
			t.Errorf("shares of 600: %v", share)
		}
	}
	gone := names[2]
	for _, self := range names[:2] {
		for _, s := range fillers[self].sources {
			if s.String() == gone {
				s.restUntil = time.Now().Add(time.Hour)
			}
		}
	}
	for k, o := range before {
		a, b := owner(names[0], k), owner(names[1], k)
		if a != b || a == gone || o != gone && a != o {
			t.Fatalf("object of %s went to %s and %s when %s went", o, a, b, gone)
		}
	}
}

// TestBreaker: a source that fails again and again is left alone for longer and
// longer, and asked at once when it answers elsewhere.
func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &fake{name: "up", err: errors.New("no route to host")}
		f := newFiller(t, Config{Sources: []Source{src}, Rest: time.Minute, FailFor: time.Nanosecond, Backoff: time.Microsecond})
		ask := func() int64 {
			before := src.opens.Load()
			for i := range 50 {
				if _, err := read(t, f, src.add(fmt.Sprint("object ", i), 10)); !errors.Is(err, ErrUpstream) {
					t.Fatal(err)
				}
			}
			return src.opens.Load() - before
		}
		if n := ask(); n != breakAfter {
			t.Errorf("asked %d times, want %d", n, breakAfter)
		}
		for _, rest := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute} {
			time.Sleep(rest/2 - time.Second)
			if n := ask(); n != 0 {
				t.Errorf("asked %d times while it rests for %v", n, rest)
			}
			time.Sleep(rest/2 + 2*time.Second)
			if n := ask(); n != 1 {
				t.Errorf("asked %d times after a rest of %v, want one probe", n, rest)
			}
		}
		f.Answered(0)
		src.err = nil
		if data, err := read(t, f, src.add("x", 1000)); err != nil || len(data) != 1000 {
			t.Errorf("after it answered: %v", err)
		}
	})
}

// TestWakeups: however often bytes come, many readers are woken seldom, and
// none of them is forgotten.
func TestWakeups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const readers, steps = 1000, 400
		w := newFlow()
		var wakes, done atomic.Int64
		for range readers {
			go func() {
				var pos int64
				for {
					n, err := w.wait(t.Context(), pos)
					if err == io.EOF {
						break
					}
					pos += n
					wakes.Add(1)
				}
				if pos == steps+1 {
					done.Add(1)
				}
			}()
		}
		synctest.Wait()
		for i := range steps {
			w.publish(int64(i + 1))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(maxWake)
		synctest.Wait()
		if got := wakes.Load() / readers; got < 4 || got > steps/50+3 {
			t.Errorf("each reader was woken %d times for %d pieces", got, steps)
		}
		w.finish(steps + 1)
		synctest.Wait()
		if done.Load() != readers {
			t.Errorf("%d of %d readers have the whole", done.Load(), readers)
		}
	})
}

// TestWrongBlockLists: one whose hashes are of other blocks makes every upstream a
// liar; one that cannot be a block list of the object is not used.
func TestWrongBlockLists(t *testing.T) {
	src := &fake{name: "up"}
	obj := src.add("object", layout.BlockListMin)
	list := src.add("list", int(layout.BlockListLen(obj.Length)))
	obj.Blocks = &list
	// Its hashes are of other blocks, so that each upstream looks like a liar.
	f := newFiller(t, Config{Sources: []Source{src}, Backoff: time.Microsecond})
	if _, err := read(t, f, obj); !errors.Is(err, ErrUpstream) {
		t.Errorf("wrong hashes of blocks: %v", err)
	}
	// Its length is impossible: it is not used.
	list = src.add("short", 32)
	obj.Blocks = &list
	f = newFiller(t, Config{Sources: []Source{src}})
	if data, err := read(t, f, obj); err != nil || int64(len(data)) != obj.Length {
		t.Errorf("block list of a wrong length: %v", err)
	}
}

// lineCounter is a line of which only the bytes are counted.
type lineCounter struct{ n atomic.Int64 }

func (l *lineCounter) WaitN(ctx context.Context, n int) error {
	if n > 256<<10 {
		return fmt.Errorf("%d bytes at once", n)
	}
	l.n.Add(int64(n))
	return ctx.Err()
}

// TestLine: what comes over the line is counted, but for the last read of an
// object, after which nothing has to wait. What comes from a sibling is not.
func TestLine(t *testing.T) {
	up, sibling, line := &fake{name: "up"}, &fake{name: "http://b"}, &lineCounter{}
	f := newFiller(t, Config{Sources: []Source{up}, Siblings: []Source{sibling}, Self: "http://a", Line: line})
	var want int64
	for i := range 20 {
		obj := up.add(fmt.Sprint("object ", i), 300_000)
		sibling.add(obj.Name, 300_000)
		if data, err := read(t, f, obj); err != nil || int64(len(data)) != obj.Length {
			t.Fatal(err)
		}
		f.mu.Lock()
		if f.owner(key{obj.SHA256, obj.Length}) == nil {
			want += obj.Length
		}
		f.mu.Unlock()
	}
	if got := line.n.Load(); got > want || got < want-20*lineSize || want == 0 || up.opens.Load() == 0 || sibling.opens.Load() == 0 {
		t.Errorf("%d bytes over the line, want about %d; %d transfers from upstream, %d from the sibling", got, want, up.opens.Load(), sibling.opens.Load())
	}
}

// peer is a sibling in the same process.
type peer struct {
	name    string
	f       *Filler
	objects map[string]Object
}

func (p *peer) String() string { return p.name }

func (p *peer) OpenTarget(ctx context.Context, object string, _ int64) (io.ReadCloser, int64, error) {
	obj := p.objects[object]
	r, err := p.f.Open(ctx, obj, Request{Hops: []string{"other"}, Sibling: true})
	return r, obj.Length, err
}

// TestSiblingsTakeNoTurns: two mirrors with one transfer at a time, each wanting
// an object that the other one has to fetch: neither holds the only turn while it
// waits for the other's.
func TestSiblingsTakeNoTurns(t *testing.T) {
	up := &fake{name: "up"}
	objects := map[string]Object{}
	toA, toB := &peer{name: "http://a", objects: objects}, &peer{name: "http://b", objects: objects}
	a := newFiller(t, Config{Sources: []Source{up}, Siblings: []Source{toB}, Self: "http://a", MaxFills: 1})
	b := newFiller(t, Config{Sources: []Source{up}, Siblings: []Source{toA}, Self: "http://b", MaxFills: 1})
	toA.f, toB.f = a, b
	var ofA, ofB []Object
	for i := 0; len(ofA) < 4 || len(ofB) < 4; i++ {
		obj := up.add(fmt.Sprint("large ", i), smallSize+i+1)
		objects[obj.Name] = obj
		if a.owner(key{obj.SHA256, obj.Length}) == nil {
			ofA = append(ofA, obj)
		} else {
			ofB = append(ofB, obj)
		}
	}
	var wg sync.WaitGroup
	for f, list := range map[*Filler][]Object{a: ofB, b: ofA} {
		for _, obj := range list {
			wg.Go(func() {
				if data, err := read(t, f, obj); err != nil || int64(len(data)) != obj.Length {
					t.Errorf("%s: %d bytes, %v", obj.Name, len(data), err)
				}
			})
		}
	}
	wg.Wait()
	if n := len(up.asked()); n != len(objects) {
		t.Errorf("%d transfers for %d objects", n, len(objects))
	}
}

// TestAskedAtTheEnd: who missed the cache right before a fill ended, and comes to
// the fills right after, begins no other one.
func TestAskedAtTheEnd(t *testing.T) {
	up := &fake{name: "up"}
	f := newFiller(t, Config{Sources: []Source{up}})
	obj := up.add("object", 10)
	if err := f.Prefill(t.Context(), obj); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.join(obj, Request{}, true); !errors.Is(err, errCached) {
		t.Errorf("joined after the end: %v", err)
	}
	if data, err := read(t, f, obj); err != nil || len(data) != 10 || up.opens.Load() != 1 {
		t.Errorf("%d bytes, %v, after %d transfers", len(data), err, up.opens.Load())
	}
}
