//go:build unix

package cmd_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"golang.org/x/sync/errgroup"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
	"github.com/patchkeep/patchkeep/repo/store/storeurl"
)

// rehearsalMachines is how many machines each ring has, unless
// PATCHKEEP_REHEARSAL says otherwise.
const rehearsalMachines = 20

// memKey is a key in memory.
type memKey struct {
	id   string
	priv ed25519.PrivateKey
}

func (k memKey) KeyID() string            { return k.id }
func (k memKey) Public() crypto.PublicKey { return k.priv.Public() }
func (k memKey) Sign(_ context.Context, payload []byte) ([]byte, error) {
	return ed25519.Sign(k.priv, payload), nil
}

func newMemKey(t *testing.T) memKey {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := metadata.KeyFromPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	id, err := key.ID()
	if err != nil {
		t.Fatal(err)
	}
	return memKey{id, priv}
}

// memKeys is a keyring; each approver has one of his own.
type memKeys map[string]memKey

func (k memKeys) find(_ context.Context, id string) (repo.Signer, error) {
	if key, ok := k[id]; ok {
		return key, nil
	}
	return nil, fmt.Errorf("key %.8s: %w", id, fs.ErrNotExist)
}

// rehearsal is a repository behind a server, and machines in three rings.
type rehearsal struct {
	*testing.T
	dir      string // of the store
	url      string
	root     []byte
	keys     memKeys   // all but the council's
	council  []memKeys // each with the online keys too
	machines map[string][]*machine
	now      atomic.Int64 // nanoseconds past begun
	begun    time.Time
}

type machine struct {
	id, dir string
	done    []string // "1.1 rolled-back", of each apply
}

// tracked is a program that is installed by writing its version down. Bad ones
// fail their verification, and write the old version back.
func tracked(version, check string) *patch.Patch {
	return &patch.Patch{
		Format: 1, ID: patch.MakeID("hello", version, "any"), Product: "hello", Version: version, Platform: "any", Kind: patch.KindCommand,
		Released: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		Install:  &patch.Recipe{Argv: []string{"sh", "-c", `echo "$1" >"$2/now"`, "sh", "{version}", "{root}"}},
		Verify:   &patch.Recipe{Argv: []string{check}},
		Rollback: &patch.Recipe{Argv: []string{"sh", "-c", `echo "$1" >"$2/now"`, "sh", "{previous}", "{root}"}},
		Detect:   &patch.Recipe{Argv: []string{"sh", "-c", `cat "$1/now" 2>/dev/null || true`, "sh", "{root}"}},
	}
}

func (r *rehearsal) clock() time.Time { return r.begun.Add(time.Duration(r.now.Load())) }

func (r *rehearsal) pass(d time.Duration) {
	r.Helper()
	r.now.Add(int64(d))
	_, err := r.with(r.keys).Renew(r.Context(), []string{"timestamp"}, false)
	r.must(err)
}

func (r *rehearsal) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rehearsal) with(keys memKeys) *repo.Repository {
	r.Helper()
	s, err := storeurl.Open(r.Context(), r.dir)
	r.must(err)
	return repo.Open(s, repo.Config{Keys: keys.find, Now: r.clock})
}

func (r *rehearsal) publish(version, check string) {
	r.Helper()
	_, _, err := r.with(r.keys).AddPatch(r.Context(), tracked(version, check), "hello.bin", bytes.NewReader([]byte(version)), -1, repo.AddOptions{})
	r.must(err)
}

// poll has every machine of the rings look and apply, eight at a time.
func (r *rehearsal) poll(rings ...string) {
	r.Helper()
	var g errgroup.Group
	g.SetLimit(8)
	for _, ring := range rings {
		for _, m := range r.machines[ring] {
			g.Go(func() error {
				a, err := agent.Open(agent.Options{Dir: m.dir, Now: r.clock, MaxBases: -1})
				if err != nil {
					return err
				}
				res, err := a.Apply(r.Context(), agent.ApplyOptions{})
				if err != nil && !errors.Is(err, agent.ErrFailed) {
					return fmt.Errorf("machine %s: %w", m.id, err)
				}
				for _, d := range res.Done {
					m.done = append(m.done, d.Version+" "+string(d.Step))
				}
				return nil
			})
		}
	}
	r.must(g.Wait())
}

