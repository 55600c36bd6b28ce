package fetch_test

import (
	"encoding/base64"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/fetch"
	"github.com/patchkeep/patchkeep/client/fetch/faulty/unread"
)

// A download that is killed at any moment is gone on with, and at most two
// blocks are fetched again: from one mirror or several at once, with a block
// list or without, with a base or without.
func TestKillAtManyMoments(t *testing.T) {
	const size = 12*mib + 345
	o := newObject(size)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	moments := 25
	if testing.Short() {
		moments = 3
	}
	for _, c := range []struct {
		name   string
		list   bool
		peers  int
		shared int // bytes that a base has
	}{
		{"block list", true, 1, 0},
		{"no block list", false, 1, 0},
		{"two peers", true, 2, 0},
		{"two peers and a base", true, 2, 5 * mib},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(uint64(len(c.name)), 1))
			for range moments {
				// The kill comes when so many bytes were sent, at a rate at which little
				// is on its way.
				at := int64(rng.IntN(size - c.shared))
				var sent atomic.Int64
				reached := make(chan struct{})
				tell := sync.OnceFunc(func() { close(reached) })
				var urls []string
				for range c.peers {
					urls = append(urls, newMirror(t, pacedUntil(o, 24*mib, &sent, at, tell)).url)
				}
				r := request(t, o, urls...)
				r.Peers = c.peers
				args := append([]string{strconv.Itoa(size), "", r.Dest, ""}, urls...)
				if c.list {
					r.Blocks = o.blocks
					args[1] = base64.StdEncoding.EncodeToString(o.blocks)
				}
				if c.shared > 0 {
					args[3] = filepath.Join(t.TempDir(), "base")
					if err := os.WriteFile(args[3], o.data[3*mib:3*mib+c.shared], 0o600); err != nil {
						t.Fatal(err)
					}
				}
				cmd := exec.Command(exe, args...)
				cmd.Env = append(os.Environ(), "PATCHKEEP_TEST_ROLE=download")
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				<-reached
				before := sent.Load()
				for _, url := range urls {
					host, _, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
					before -= unread.Bytes(t, host)
				}
				cmd.Process.Kill()
				cmd.Wait()

				if c.shared > 0 { // gone meanwhile: what was copied is not lost
					os.Remove(args[3])
				}
				var again atomic.Int64
				r.URLs = []string{newMirror(t, pacedUntil(o, 400*mib, &again, -1, nil)).url}
				if _, err := fetch.New(patient).File(t.Context(), r); err != nil {
					t.Fatal(err)
				}
				want(t, r, o)
				twice := before + again.Load() + int64(c.shared) - size
				if allowed := int64(2*mib + 64<<10); unread.Known && twice > allowed { // what a program's buffers may hold
					t.Errorf("killed at %d: %d bytes came twice", at, twice)
				}
			}
		})
	}
}

// pacedUntil serves at a rate until so much was sent in all, by all that share
// sent; then it says so and sends nothing more. at < 0: it just serves.
func pacedUntil(o object, perSecond int, sent *atomic.Int64, at int64, reached func()) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		good(o)(&slow{&until{w, r, sent, at, reached}, time.Now(), perSecond, 0, sent}, r)
	}
}

type until struct {
	http.ResponseWriter
	r       *http.Request
	sent    *atomic.Int64
	at      int64
	reached func()
}

func (u *until) Write(p []byte) (int, error) {
	if u.at >= 0 && u.sent.Load() >= u.at {
		u.reached()
		<-u.r.Context().Done()
		return 0, u.r.Context().Err()
	}
	n, err := u.ResponseWriter.Write(p)
	_ = http.NewResponseController(u.ResponseWriter).Flush()
	return n, err
}
