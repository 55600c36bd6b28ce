package mirror_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/mirror/upstream"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// cutting answers rightly, but for that each answer ends after so many bytes.
func cutting(every int) reply {
	return func(w http.ResponseWriter, r *http.Request, data []byte) {
		off := offsetOf(r)
		w.Header().Set("Content-Length", fmt.Sprint(len(data)-off))
		if off > 0 {
			w.Header().Set("Content-Range", rightRange(off, len(data)))
			w.WriteHeader(http.StatusPartialContent)
		}
		w.Write(data[off:min(off+every, len(data))])
		// Less than was announced: the server closes the connection.
	}
}

// TestLineCutEveryTenMegabytes: only what was lost is fetched again, which is
// nothing, and clients do not notice.
func TestLineCutEveryTenMegabytes(t *testing.T) {
	const every = 10 << 20
	d := newDepot(t)
	listed := newItem("patches/app/3.0/any/listed.msi", noise("long, listed", 6*every+1234))
	plain := newItem("patches/app/3.0/any/plain.msi", noise("long, plain", 6*every+1234))
	d.add(listed, plain)
	d.addBlocks(listed)
	d.publish(t)
	for _, i := range []*item{listed, plain} {
		t.Run(i.path, func(t *testing.T) {
			o := newOrigin(t, d)
			o.on(cutting(every))
			b := newEdge(t, d, nil, up(t, o.URL, upstream.Limits{}))
			for _, p := range crowd(b.srv.URL, 10, 1, i) {
				if !p.done || p.lied != nil {
					t.Errorf("%+v", p)
				}
			}
			want := []string{""}
			for n := range 6 {
				want = append(want, fmt.Sprintf("bytes=%d-", (n+1)*every))
			}
			if got := o.requests(i.object()); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("asked for %q, want %q", got, want)
			}
			// Both ends count, and both count the block list.
			for who, n := range map[string]int64{"upstream": o.sent.Load(), "mirror": b.m.Status().Fills.BytesIn} {
				if n > i.size()+i.size()/100 {
					t.Errorf("%s: %d bytes for an object of %d", who, n, i.size())
				}
			}
		})
	}
}

// wire is the line between a mirror and its upstream: it forwards connections
// until it is cut.
type wire struct {
	net.Listener
	to string
	wg sync.WaitGroup

	mu    sync.Mutex
	down  string            // guarded by mu: how; empty: it is up
	conns map[net.Conn]bool // guarded by mu
	tries int               // guarded by mu: connections while it was down
}

func newWire(t testing.TB, to string) *wire {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	l := &wire{Listener: ln, to: strings.TrimPrefix(to, "http://"), conns: map[net.Conn]bool{}}
	l.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			l.wg.Go(func() { l.carry(c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		l.cut("closed")
		l.mend()
		l.wg.Wait()
	})
	return l
}

func (l *wire) url() string { return "http://" + l.Addr().String() }

func (l *wire) carry(c net.Conn) {
	defer c.Close()
	l.mu.Lock()
	how := l.down
	l.conns[c] = true
	if how != "" {
		l.tries++
	}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.conns, c)
		l.mu.Unlock()
	}()
	switch how {
	case "":
	case "silent": // packets vanish; the other side gives up
		_, _ = io.Copy(io.Discard, c)
		return
	default:
		return
	}
	far, err := net.Dial("tcp", l.to)
	if err != nil {
		return
	}
	defer far.Close()
	go func() { _, _ = io.Copy(far, c); far.Close() }()
	_, _ = io.Copy(c, far)
}

// cut ends all connections, and from now on there are none.
func (l *wire) cut(how string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = how
	for c := range l.conns {
		c.Close()
	}
}

func (l *wire) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = ""
	for c := range l.conns {
		c.Close()
	}
}

// isDown makes an impatient upstream give up soon.
func (l *wire) isDown(string) upstream.Limits {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down == "" {
		return upstream.Limits{}
	}
	return upstream.Limits{Metadata: 200 * time.Millisecond, Open: 200 * time.Millisecond}
}

func (l *wire) attempts() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tries
}