// installed counts what is installed in a ring, by version.
func (r *rehearsal) installed(ring string) map[string]int {
	r.Helper()
	count := make(map[string]int)
	for _, m := range r.machines[ring] {
		data, err := os.ReadFile(filepath.Join(m.dir, "programs", "now"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.Fatal(err)
		}
		count[strings.TrimSpace(string(data))]++
	}
	return count
}

func (r *rehearsal) want(ring, version string) {
	r.Helper()
	if got := r.installed(ring); got[version] != len(r.machines[ring]) {
		r.Errorf("ring %s has %v, want %s on all %d", ring, got, version, len(r.machines[ring]))
	}
}

func newRehearsal(t *testing.T, perRing int) *rehearsal {
	r := &rehearsal{T: t, dir: t.TempDir(), keys: memKeys{}, machines: make(map[string][]*machine), begun: time.Now().Truncate(time.Second)}
	cfg := repo.InitConfig{Roles: make(map[string]repo.RoleConfig), Products: []string{"hello"}}
	online := memKeys{}
	for _, role := range repo.Roles(rollout.DefaultRings, cfg.Products) {
		if role == "ring-servers" {
			continue
		}
		key := newMemKey(t)
		r.keys[key.id] = key
		if role == "snapshot" || role == "timestamp" {
			online[key.id] = key
		}
		cfg.Roles[role] = repo.RoleConfig{Keys: []crypto.PublicKey{key.Public()}}
	}
	all := memKeys{}
	for id, key := range r.keys {
		all[id] = key
	}
	servers := repo.RoleConfig{Threshold: 2}
	for range 3 {
		key := newMemKey(t)
		member := memKeys{key.id: key}
		for id, key := range online {
			member[id] = key
		}
		all[key.id] = key
		r.council = append(r.council, member)
		servers.Keys = append(servers.Keys, key.Public())
	}
	cfg.Roles["ring-servers"] = servers
	_, err := r.with(all).Init(t.Context(), cfg)
	r.must(err)
	r.root, err = os.ReadFile(filepath.Join(r.dir, "metadata", "1.root.json"))
	r.must(err)
	srv := httptest.NewServer(http.FileServer(http.Dir(r.dir)))
	t.Cleanup(srv.Close)
	r.url = srv.URL

	r.publish("1.0", "true")
	for _, ring := range rollout.DefaultRings {
		_, err := r.with(all).StartRollout(t.Context(), repo.Rollout{Product: "hello", Version: "1.0", Ring: ring}, false)
		r.must(err)
	}
	for ring, after := range map[string]string{"key-users": "users", "servers": "key-users"} {
		_, err := r.with(r.keys).SetPolicy(t.Context(), ring, func(p *rollout.Policy) error {
			p.After, p.Soak, p.Steps = after, 24*3600, "50%@0h,100%@24h"
			return nil
		}, false)
		r.must(err)
	}
	r.enroll(perRing)
	return r
}

func (r *rehearsal) enroll(perRing int) {
	var g errgroup.Group
	g.SetLimit(8)
	for _, ring := range rollout.DefaultRings {
		for i := range perRing {
			m := &machine{id: fmt.Sprintf("%s-%d", ring, i)}
			m.dir = filepath.Join(r.TempDir(), "m")
			r.machines[ring] = append(r.machines[ring], m)
			g.Go(func() error {
				_, err := agent.Enroll(r.Context(), agent.EnrollOptions{
					Dir: m.dir, Servers: []string{r.url}, Root: r.root, Ring: ring, MachineID: m.id, Now: r.clock,
					InstallRoot: filepath.Join(m.dir, "programs"), Fetch: fetch.Options{Attempts: 2},
				})
				if err != nil {
					return err
				}
				return os.MkdirAll(filepath.Join(m.dir, "programs"), 0o700)
			})
		}
	}
	r.must(g.Wait())
}

// TestRehearsal: a patch that fails on a tenth of a ring is stopped, and is on
// no other machine; what mends it goes from ring to ring, to the servers with
// two of three signatures.
func TestRehearsal(t *testing.T) {
	if testing.Short() {
		t.Skip("many machines")
	}
	perRing := rehearsalMachines
	if n, err := strconv.Atoi(os.Getenv("PATCHKEEP_REHEARSAL")); err == nil {
		perRing = n
	}
	r := newRehearsal(t, perRing)
	ctx := t.Context()
	everyone := rollout.DefaultRings
	r.poll(everyone...)
	for _, ring := range everyone {
		r.want(ring, "1.0")
	}

	// 1.1 does not work. A tenth of the users get it, and are rolled back.
	r.publish("1.1", "false")
	steps, err := rollout.ParseSteps("10%@0h,100%@24h")
	r.must(err)
	start := repo.Rollout{Product: "hello", Version: "1.1", Ring: "users", Steps: steps}
	_, err = r.with(r.keys).StartRollout(ctx, start, false)
	r.must(err)
	entries, _, _, err := r.with(nil).Preview(ctx, start)
	r.must(err)
	var ids []string
	for _, m := range r.machines["users"] {
		ids = append(ids, m.id)
	}
	foretold := make(map[string]bool)
	for _, id := range rollout.Forecast(&entries[0], ids, 0)[0].IDs {
		foretold[id] = true
	}
	r.poll(everyone...)
	for _, m := range r.machines["users"] {
		if tried := len(m.done) == 2; tried != foretold[m.id] || tried && m.done[1] != "1.1 rolled-back" {
			t.Errorf("machine %s did %v; foretold to be among the first: %t", m.id, m.done, foretold[m.id])
		}
	}
	t.Logf("%d of %d users were the first", len(foretold), len(ids))

	// Anyone on call stops it. Nobody gets it any more, however late it is.
	halts, _, err := r.with(r.keys).AddHalt(ctx, repo.HaltScope{Product: "hello", Version: "1.1"}, "fails its verification", "on call", false)
	r.must(err)
	r.pass(48 * time.Hour)
	r.poll(everyone...)
	for _, ring := range everyone {
		r.want(ring, "1.0")
		for _, m := range r.machines[ring] {
			if tried := len(m.done) > 1; tried && !foretold[m.id] {
				t.Errorf("machine %s was touched: %v", m.id, m.done)
			}
		}
	}
	if _, err := r.with(r.keys).LiftHalts(ctx, []string{halts[0].ID}, []string{"servers"}, false); !errors.Is(err, repo.ErrKeys) {
		t.Errorf("the halt was lifted for the servers without their council: %v", err)
	}

	// 1.2 mends it, and goes the whole way.
	r.publish("1.2", "true")
	_, err = r.with(r.keys).StartRollout(ctx, repo.Rollout{Product: "hello", Version: "1.2", Ring: "users", Steps: steps}, false)
	r.must(err)
	promote := func(from, to string, keys memKeys) error {
		_, err := r.with(keys).StartRollout(ctx, repo.Rollout{Product: "hello", Version: "1.2", Ring: to, From: from}, false)
		return err
	}
	r.pass(24 * time.Hour)
	r.poll(everyone...)
	r.want("users", "1.2")
	r.want("key-users", "1.0")
	if err := promote("users", "key-users", r.keys); !errors.Is(err, repo.ErrPolicy) {
		t.Errorf("promoted without its soak time: %v", err)
	}
	r.pass(24 * time.Hour)
	r.must(promote("users", "key-users", r.keys))
	r.pass(24 * time.Hour)
	r.poll(everyone...)
	r.want("key-users", "1.2")
	r.want("servers", "1.0")

	// The servers' council: one member alone cannot, nor can another ring.
	r.pass(24 * time.Hour)
	for name, keys := range map[string]memKeys{"one member": r.council[0], "the users' ring": r.keys} {
		if err := promote("key-users", "servers", keys); !errors.Is(err, repo.ErrKeys) {
			t.Errorf("promoted to the servers by %s: %v", name, err)
		}
	}
	two := memKeys{}
	for _, member := range r.council[1:] {
		for id, key := range member {
			two[id] = key
		}
	}
	r.must(promote("key-users", "servers", two))
	r.pass(24 * time.Hour)
	r.poll(everyone...)
	for _, ring := range everyone {
		r.want(ring, "1.2")
	}
	for _, m := range r.machines["servers"] {
		if len(m.done) != 2 {
			t.Errorf("server %s did %v, want 1.0 and 1.2 alone", m.id, m.done)
		}
	}
}
