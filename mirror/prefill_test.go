package mirror_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/mirror/line"
	"github.com/patchkeep/patchkeep/mirror/upstream"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// branch is a mirror that prefills, in a bubble of synctest: no server, and
// settle waits until nothing moves any more.
type branch struct {
	*site
	data map[string][]byte // patches by name
	end  func()            // of Run
	gate *doorman
}

// mib is how large most patches are here: more than the objects that do not
// wait for their turn.
const mib = 1 << 20

// patchPath is where a patch of that name lies.
func patchPath(name string) string { return "patches/app/" + name + "/any/app.deb" }

// inBranch runs the test with a mirror of a repository that has rings and
// patches named 1 to 6, of 2 MiB each, and "big", of 5 MiB, with a block list.
func inBranch(t *testing.T, configure func(*mirror.Config), test func(t *testing.T, b *branch)) {
	synctest.Test(t, func(t *testing.T) {
		r := newRepo()
		b := &branch{site: &site{t: t, repo: r, dir: t.TempDir()}, data: map[string][]byte{}, gate: &doorman{shut: map[string]chan struct{}{}, at: map[string]int{}, read: map[string]int{}}}
		for _, ring := range []string{"users", "servers"} {
			r.Delegate("targets", tuftest.Delegation{Role: layout.RingRole(ring), Paths: layout.RingPatterns(ring), Terminating: true})
		}
		r.Delegate("targets", tuftest.Delegation{Role: layout.RoleHalt, Paths: layout.HaltPatterns(), Terminating: true})
		for name, data := range patches() {
			b.addPatch(name, data)
		}
		b.root = r.Published[layout.RoleRoot][0]
		b.publish(func(r *tuftest.Repo) { r.Publish(layout.RoleRoot) })
		b.up = overDir(t, b.dir)
		b.up.onTarget(b.gate.body)
		b.cfg = mirror.Config{Dir: t.TempDir(), Root: b.root, Upstreams: []upstream.Upstream{b.up}, PrefillRings: []string{"users"}}
		if configure != nil {
			configure(&b.cfg)
		}
		b.open()
		defer b.close()
		test(t, b)
	})
}

func (b *branch) open() {
	b.t.Helper()
	m, err := mirror.New(context.Background(), b.cfg)
	must(b.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { m.Run(ctx) })
	b.m, b.end = m, func() { cancel(); wg.Wait() }
	synctest.Wait()
}

func (b *branch) close() {
	b.end()
	must(b.t, b.m.Close())
}

// patches by name.
var patches = sync.OnceValue(func() map[string][]byte {
	out := map[string][]byte{"big": make([]byte, 5*mib)}
	for i := range 6 {
		out[fmt.Sprint(i+1)] = make([]byte, 2*mib)
	}
	for name, data := range out {
		_, _ = rand.NewChaCha8(sha256.Sum256([]byte(name))).Read(data)
	}
	return out
})

// addPatch adds a patch, with its block list if it is to have one.
func (b *branch) addPatch(name string, data []byte) {
	b.data[name] = data
	b.repo.AddArtifact("product-app", patchPath(name), data)
	if layout.BlockListLen(int64(len(data))) > 0 {
		b.repo.AddArtifact("product-app", layout.BlocksPath(patchPath(name)), blocksOf(data))
	}
}

func objectFile(data []byte) string {
	return filepath.Join("cas", "sha256", hashOf(data)[:2], hashOf(data))
}

func blocksOf(data []byte) []byte {
	var list []byte
	for block := range slices.Chunk(data, layout.BlockSize) {
		sum := sha256.Sum256(block)
		list = append(list, sum[:]...)
	}
	return list
}

// entry is a plan's entry that lets everyone in at that time from now on.
func (b *branch) entry(name string, in time.Duration) rollout.Entry {
	return rollout.Entry{
		Patch: patchPath(name), SHA256: hashOf(b.data[name]), Custom: strings.Repeat("0", 64),
		NotBefore: time.Now().UTC().Add(in).Truncate(time.Second),
	}
}

