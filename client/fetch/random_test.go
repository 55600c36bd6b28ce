package fetch_test

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"

	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/fetch/faulty"
	"github.com/patchkeep/patchkeep/client/tuf"
)

// However many mirrors are asked at once and whatever they do: never a wrong
// file, the right one if one of them is good, and on top of what a failure left
// too. (The agent's own thousand runs are in cmd/patchkeep-agent.)
func TestRandomFaults(t *testing.T) {
	seed, runs := uint64(20261125), uint64(100)
	if s := os.Getenv("PATCHKEEP_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	if testing.Short() {
		runs = 40
	}
	objects := []object{newObject(0), newObject(1), newObject(mib + 1), newObject(4*mib + 77), newObject(9 * mib), newObject(12*mib + 5)}
	run := func(t *testing.T, n uint64) {
		rng := rand.New(rand.NewPCG(seed, n))
		network := faulty.New()
		defer network.Close()
		o := objects[rng.IntN(len(objects))]
		origin := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(o.data) })
		mirrors := 1 + rng.IntN(4)
		good := rng.IntN(6)
		var urls, what []string
		for i := range mirrors {
			f := faulty.Honest
			if i != good {
				f = faulty.Faults[rng.IntN(len(faulty.Faults))]
			}
			urls, what = append(urls, network.Add(origin, f, nil, rng.Uint64())+"/object"), append(what, f.Name)
		}
		r := request(t, o, urls...)
		r.Peers = 1 + rng.IntN(4)
		if rng.IntN(3) > 0 {
			r.Blocks = o.blocks
		}
		if rng.IntN(4) == 0 { // of an older version
			base := bytes.Clone(o.data)
			for i := rng.IntN(3 * mib); i < len(base); i += 3 * mib {
				base[i] ^= 1
			}
			name := filepath.Join(t.TempDir(), "base")
			if err := os.WriteFile(name, base, 0o600); err != nil {
				t.Fatal(err)
			}
			r.Bases = []fetch.Base{{Path: name}}
		}
		var last int64
		r.Progress = func(done, total int64) {
			if done < last && r.Blocks != nil || done > total {
				t.Errorf("progress %d after %d of %d", done, last, total)
			}
			last = done
		}
		_, err := fetch.New(fetch.Options{HTTP: network.Client()}).File(t.Context(), r)
		if t.Failed() {
			return
		}
		switch {
		case err == nil:
			want(t, r, o)
			return
		case good < mirrors:
			t.Errorf("run %d of seed %d, %d bytes, list %t, %d peers of %q, one of them good: %v",
				n, seed, len(o.data), r.Blocks != nil, r.Peers, what, err)
		case !errors.Is(err, tuf.ErrOffline) && !errors.Is(err, tuf.ErrNotTrusted):
			t.Errorf("run %d of seed %d from %q: %v", n, seed, what, err)
		}
		if _, err := os.Stat(r.Dest); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("run %d of seed %d from %q: there is a file after an error", n, seed, what)
		}
		r.Progress = nil
		r.URLs = []string{network.Add(origin, faulty.Honest, nil, 0) + "/object"}
		if _, err := fetch.New(fetch.Options{HTTP: network.Client()}).File(t.Context(), r); err != nil {
			t.Errorf("run %d of seed %d from %q, then from a good one: %v", n, seed, what, err)
			return
		}
		want(t, r, o)
	}
	for part := range uint64(4) {
		t.Run("part "+strconv.FormatUint(part, 10), func(t *testing.T) {
			t.Parallel()
			for n := part; n < runs; n += 4 {
				synctest.Test(t, func(t *testing.T) { run(t, n) })
			}
		})
	}
}
