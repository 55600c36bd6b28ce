package mirror_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/mirror/upstream"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// door is a server whose handler can be changed, so that its URL is known
// before there is a mirror behind it.
type door struct {
	*httptest.Server
	h     atomic.Pointer[http.Handler]
	asked atomic.Int64 // requests for targets
}

func newDoor(t testing.TB, h http.Handler) *door {
	t.Helper()
	d := &door{}
	d.lead(h)
	d.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.URL.Path) > 9 && r.URL.Path[:9] == "/targets/" {
			d.asked.Add(1)
		}
		(*d.h.Load()).ServeHTTP(w, r)
	}))
	t.Cleanup(func() { d.CloseClientConnections(); d.Close() })
	return d
}

func (d *door) lead(h http.Handler) {
	if h == nil {
		h = http.NotFoundHandler()
	}
	d.h.Store(&h)
}

// patches adds n patches of about that size to a depot.
func (d *depot) patches(t testing.TB, n, size int) []*item {
	t.Helper()
	var all []*item
	for k := range n {
		all = append(all, newItem(fmt.Sprintf("patches/app/site-%d/any/x.deb", k), noise(fmt.Sprint("site ", k), size+k)))
	}
	d.add(all...)
	d.publish(t)
	return all
}

// newSiblings is n mirrors of one site. Each is told of all; names can be
// changed in between.
func newSiblings(t testing.TB, d *depot, o *origin, n int, change func(k int, c *mirror.Config)) []*edge {
	t.Helper()
	doors := make([]*door, n)
	for k := range doors {
		doors[k] = newDoor(t, nil)
	}
	all := make([]*edge, n)
	for k := range all {
		all[k] = newEdge(t, d, func(c *mirror.Config) {
			c.Self = doors[k].URL
			for j := range doors {
				if j != k {
					c.Siblings = append(c.Siblings, up(t, doors[j].URL, upstream.Limits{}))
				}
			}
			c.Rest = time.Hour // who fails is not asked again
			c.MaxFills = 8
			if change != nil {
				change(k, c)
			}
		}, up(t, o.URL, upstream.Limits{}))
		doors[k].lead(all[k].m)
	}
	return all
}

// TestSiblingHearsOfItFirst: whoever of a site sees a new view first, its
// objects cross the line once: the owner, asked for what it has not heard of,
// looks for itself.
func TestSiblingHearsOfItFirst(t *testing.T) {
	noLeak(t)
	d := newDepot(t)
	o := newOrigin(t, d)
	site := newSiblings(t, d, o, 3, nil)
	items := d.patches(t, 12, 50_000)
	must(t, site[0].m.Refresh(t.Context()))
	for _, b := range site {
		if b != site[0] {
			must(t, b.m.Refresh(t.Context()))
		}
		for _, p := range crowd(b.srv.URL, 1, 1, items...) {
			if !p.done || p.lied != nil {
				t.Errorf("%s: %+v", p.i.path, p)
			}
		}
	}
	for _, i := range items {
		if n := len(o.requests(i.object())); n != 1 {
			t.Errorf("%s crossed the line %d times", i.path, n)
		}
	}
	for _, s := range site[0].m.Status().Siblings {
		if s.Errors > 0 {
			t.Errorf("sibling %s: %d errors, %s", s.Name, s.Errors, s.LastError)
		}
	}
}

// TestSiteFetchesOnce: three mirrors, each asked for everything by several
// clients at once; each object crosses the line once.
func TestSiteFetchesOnce(t *testing.T) {
	noLeak(t)
	d := newDepot(t)
	items := append(d.patches(t, 30, 100_000), d.items()...)
	o := newOrigin(t, d)
	site := newSiblings(t, d, o, 3, nil)
	var wg sync.WaitGroup
	for _, b := range site {
		wg.Go(func() {
			for _, p := range crowd(b.srv.URL, 3, 1, items...) {
				if !p.done || p.lied != nil {
					t.Errorf("%s: %+v", p.i.path, p)
				}
			}
		})
	}
	wg.Wait()
	sum := layout.BlockListLen(d.listed.size())
	for _, i := range items {
		if n := len(o.requests(i.object())); n != 1 {
			t.Errorf("%s crossed the line %d times", i.path, n)
		}
		sum += i.size()
	}
	if n := o.sent.Load(); n != sum {
		t.Errorf("%d bytes crossed the line, for %d", n, sum)
	}
	// The work was shared.
	for k, b := range site {
		if n := b.m.Status().Upstreams[0].Transfers; n == 0 || n > 25 {
			t.Errorf("mirror %d fetched %d of %d objects", k, n, len(items))
		}
	}
}