// TestOutage: the line is down for an hour, and then for longer than the
// metadata lives. What is there is served, what is not is refused without a
// storm of requests; when the line is back, one look makes the view current, and
// the herd that comes for the new patches makes a few transfers at a time.
func TestOutage(t *testing.T) {
	for _, how := range []string{"closed", "silent"} {
		t.Run(how, func(t *testing.T) {
			noLeak(t)
			d := newDepot(t)
			cold := make([]*item, 30)
			for n := range cold {
				cold[n] = newItem(fmt.Sprintf("patches/app/4.%d/any/cold.msi", n), noise(fmt.Sprint("cold ", n), layout.BlockSize+1000+n))
			}
			d.add(cold...)
			// Only the timestamp expires in the time that this takes.
			year := time.Now().UTC().Truncate(time.Second).AddDate(1, 0, 0)
			d.repo.Root.Signed.Expires, d.repo.Snapshot.Signed.Expires = year, year
			for _, role := range d.repo.Targets {
				role.Signed.Expires = year
			}
			d.repo.Publish(layout.RoleRoot)
			d.publish(t)
			o, tp := newOrigin(t, d), newTap()
			tp.to(fully)
			o.on(tp.answer)
			l := newWire(t, o.URL)
			const maxFills = 3
			b := newEdge(t, d, func(c *mirror.Config) {
				c.MaxFills, c.Rest, c.Backoff, c.Poll = maxFills, time.Second, time.Millisecond, 30*time.Second
			}, impatient{up(t, l.url(), upstream.Limits{}), l.isDown})
			begin := time.Now()
			b.now.Store(&begin)
			for _, i := range d.items() {
				b.want(i.path, i.data)
			}

			served := func() {
				t.Helper()
				for _, i := range d.items() {
					b.want(i.path, i.data)
					if resp, body := b.get(i.url(), "Range", "bytes=100-199"); resp.StatusCode != 206 || !bytes.Equal(body, i.data[100:200]) {
						t.Errorf("part of %s: status %d, %d bytes", i.path, resp.StatusCode, len(body))
					}
				}
				must(t, b.client().Refresh(t.Context()))
				resp, _ := b.get("/metadata/timestamp.json")
				if again, _ := b.get("/metadata/timestamp.json", "If-None-Match", resp.Header.Get("Etag")); again.StatusCode != 304 {
					t.Errorf("timestamp again: status %d", again.StatusCode)
				}
			}
			herd := func() (codes map[int]int) {
				codes = map[int]int{}
				var mu sync.Mutex
				var wg sync.WaitGroup
				for n := range 200 {
					wg.Go(func() {
						resp, body, err := b.try("GET", cold[n%len(cold)].url())
						mu.Lock()
						defer mu.Unlock()
						switch {
						case err != nil:
							t.Error(err)
						case resp.StatusCode == 200 && !bytes.Equal(body, cold[n%len(cold)].data):
							t.Error("wrong bytes")
						case resp.StatusCode >= 400 && resp.Header.Get("Retry-After") == "":
							t.Errorf("status %d does not say when to come again", resp.StatusCode)
						}
						if err == nil {
							codes[resp.StatusCode]++
						}
					})
				}
				wg.Wait()
				return codes
			}

			l.cut(how)
			b.later(time.Hour)
			if b.m.Refresh(t.Context()) == nil {
				t.Fatal("the line is not down")
			}
			served()
			s := b.m.Status()
			since := "no upstream has answered since " + begin.UTC().Format(time.RFC3339)
			if !s.Ready || !contains(s.Warnings, since) {
				t.Errorf("ready %v, warnings %q, want %q", s.Ready, s.Warnings, since)
			}
			if resp, body := b.get("/readyz"); resp.StatusCode != 200 || !bytes.Contains(body, []byte(since)) {
				t.Errorf("/readyz: status %d: %s", resp.StatusCode, body)
			}
			// The first few find out; then nobody tries for a while.
			before := l.attempts()
			if codes := herd(); codes[502]+codes[503] != 200 {
				t.Errorf("cold objects: status %v", codes)
			}
			learnt := l.attempts()
			if n := learnt - before; n > 8*maxFills {
				t.Errorf("%d connections to find out that the line is down", n)
			}
			for range 5 {
				herd()
			}
			if n := l.attempts() - learnt; n > 0 {
				t.Errorf("%d connections while the upstream rests", n)
			}
			// Whenever it has rested, one tries.
			for range 10 {
				b.later(5 * time.Minute)
				was := l.attempts()
				herd()
				if n := l.attempts() - was; n > 2*maxFills {
					t.Errorf("%d connections after a rest", n)
				}
			}

			b.later(40 * 24 * time.Hour)
			for _, i := range d.items() {
				b.want(i.path, i.data)
			}
			if resp, body := b.get("/readyz"); resp.StatusCode != 503 || !bytes.Contains(body, []byte("role timestamp expired")) {
				t.Errorf("/readyz after the expiry: status %d: %s", resp.StatusCode, body)
			}
			if resp, _ := b.get("/metadata/timestamp.json"); resp.StatusCode != 200 {
				t.Errorf("expired timestamp: status %d", resp.StatusCode)
			}

			// The line is back, and with it what was published meanwhile.
			d.repo.Timestamp.Signed.Expires = year
			fresh := newItem("patches/app/5.0/any/fresh.msi", noise("fresh", 200_000))
			d.add(fresh)
			d.publish(t)
			l.mend()
			must(t, b.m.Refresh(t.Context()))
			if want := int64(len(d.repo.Published[layout.RoleTimestamp])); b.timestamp() != want {
				t.Errorf("timestamp %d, want %d", b.timestamp(), want)
			}
			if s := b.m.Status(); !s.Ready || len(s.Warnings) > 0 {
				t.Errorf("ready %v, warnings %q", s.Ready, s.Warnings)
			}
			tp.to(0)
			var wg sync.WaitGroup
			wg.Go(func() {
				if codes := herd(); codes[200] != 200 {
					t.Errorf("after the return: status %v", codes)
				}
			})
			until(t, "a few transfers, and a queue", func() bool {
				s := b.m.Status().Fills
				now, _ := o.atOnce()
				return now == maxFills && s.Queued == len(cold)-maxFills
			})
			tp.to(fully)
			wg.Wait()
			if _, most := o.atOnce(); most > maxFills {
				t.Errorf("%d transfers at once", most)
			}
			for _, i := range cold {
				if n := len(o.requests(i.object())); n != 1 {
					t.Errorf("%s crossed the line %d times", i.path, n)
				}
			}
			b.want(fresh.path, fresh.data)
		})
	}
}