// approve publishes a ring's plan, and waits until the mirror has it and has
// done about it what can be done.
func (b *branch) approve(ring string, entries ...rollout.Entry) {
	b.t.Helper()
	b.approvePlan(rollout.Plan{Format: 1, Ring: ring, Entries: entries})
}

func (b *branch) approvePlan(p rollout.Plan) {
	b.t.Helper()
	data, err := p.Encode()
	must(b.t, err)
	b.put(layout.RingRole(p.Ring), layout.PlanPath(p.Ring), data)
}

func (b *branch) halt(halts ...rollout.Halt) {
	b.t.Helper()
	data, err := (&rollout.Halts{Format: 1, Halts: halts}).Encode()
	must(b.t, err)
	b.put(layout.RoleHalt, layout.HaltsPath, data)
}

func (b *branch) put(role, path string, data []byte) {
	b.t.Helper()
	b.publish(func(r *tuftest.Repo) { r.AddArtifact(role, path, data) })
	b.refresh()
}

func (b *branch) refresh() {
	b.t.Helper()
	must(b.t, b.m.Refresh(b.t.Context()))
	synctest.Wait()
}

// later lets time go by.
func (b *branch) later(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// cached lists the patches that are there, with their block lists.
func (b *branch) cached() []string {
	b.t.Helper()
	synctest.Wait() // a client has all of an object a moment before the cache has
	files := b.files("cas")
	var out []string
	for name, data := range b.data {
		if !contains(files, hashOf(data)) {
			continue
		}
		if len(data) >= layout.BlockListMin && !contains(files, hashOf(blocksOf(data))) {
			b.t.Errorf("%s is there without its block list", name)
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func (b *branch) wantCached(names ...string) {
	b.t.Helper()
	if got := b.cached(); !slices.Equal(got, names) {
		b.t.Errorf("cached are %q, want %q", got, names)
	}
}

// fetch gets a patch as a client does.
func (b *branch) fetch(name string) {
	b.t.Helper()
	rec := record(b.m, http.MethodGet, urlOf(patchPath(name), b.data[name]))
	if rec.Code != http.StatusOK || !bytes.Equal(rec.Body.Bytes(), b.data[name]) {
		b.t.Errorf("GET %s: status %d, %d bytes", name, rec.Code, rec.Body.Len())
	}
}

// status is that of the only ring.
func (b *branch) status() mirror.PrefillStatus {
	b.t.Helper()
	all := b.m.Status().Prefill
	if len(all) != 1 {
		b.t.Fatalf("the status has %d rings", len(all))
	}
	return all[0]
}

func (b *branch) wantWarning(part string) {
	b.t.Helper()
	if s := b.status(); !contains(s.Warnings, part) {
		b.t.Errorf("warnings are %q, want one with %q", s.Warnings, part)
	}
}

// doorman lets bodies through, or does not.
type doorman struct {
	mu    sync.Mutex
	shut  map[string]chan struct{} // by version of the patch; closed to let its body through. Guarded by mu
	order []string                 // patches as they were opened. Guarded by mu
	at    map[string]int           // bytes after which shut counts. Guarded by mu
	read  map[string]int           // bytes by patch. Guarded by mu
	open  int                      // bodies now. Guarded by mu
	most  int                      // of open. Guarded by mu
	err   error                    // instead of any body. Guarded by mu
}

func (g *doorman) hold(names ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range names {
		g.shut[n] = make(chan struct{})
	}
}

// holdAt lets n bytes of a patch through.
func (g *doorman) holdAt(name string, n int) {
	g.hold(name)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.at[name] = n
}

// pass lets a patch through and waits for what comes of it.
func (g *doorman) pass(name string) {
	g.mu.Lock()
	close(g.shut[name])
	delete(g.shut, name)
	g.mu.Unlock()
	synctest.Wait()
}

// fail has all bodies end with err, those held when they are let through.
func (g *doorman) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = err
}

// opened lists the patches that were opened since the last time, sorted.
func (g *doorman) opened() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := g.order
	g.order = nil
	slices.Sort(out)
	return out
}

func (g *doorman) bytesOf(name string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.read[name]
}

func (g *doorman) body(object string, _ int64, body io.ReadCloser, size int64) (io.ReadCloser, int64, error) {
	parts := strings.Split(object, "/")
	if len(parts) != 6 || strings.HasSuffix(object, ".blocks") { // not targets/patches/app/<name>/any/<file>
		return body, size, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err != nil {
		body.Close()
		return nil, 0, g.err
	}
	g.order = append(g.order, parts[3])
	g.open++
	g.most = max(g.most, g.open)
	return &gatedBody{ReadCloser: body, g: g, name: parts[3], closed: make(chan struct{})}, size, nil
}

type gatedBody struct {
	io.ReadCloser
	g      *doorman
	name   string
	once   sync.Once
	closed chan struct{}
}

func (b *gatedBody) Read(p []byte) (int, error) {
	b.g.mu.Lock()
	wait, left := b.g.shut[b.name], b.g.at[b.name]-b.g.read[b.name]
	b.g.mu.Unlock()
	if wait != nil && left > 0 {
		p, wait = p[:min(len(p), left)], nil
	}
	if wait != nil {
		select {
		case <-wait:
		case <-b.closed:
			return 0, errors.New("closed")
		}
	}
	b.g.mu.Lock()
	err := b.g.err
	b.g.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := b.ReadCloser.Read(p)
	b.g.mu.Lock()
	defer b.g.mu.Unlock()
	b.g.read[b.name] += n
	return n, err
}

func (b *gatedBody) Close() error {
	b.once.Do(func() {
		close(b.closed)
		b.g.mu.Lock()
		defer b.g.mu.Unlock()
		b.g.open--
	})
	return b.ReadCloser.Close()
}

// The soonest comes first, two at a time, before any client has asked.
func TestPrefillOrder(t *testing.T) {
	inBranch(t, nil, func(t *testing.T, b *branch) {
		b.gate.hold("1", "2", "3", "4", "5", "big")
		late := b.entry("2", time.Hour) // nobody is in before the second step
		late.Steps = []rollout.Step{{At: 0, Percent: 0}, {At: 48 * 3600, Percent: 1000}, {At: 72 * 3600, Percent: rollout.All}}
		never := b.entry("6", 0)
		never.Steps = []rollout.Step{{At: 0, Percent: 0}}
		running := b.entry("4", -20*24*time.Hour)
		running.Steps = []rollout.Step{{At: 0, Percent: 100}, {At: 30 * 24 * 3600, Percent: rollout.All}}
		b.approve("users",
			b.entry("5", -30*24*time.Hour), // most have it
			b.entry("1", 24*time.Hour),
			never, late,
			b.entry("big", 12*time.Hour),
			running,
			b.entry("3", 72*time.Hour),
		)
		next := func(pass string, want ...string) {
			t.Helper()
			if pass != "" {
				b.gate.pass(pass)
			}
			if got := b.gate.opened(); !slices.Equal(got, want) {
				t.Errorf("after %q there begin %q, want %q", pass, got, want)
			}
		}
		next("", "4", "big")
		if s := b.status(); s.Objects != 6 || s.Cached != 0 || s.Bytes != 15*mib+5*32 || s.Next != patchPath("4") || !s.NextAt.Equal(running.NotBefore) {
			t.Errorf("status is %+v", s)
		}
		next("big", "1")
		next("4", "2")
		next("1", "3")
		next("2", "5")
		next("3")
		b.wantCached("1", "2", "3", "4", "big")
		next("5")
		b.wantCached("1", "2", "3", "4", "5", "big")
		s := b.status()
		if s.Ring != "users" || s.Cached != 6 || s.CachedBytes != s.Bytes || s.Next != "" || len(s.Warnings) > 0 {
			t.Errorf("status is %+v", s)
		}
		if b.gate.most > 2 {
			t.Errorf("%d at once", b.gate.most)
		}
		// And now a client asks.
		b.up.down.Store(true)
		for _, name := range b.cached() {
			b.fetch(name)
		}
	})
}

// What clients wait for comes first, and what one asks for is fetched once.
func TestPrefillGivesWay(t *testing.T) {
	inBranch(t, nil, func(t *testing.T, b *branch) {
		b.gate.hold("1")
		var wg sync.WaitGroup
		wg.Go(func() { b.fetch("1") })
		synctest.Wait()
		b.approve("users", b.entry("2", time.Hour), b.entry("3", time.Hour))
		if n := b.gate.bytesOf("2") + b.gate.bytesOf("3"); n > 0 {
			t.Errorf("%d bytes were fetched ahead of a client's", n)
		}
		wg.Go(func() { b.fetch("2") }) // no longer only a prefill
		synctest.Wait()
		b.wantCached("2")
		b.gate.pass("1")
		wg.Wait()
		synctest.Wait()
		b.wantCached("1", "2", "3")
		for _, name := range []string{"1", "2", "3"} {
			if n := b.gate.bytesOf(name); n != 2*mib {
				t.Errorf("%d bytes of %s were fetched", n, name)
			}
		}
	})
}

// What may not be installed is not fetched before it may.
func TestPrefillStopped(t *testing.T) {
	inBranch(t, nil, func(t *testing.T, b *branch) {
		halt := rollout.Halt{ID: "h1", SHA256: hashOf(b.data["2"]), Since: time.Now().UTC(), Reason: "it burns", By: "me"}
		b.halt(halt)
		paused := b.entry("3", time.Hour)
		paused.Paused = true
		other := b.entry("4", time.Hour)
		other.SHA256 = hashOf(b.data["5"]) // of other content than the product now has
		gone := b.entry("5", time.Hour)
		gone.Patch = patchPath("0.9")
		entries := []rollout.Entry{b.entry("1", time.Hour), b.entry("2", time.Hour), paused, other, gone}
		b.approve("users", entries...)
		b.wantCached("1")
		b.wantWarning("ring users approves 2 patches that the repository does not have")
		if s := b.status(); s.Objects != 1 || s.Cached != 1 {
			t.Errorf("status is %+v", s)
		}

		entries[2].Paused = false
		b.approve("users", entries...)
		b.wantCached("1", "3")

		b.approvePlan(rollout.Plan{Format: 1, Ring: "users", Entries: entries, Lifts: []string{"h1"}})
		b.wantCached("1", "2", "3")

		b.halt(halt, rollout.Halt{ID: "h2", Product: "app", Since: time.Now().UTC()})
		b.approvePlan(rollout.Plan{Format: 1, Ring: "users", Entries: append(entries, b.entry("6", time.Hour)), Lifts: []string{"h1"}})
		b.wantCached("1", "2", "3")
		if s := b.status(); s.Objects != 0 {
			t.Errorf("status is %+v", s)
		}
	})
}

// Patches stay for as long as the plan has them, whatever else comes by.
func TestPrefillPins(t *testing.T) {
	inBranch(t, func(c *mirror.Config) { c.CacheSize = 8 * mib }, func(t *testing.T, b *branch) {
		press := func() {
			for _, name := range []string{"3", "4", "5", "6"} {
				b.fetch(name)
			}
			synctest.Wait()
		}
		b.approve("users", b.entry("1", time.Hour), b.entry("2", 2*time.Hour))
		press()
		b.wantCached("1", "2", "6")
		press()
		b.wantCached("1", "2", "6")

		b.approve("users", b.entry("2", 2*time.Hour))
		press()
		b.wantCached("2", "5", "6")

		b.close() // and after a restart, before anything is asked of the upstream
		b.up.down.Store(true)
		b.open()
		b.up.down.Store(false)
		press()
		b.wantCached("2", "5", "6")
	})
}

// Deltas of what a ring approves come with it, where there is room: what is
// larger than the patch, or makes one that is not approved, does not.
func TestPrefillDeltas(t *testing.T) {
	delta := func(b *branch, of, from string, data []byte) {
		path, err := layout.DeltaPath(patchPath(of), hashOf([]byte(from)))
		must(b.t, err)
		b.data[of+" from "+from] = data
		b.publish(func(r *tuftest.Repo) {
			r.AddArtifact("product-app", path, data)
			r.Publish("product-app", "snapshot", "timestamp")
		})
		b.refresh()
	}
	inBranch(t, func(c *mirror.Config) { c.CacheSize = 8 * mib }, func(t *testing.T, b *branch) {
		delta(b, "1", "0", make([]byte, mib+1))
		delta(b, "2", "0", make([]byte, mib+2))
		delta(b, "3", "0", make([]byte, mib+3))
		delta(b, "1", "large", make([]byte, 2*mib+1))
		b.approve("users", b.entry("1", time.Hour), b.entry("2", 2*time.Hour))
		b.wantCached("1", "1 from 0", "2") // the delta of 2 does not fit
	})
}

// As many as fit, the soonest first, and never the whole cache.
func TestPrefillTooMuch(t *testing.T) {
	inBranch(t, func(c *mirror.Config) { c.CacheSize = 9 * mib }, func(t *testing.T, b *branch) {
		b.approve("users", b.entry("1", 4*time.Hour), b.entry("2", 2*time.Hour), b.entry("3", 3*time.Hour), b.entry("4", time.Hour), b.entry("big", 30*time.Minute))
		b.wantCached("big")
		b.wantWarning("4 of 5 patches of ring users do not fit: all of them need 13 MiB, and three quarters of the cache, 6.8 MiB, are for prefill")
		if s := b.status(); s.Objects != 5 || s.Cached != 1 || s.Next != "" {
			t.Errorf("status is %+v", s)
		}
		b.fetch("5") // there is room for others
		b.wantCached("5", "big")

		b.approve("users", b.entry("1", 4*time.Hour), b.entry("2", 2*time.Hour), b.entry("3", 3*time.Hour), b.entry("4", time.Hour))
		b.fetch("5")
		b.wantWarning("1 of 4 patches of ring users do not fit")
		if got := b.cached(); !slices.Contains(got, "2") || !slices.Contains(got, "3") || !slices.Contains(got, "4") || slices.Contains(got, "1") {
			t.Errorf("cached are %q", got)
		}
	})
}

// Several rings share what they share, and one that is not there harms none.
func TestPrefillRings(t *testing.T) {
	inBranch(t, func(c *mirror.Config) { c.PrefillRings = []string{"users", "nobody", "servers", "users"} }, func(t *testing.T, b *branch) {
		b.approve("users", b.entry("1", time.Hour), b.entry("2", time.Hour))
		b.approve("servers", b.entry("2", time.Minute), b.entry("3", time.Hour))
		b.wantCached("1", "2", "3")
		if n := b.gate.bytesOf("2"); n != 2*mib {
			t.Errorf("%d bytes of a patch of two rings were fetched", n)
		}
		s := b.m.Status().Prefill
		if len(s) != 3 || s[0].Ring != "nobody" || s[1].Ring != "servers" || s[2].Ring != "users" || s[1].Cached != 2 || s[2].Cached != 2 || len(s[1].Warnings)+len(s[2].Warnings) > 0 {
			t.Fatalf("status is %+v", s)
		}
		if !contains(s[0].Warnings, "the repository has no ring nobody; it has: servers, users") {
			t.Errorf("warnings are %q", s[0].Warnings)
		}
	})
}

// A plan that cannot be used is no plan, and the status says why.
func TestPrefillBadPlan(t *testing.T) {
	inBranch(t, nil, func(t *testing.T, b *branch) {
		plan, err := (&rollout.Plan{Format: 1, Ring: "servers", Entries: []rollout.Entry{b.entry("1", time.Hour)}}).Encode()
		must(t, err)
		for _, c := range []struct {
			name, want string
			data       []byte
		}{
			{"of another ring", "it is the plan of ring servers", plan},
			{"no JSON", "bad rollout document", []byte("nonsense")},
			{"too large", "at most 4194304 are allowed", make([]byte, rollout.MaxPlanSize+1)},
		} {
			b.put(layout.RingRole("users"), layout.PlanPath("users"), c.data)
			b.wantWarning("cannot use rings/users/plan.json")
			b.wantWarning(c.want)
			b.wantCached()
		}
		if contains(b.files("cas"), hashOf(make([]byte, rollout.MaxPlanSize+1))) {
			t.Error("a plan that is too large was fetched")
		}
		b.put(layout.RoleHalt, layout.HaltsPath, []byte("nonsense")) // stops nothing here: machines decide
		b.approve("users", b.entry("1", time.Hour))
		b.wantWarning("cannot use halts/halts.json")
		b.wantCached("1")
	})
}

// Prefill keeps to the calendar of the line.
func TestPrefillOnTheLine(t *testing.T) {
	calendar, err := line.ParseCalendar("00:01-00:10=pause,00:00-00:20=100kB/s")
	must(t, err)
	inBranch(t, func(c *mirror.Config) {
		c.Line = line.NewLimiter(calendar, func() time.Time { return time.Now().UTC() }) // it is midnight
	}, func(t *testing.T, b *branch) {
		b.approve("users", b.entry("1", time.Hour), b.entry("2", time.Hour))
		b.later(20 * time.Second) // × 100 kB/s
		if s := b.status(); s.Cached != 0 {
			t.Errorf("%d patches of 2 MiB are cached", s.Cached)
		}
		b.later(25 * time.Second)
		b.wantCached("1", "2")
		b.later(time.Minute)
		b.approve("users", b.entry("1", time.Hour), b.entry("2", time.Hour), b.entry("big", time.Hour))
		b.later(8 * time.Minute)
		b.wantCached("1", "2")
		b.later(2 * time.Minute)
		b.wantCached("1", "2", "big")
	})
}

// While patches cannot be had the mirror tries now and then, and when they can
// be had again it fetches them without being told.
func TestPrefillOutage(t *testing.T) {
	inBranch(t, nil, func(t *testing.T, b *branch) {
		b.gate.fail(errDown)
		b.approve("users", b.entry("1", time.Hour), b.entry("2", time.Hour), b.entry("3", 2*time.Hour))
		before := b.up.transfers.Load()
		b.later(time.Hour)
		b.wantWarning("the line is down")
		if n := b.up.transfers.Load() - before; n < 20 || n > 200 {
			t.Errorf("%d attempts in an hour", n)
		}
		b.wantCached()
		b.gate.fail(nil)
		b.later(15 * time.Minute)
		b.wantCached("1", "2", "3")
		if s := b.status(); len(s.Warnings) > 0 {
			t.Errorf("warnings are %q", s.Warnings)
		}
	})
}

// The line goes down before the plan was read.
func TestPrefillOutageBeforePlan(t *testing.T) {
	inBranch(t, nil, func(t *testing.T, b *branch) {
		b.up.onTarget(func(string, int64, io.ReadCloser, int64) (io.ReadCloser, int64, error) { return nil, 0, errDown })
		b.approve("users", b.entry("1", time.Hour))
		b.later(time.Minute)
		b.wantWarning("cannot use rings/users/plan.json")
		b.up.onTarget(b.gate.body)
		b.later(3 * time.Minute)
		b.wantCached("1")

		// And the plan before counts until the new one can be read.
		b.up.onTarget(func(string, int64, io.ReadCloser, int64) (io.ReadCloser, int64, error) { return nil, 0, errDown })
		b.approve("users")
		b.later(time.Minute)
		b.wantWarning("cannot use rings/users/plan.json")
		if s := b.status(); s.Objects != 1 {
			t.Errorf("status is %+v", s)
		}
	})
}

// Patches that cannot be had do not hold up the others.
func TestPrefillBroken(t *testing.T) {
	inBranch(t, nil, func(t *testing.T, b *branch) {
		b.up.onTarget(func(object string, offset int64, body io.ReadCloser, size int64) (io.ReadCloser, int64, error) {
			if strings.Contains(object, "/app/1/") || strings.Contains(object, "/app/4/") {
				body.Close()
				return io.NopCloser(bytes.NewReader(make([]byte, 2*mib)[offset:])), size, nil
			}
			return b.gate.body(object, offset, body, size)
		})
		b.approve("users", b.entry("1", time.Minute), b.entry("4", time.Minute), b.entry("2", time.Hour), b.entry("3", time.Hour), b.entry("big", time.Hour))
		b.later(time.Minute)
		b.wantCached("2", "3", "big")
		b.wantWarning(patchPath("1")[:len("patches/app/1/any/")])
		if s := b.status(); s.Next != patchPath("1") || s.Cached != 3 {
			t.Errorf("status is %+v", s)
		}
	})
}

// Objects that get lost are fetched again, without a new view.
func TestPrefillLost(t *testing.T) {
	inBranch(t, nil, func(t *testing.T, b *branch) {
		b.approve("users", b.entry("1", time.Hour))
		b.wantCached("1")
		must(t, os.Truncate(filepath.Join(b.cfg.Dir, objectFile(b.data["1"])), 7))
		b.gate.fail(errDown)
		if rec := record(b.m, http.MethodGet, urlOf(patchPath("1"), b.data["1"])); rec.Code != http.StatusBadGateway {
			t.Errorf("status %d", rec.Code)
		}
		b.wantCached()
		b.gate.fail(nil)
		b.later(15 * time.Minute)
		b.wantCached("1")
	})
}

// What an earlier run has left unfinished is brought to its end, also where no
// ring is prefilled: the rest of it alone.
func TestLeftovers(t *testing.T) {
	inBranch(t, func(c *mirror.Config) { c.PrefillRings = nil }, func(t *testing.T, b *branch) {
		var wg sync.WaitGroup
		for _, name := range []string{"big", "1"} {
			b.gate.holdAt(name, mib+mib/2)
			wg.Go(func() {
				defer func() { _ = recover() }() // its connection is aborted
				record(b.m, http.MethodGet, urlOf(patchPath(name), b.data[name]))
			})
		}
		synctest.Wait()
		b.publish(func(r *tuftest.Repo) { delete(r.Targets["product-app"].Signed.Targets, patchPath("1")) })
		b.refresh()
		b.gate.fail(errDown)
		b.gate.pass("big")
		b.gate.pass("1")
		b.end()
		must(t, b.m.Close()) // ends the clients' requests
		wg.Wait()
		b.wantCached()

		b.gate.fail(nil)
		b.open()
		b.wantCached("big")
		if n := b.gate.bytesOf("big"); n != 5*mib {
			t.Errorf("%d bytes of an object of %d were fetched", n, 5*mib)
		}
		if n := b.gate.bytesOf("1"); n != mib+mib/2 {
			t.Errorf("%d bytes were fetched of what is no longer published", n)
		}
		if left := b.files("tmp"); len(left) > 0 {
			t.Errorf("left are %q", left)
		}
		if s := b.m.Status(); len(s.Prefill) > 0 || s.Cache.Parts > 0 {
			t.Errorf("status is %+v and %+v", s.Prefill, s.Cache)
		}
	})
}