// TestSiblingsFillIsTailed: a client of each mirror reads what the one that
// fetches it has so far.
func TestSiblingsFillIsTailed(t *testing.T) {
	noLeak(t)
	d := newDepot(t)
	o, tp := newOrigin(t, d), newTap()
	o.on(tp.answer)
	site := newSiblings(t, d, o, 3, nil)
	const come = layout.BlockSize + 1000
	tp.to(come)
	var wg sync.WaitGroup
	var tailing atomic.Int64
	for _, b := range site {
		for _, i := range []*item{d.listed, d.plain} {
			wg.Go(func() {
				resp, err := b.srv.Client().Get(b.srv.URL + i.url())
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				// The mirror in between holds back what it must, as the first does.
				there := d.released(i, d.released(i, come))
				got := make([]byte, there)
				if _, err := io.ReadFull(resp.Body, got); err != nil {
					t.Error(err)
				}
				tailing.Add(1)
				rest, err := io.ReadAll(resp.Body)
				if err != nil || !bytes.Equal(slices.Concat(got, rest), i.data) {
					t.Errorf("%d bytes, %v", len(got)+len(rest), err)
				}
			})
		}
	}
	until(t, "six readers in the middle", func() bool { return tailing.Load() == 6 || t.Failed() })
	tp.to(fully)
	wg.Wait()
	for _, i := range []*item{d.listed, d.plain} {
		if n := len(o.requests(i.object())); n != 1 {
			t.Errorf("%s crossed the line %d times", i.path, n)
		}
	}
}

// TestBadSiblings: one that is down, lies or is slow costs time, and nothing else.
func TestBadSiblings(t *testing.T) {
	d := newDepot(t)
	items := append(d.patches(t, 15, 20_000), d.items()...)
	for _, f := range []fault{
		{name: "closes at once", answer: say("")},
		{name: "404", answer: code(404)},
		{name: "503", answer: code(503)},
		{name: "508", answer: code(508)},
		{name: "other software", answer: evilAnswer},
		{name: "byte flipped", answer: flip(half)},
		{name: "last byte flipped", answer: flip(last)},
		{name: "web page", answer: say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")},
		{name: "closes in the middle", answer: upTo(half, closes)},
		{name: "hangs", answer: func(_ http.ResponseWriter, r *http.Request, _ []byte) { <-r.Context().Done() }},
		{name: "stalls", answer: upTo(half, hangs)},
		{name: "drips", answer: upTo(half, dripping)},
		{name: "endless", answer: babble("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n")},
		{name: "redirects to itself", answer: func(w http.ResponseWriter, r *http.Request, _ []byte) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		}},
		{name: "gone", answer: nil},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			bad, o := newOrigin(t, d), newOrigin(t, d)
			bad.on(f.answer)
			b := newEdge(t, d, func(c *mirror.Config) {
				c.Self = "http://self.example"
				c.Siblings = []upstream.Upstream{up(t, bad.URL, upstream.Limits{Open: 100 * time.Millisecond, Stall: 60 * time.Millisecond, MinRate: 256 << 10})}
				c.Rest = time.Hour
			}, up(t, o.URL, upstream.Limits{}))
			if f.answer == nil {
				bad.stop()
			}
			for _, p := range crowd(b.srv.URL, 5, 4, items...) {
				if !p.done || p.lied != nil || p.tries > 1 && p.i != d.plain {
					t.Errorf("%s: %+v", p.i.path, p)
				}
			}
			if f.answer != nil && bad.total() == 0 {
				t.Error("the sibling was never asked")
			}
			b.stop()
			clean(t, b.cfg.Dir)
		})
	}
}