// TestRunFindsTheLine: the mirror's own loop notices that the line is back.
func TestRunFindsTheLine(t *testing.T) {
	noLeak(t)
	d := newDepot(t)
	o := newOrigin(t, d)
	l := newWire(t, o.URL)
	b := newEdge(t, d, func(c *mirror.Config) { c.Poll = 10 * time.Millisecond }, up(t, l.url(), upstream.Limits{}))
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { b.m.Run(ctx) })
	defer wg.Wait()
	defer stop()
	for range 3 {
		l.cut("closed")
		until(t, "the mirror's noticing", func() bool { return b.m.Status().Upstreams[0].MetadataError != "" })
		d.publish(t)
		l.mend()
		want := int64(len(d.repo.Published[layout.RoleTimestamp]))
		until(t, "the new view", func() bool { return b.timestamp() == want })
	}
}

// TestOnlyWhatViewsName: thousands of requests for what no view names, or names
// no longer, reach neither the upstream nor the disk.
func TestOnlyWhatViewsName(t *testing.T) {
	d := newDepot(t)
	o := newOrigin(t, d)
	b := newEdge(t, d, nil, up(t, o.URL, upstream.Limits{}))
	for _, i := range d.items() {
		b.want(i.path, i.data)
	}
	// What lies at the upstream, but is not published yet, or never was.
	future := newItem("patches/app/6.0/any/future.msi", noise("future", 100_000))
	planted := newItem("patches/app/2.0/any/planted.msi", noise("planted", 100_000))
	gone := newItem("patches/app/1.0/any/gone.msi", noise("gone", 100_000))
	d.files.Store(future.object(), future.data)
	d.files.Store(planted.object(), planted.data)
	d.add(gone)
	d.publish(t)
	must(t, b.m.Refresh(t.Context()))
	b.want(gone.path, gone.data)
	// Withdrawn: served for as long as a client may be in the middle of an older
	// view, and not after that.
	delete(d.repo.Targets["product-app"].Signed.Targets, gone.path)
	for range 8 {
		d.publish(t)
		b.later(10 * time.Minute)
		must(t, b.m.Refresh(t.Context()))
	}

	var paths []string
	for _, i := range []*item{future, planted, gone} {
		paths = append(paths, i.url())
	}
	for n := range 2000 {
		other := hashOf(fmt.Appendf(nil, "%d", n))
		paths = append(paths,
			"/"+layout.EscapePath(layout.TargetObject(d.listed.path, other)),
			"/"+layout.EscapePath(layout.TargetObject(fmt.Sprintf("patches/app/%d/any/x", n), hashOf(d.small.data))),
			fmt.Sprintf("/metadata/%d.snapshot.json", 1000+n),
			fmt.Sprintf("/metadata/%d.product-app.json", 1000+n),
			fmt.Sprintf("/metadata/1.product-%d.json", n),
			fmt.Sprintf("/targets/metadata/%d.root.json", n))
	}
	for _, i := range d.items() {
		u := i.url()
		paths = append(paths, u+"/", u+"x", u[:len(u)-1], strings.ToUpper(u), strings.Replace(u, "/targets/", "/targets//", 1), strings.Replace(u, "/patches/", "/patches%2F", 1),
			"/targets/"+i.path, strings.Replace(u, "/targets/", "/metadata/", 1), u+".blocks", "/cas/sha256/"+hashOf(i.data)[:2]+"/"+hashOf(i.data), strings.Replace(u, "/targets/", "/targets/x/../", 1))
	}
	asked, files := o.total(), strings.Join(b.files("."), "\n")
	var mu sync.Mutex
	served := map[string]int{}
	var wg sync.WaitGroup
	for part := range 8 {
		wg.Go(func() {
			for n := part; n < len(paths); n += 8 {
				rec := record(b.m, http.MethodGet, paths[n])
				if rec.Code != 404 && rec.Code != 400 {
					mu.Lock()
					served[paths[n]] = rec.Code
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	for path, code := range served {
		t.Errorf("GET %s: status %d", path, code)
	}
	if n := o.total() - asked; n != 0 {
		t.Errorf("%d requests upstream", n)
	}
	if now := strings.Join(b.files("."), "\n"); now != files {
		t.Errorf("files on the disk:\n%s\nbefore:\n%s", now, files)
	}
	// Over real connections the same.
	for _, i := range []*item{future, planted, gone} {
		if resp, _ := b.get(i.url()); resp.StatusCode != 404 {
			t.Errorf("%s: status %d", i.path, resp.StatusCode)
		}
	}
	// Published at last, it is there.
	d.add(future)
	d.publish(t)
	must(t, b.m.Refresh(t.Context()))
	b.want(future.path, future.data)
}
