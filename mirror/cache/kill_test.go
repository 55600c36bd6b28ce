package cache_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/mirror/cache"
)

// TestMain lets this binary be a process that uses a cache until it is killed:
// arguments directory and seed; or directory, number of an object, and how many
// bytes of it to write and then to wait.
func TestMain(m *testing.M) {
	if os.Getenv("PATCHKEEP_TEST_ROLE") != "cache" {
		os.Exit(m.Run())
	}
	seed, _ := strconv.ParseUint(os.Args[2], 10, 64)
	stop := -1
	if len(os.Args) > 3 {
		stop, _ = strconv.Atoi(os.Args[3])
	}
	fmt.Println("not killed:", use(context.Background(), os.Args[1], seed, stop))
	os.Exit(1)
}

// killed are the objects of that process: with block lists and without.
func killed(i int) ([]byte, cache.Object) {
	sizes := []int{5*mib/2 + 9, 3 * mib, 700 * kib, 5 * mib / 2}
	data := content(uint64(i), sizes[i])
	return data, objectOf(data, i%2 == 1)
}

const kinds = 4

func use(ctx context.Context, dir string, seed uint64, stop int) error {
	c, err := cache.Open(ctx, cache.Config{Dir: dir})
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(seed, 0))
	for {
		fmt.Println("step")
		i := r.IntN(kinds)
		if stop >= 0 {
			i = int(seed)
		}
		data, o := killed(i)
		if c.Has(o.SHA256, o.Size) {
			c.Shrink(ctx, 1)
			continue
		}
		w, err := c.Create(ctx, o)
		if err != nil {
			return err
		}
		for w.Written() < o.Size {
			if stop >= 0 && w.Written() == int64(stop) {
				fmt.Println("written")
				select {}
			}
			n := min(o.Size-w.Written(), 1+r.Int64N(600*kib))
			if stop >= 0 {
				n = min(n, int64(stop)-w.Written())
			}
			if _, err := w.Write(data[w.Written() : w.Written()+n]); err != nil {
				return err
			}
			fmt.Println("step")
			if stop < 0 && r.IntN(8) == 0 {
				break
			}
		}
		switch {
		case w.Written() == o.Size:
			h, err := w.Commit(ctx)
			if err != nil {
				return err
			}
			h.Close()
		case r.IntN(4) == 0:
			w.Abort()
		case r.IntN(4) == 0:
			if err := w.Reset(); err != nil {
				return err
			}
			w.Suspend()
		default:
			w.Suspend()
		}
	}
}

// kill runs that process until it has printed a line so many times, and kills
// it a moment later.
func kill(t *testing.T, line string, times int, args ...string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), "PATCHKEEP_TEST_ROLE=cache")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for times > 0 && lines.Scan() {
		if lines.Text() == line {
			times--
		}
	}
	if times > 0 {
		t.Fatalf("it ended: %v", cmd.Wait())
	}
	time.Sleep(rand.N(3 * time.Millisecond)) // the moment is meant to be any
	cmd.Process.Kill()
	for lines.Scan() {
		if lines.Text() != "step" {
			t.Error(lines.Text())
		}
	}
	cmd.Wait()
}

// TestKill: whenever the process is killed, what is in the cache is sound, and
// what is not can be gone on with.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	wentOn := 0
	for round := range 30 {
		kill(t, "step", 1+rand.IntN(80), dir, strconv.Itoa(round))
		r, err := cache.Check(t.Context(), dir, func(file string, err error) { t.Errorf("round %d: %s: %v", round, file, err) })
		if err != nil {
			t.Fatal(err)
		}
		c := open(t, cache.Config{Dir: dir})
		if st := c.Stats(); st.Objects != r.Objects || st.Unsure != r.Objects {
			t.Errorf("round %d: %+v, %+v", round, r, st)
		}
		if round%3 == 0 { // else the next one finds what this one left
			for i := range kinds {
				data, o := killed(i)
				w, err := c.Create(t.Context(), o)
				if err != nil {
					t.Fatal(err)
				}
				if w.Written() > 0 {
					wentOn++
				}
				finish(t, c, w, data)
			}
		}
		if round%2 == 0 {
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if wentOn == 0 {
		t.Error("nothing was ever gone on with")
	}
}

// TestKillKeepsAll: of what a killed process has written nothing is fetched
// twice, where the system tells that the machine has not stopped.
func TestKillKeepsAll(t *testing.T) {
	_, err := os.Stat("/proc/sys/kernel/random/boot_id")
	for i := range 2 { // with a list and without
		for _, n := range []int64{300 * kib, 2*mib + 11} {
			dir := t.TempDir()
			kill(t, "written", 1, dir, strconv.Itoa(i), strconv.FormatInt(n, 10))
			c := open(t, cache.Config{Dir: dir})
			data, o := killed(i)
			w := create(t, c, o)
			want := n
			if err != nil {
				want = 0
				if o.Blocks != nil {
					want = n / mib * mib
				}
			}
			if w.Written() != want {
				t.Errorf("object %d goes on at %d, want %d", i, w.Written(), want)
			}
			finish(t, c, w, data)
		}
	}
}