// TestSiblingGoes: its objects move to the others when it goes, those
// of the others stay where they are.
func TestSiblingGoes(t *testing.T) {
	noLeak(t)
	d := newDepot(t)
	items := d.patches(t, 30, 20_000)
	o := newOrigin(t, d)
	site := newSiblings(t, d, o, 3, nil)
	for _, p := range crowd(site[0].srv.URL, 1, 1, items[:10]...) {
		if !p.done {
			t.Errorf("%+v", p)
		}
	}
	site[2].stop() // its door still answers, with 503
	for _, b := range site[:2] {
		for _, p := range crowd(b.srv.URL, 2, 1, items...) {
			if !p.done || p.lied != nil {
				t.Errorf("%s: %+v", p.i.path, p)
			}
		}
	}
	// At worst both of those that are left believed for a moment that another
	// was the one to ask.
	twice := 0
	for _, i := range items {
		switch n := len(o.requests(i.object())); {
		case n > 2:
			t.Errorf("%s crossed the line %d times", i.path, n)
		case n == 2:
			twice++
		}
	}
	if twice > 20 { // a third of them was its own, give or take the luck of the names
		t.Errorf("%d of 30 objects crossed the line twice", twice)
	}
}

// ring is mirrors each of which has the next one as its upstream, once they have
// seen the metadata of a real one.
func newRing(t *testing.T, d *depot, n int, also ...upstream.Upstream) ([]*edge, []*door) {
	t.Helper()
	o := newOrigin(t, d)
	doors := make([]*door, n)
	for k := range doors {
		doors[k] = newDoor(t, o)
	}
	all := make([]*edge, n)
	for k := range all {
		all[k] = newEdge(t, d, func(c *mirror.Config) { c.FailFor = time.Minute },
			append([]upstream.Upstream{up(t, doors[(k+1)%n].URL, upstream.Limits{Open: 400 * time.Millisecond, Stall: 400 * time.Millisecond})}, also...)...)
	}
	for k := range doors {
		doors[k].lead(all[k].m)
	}
	return all, doors
}

// TestCircles: mirrors that ask each other in a circle, with no real upstream in
// it, say so soon; with one, all get the right bytes. Nobody is asked without
// end.
func TestCircles(t *testing.T) {
	d := newDepot(t)
	for _, n := range []int{1, 2, 3, 5} {
		t.Run(fmt.Sprintf("of %d", n), func(t *testing.T) {
			t.Parallel()
			all, doors := newRing(t, d, n)
			for _, p := range crowd(all[0].srv.URL, 5, 1, d.items()...) {
				if p.done || p.lied != nil {
					t.Errorf("%s: %+v", p.i.path, p)
				}
			}
			for k, door := range doors {
				// Four objects, each tried a few times by each who has to know.
				if got := door.asked.Load(); got > int64(4*3*3*n) {
					t.Errorf("mirror %d was asked %d times", k, got)
				}
			}
			for _, b := range all {
				for _, i := range d.items() {
					if resp, _ := b.get(i.url()); resp.StatusCode < 500 {
						t.Errorf("status %d", resp.StatusCode)
					}
				}
			}
		})
		t.Run(fmt.Sprintf("of %d, all asked at once", n), func(t *testing.T) {
			t.Parallel()
			all, _ := newRing(t, d, n)
			var wg sync.WaitGroup
			for _, b := range all {
				wg.Go(func() {
					for _, p := range crowd(b.srv.URL, 5, 1, d.items()...) {
						if p.done || p.lied != nil {
							t.Errorf("%s: %+v", p.i.path, p)
						}
					}
				})
			}
			wg.Wait()
		})
		t.Run(fmt.Sprintf("of %d, with a way out", n), func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t, d)
			all, _ := newRing(t, d, n, up(t, o.URL, upstream.Limits{}))
			var wg sync.WaitGroup
			for _, b := range all {
				wg.Go(func() {
					for _, p := range crowd(b.srv.URL, 5, 4, d.items()...) {
						if !p.done || p.lied != nil {
							t.Errorf("%s: %+v", p.i.path, p)
						}
					}
				})
			}
			wg.Wait()
			for _, i := range d.items() {
				if got := len(o.requests(i.object())); got < 1 || got > n {
					t.Errorf("%s crossed the line %d times", i.path, got)
				}
			}
		})
	}
}

// TestSiblingsThatDisagree: each takes another one for the one to ask, since they
// were told different names. At worst an object crosses the line more than once.
func TestSiblingsThatDisagree(t *testing.T) {
	d := newDepot(t)
	items := append(d.patches(t, 20, 20_000), d.items()...)
	for name, change := range map[string]func(k int, c *mirror.Config){
		"each believes to be somebody else": func(k int, c *mirror.Config) { c.Self = fmt.Sprintf("http://other-%d.example", k) },
		"all are called the same":           func(_ int, c *mirror.Config) { c.Self = "http://same.example" },
		"one knows of one other only":       func(k int, c *mirror.Config) { c.Siblings = c.Siblings[:1+k%2] },
		"each is its own sibling, too": func(_ int, c *mirror.Config) {
			c.Siblings = append(c.Siblings, up(t, c.Self, upstream.Limits{}))
			c.Self += "/alias"
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t, d)
			site := newSiblings(t, d, o, 3, change)
			var wg sync.WaitGroup
			for _, b := range site {
				wg.Go(func() {
					for _, p := range crowd(b.srv.URL, 3, 1, items...) {
						if !p.done || p.lied != nil {
							t.Errorf("%s: %+v", p.i.path, p)
						}
					}
				})
			}
			wg.Wait()
			for _, i := range items {
				if n := len(o.requests(i.object())); n < 1 || n > 3 {
					t.Errorf("%s crossed the line %d times", i.path, n)
				}
			}
		})
	}
}

// TestMirrorBehindMirrorBehindMirror: each line carries each object once, and
// the readers at the end see bytes while the first line still brings them.
func TestMirrorBehindMirrorBehindMirror(t *testing.T) {
	noLeak(t)
	d := newDepot(t)
	o, tp := newOrigin(t, d), newTap()
	o.on(tp.answer)
	base := o.URL
	var row []*edge
	var doors []*door
	for range 3 {
		b := newEdge(t, d, nil, up(t, base, upstream.Limits{}))
		door := newDoor(t, b.m)
		base = door.URL
		row, doors = append(row, b), append(doors, door)
	}
	const come = 3*layout.BlockSize + 5
	var wg sync.WaitGroup
	var tailing atomic.Int64
	const readers = 20
	for range readers {
		wg.Go(func() {
			resp, err := http.Get(base + d.listed.url())
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			got := make([]byte, 3*layout.BlockSize)
			if _, err := io.ReadFull(resp.Body, got); err != nil {
				t.Error(err)
			}
			tailing.Add(1)
			rest, err := io.ReadAll(resp.Body)
			if err != nil || !bytes.Equal(slices.Concat(got, rest), d.listed.data) {
				t.Errorf("%d bytes, %v", len(got)+len(rest), err)
			}
		})
	}
	tp.to(come)
	until(t, "readers of the third mirror in the middle", func() bool { return tailing.Load() == readers || t.Failed() })
	tp.to(fully)
	wg.Wait()
	for _, p := range crowd(base, 20, 1, d.plain, d.small) {
		if !p.done {
			t.Errorf("%+v", p)
		}
	}
	for _, i := range d.items() {
		if n := len(o.requests(i.object())); n != 1 {
			t.Errorf("%s crossed the first line %d times", i.path, n)
		}
	}
	for k, door := range doors[:2] { // three objects and a block list
		if n := door.asked.Load(); n != 4 {
			t.Errorf("line %d carried %d objects", k+2, n)
		}
	}
	for k, b := range row {
		if n := b.m.Status().Fills.BytesIn; n != d.listed.size()+d.plain.size()+d.small.size()+layout.BlockListLen(d.listed.size()) {
			t.Errorf("mirror %d took in %d bytes", k+1, n)
		}
	}
}
