package line

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

func parse(t testing.TB, s string) *Calendar {
	t.Helper()
	c, err := ParseCalendar(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// clock is a wall clock that stood at start when the test's own began.
func clock(start time.Time) func() time.Time {
	begun := time.Now()
	return func() time.Time { return start.Add(time.Since(begun)) }
}

// flood asks for n bytes in pieces and returns when it has them.
func flood(ctx context.Context, l *Limiter, n, piece int) error {
	for n > 0 {
		p := min(n, piece)
		if err := l.WaitN(ctx, p); err != nil {
			return err
		}
		n -= p
	}
	return nil
}

func between(t *testing.T, what string, got, least, most time.Duration) {
	t.Helper()
	if got < least || got > most {
		t.Errorf("%s took %v, want %v to %v", what, got, least, most)
	}
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(parse(t, "*=20MB/s"), nil)
		begun := time.Now()
		if err := flood(t.Context(), l, 100_000_000, 256<<10); err != nil {
			t.Fatal(err)
		}
		between(t, "100 MB at 20 MB/s", time.Since(begun), 4900*time.Millisecond, 5*time.Second)
		if l.Rate() != 20_000_000 {
			t.Errorf("rate is %d", l.Rate())
		}
		time.Sleep(time.Hour) // of idleness saves up no more than a burst
		begun = time.Now()
		if err := flood(t.Context(), l, 20_000_000, 256<<10); err != nil {
			t.Fatal(err)
		}
		between(t, "20 MB after an idle hour", time.Since(begun), 900*time.Millisecond, time.Second)
	})
}

func TestUnlimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, l := range []*Limiter{NewLimiter(nil, nil), NewLimiter(parse(t, "*=unlimited"), time.Now)} {
			begun := time.Now()
			if err := flood(t.Context(), l, 1<<30, 256<<10); err != nil {
				t.Fatal(err)
			}
			between(t, "1 GiB without a limit", time.Since(begun), 0, 0)
		}
	})
}

// A large wait takes the whole burst and more.
func TestMoreThanABurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(parse(t, "*=16KiB/s"), nil)
		begun := time.Now()
		if err := l.WaitN(t.Context(), 256<<10); err != nil {
			t.Fatal(err)
		}
		between(t, "256 KiB at 16 KiB/s", time.Since(begun), 12*time.Second, 13*time.Second)
	})
}

// Each transfer gets the same share, whatever it asks for at once.
func TestFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(parse(t, "*=1MB/s"), nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var got [4]int // by transfer
		var wg sync.WaitGroup
		for i := range got {
			piece := 32 << 10 << i
			wg.Go(func() {
				for l.WaitN(ctx, piece) == nil {
					got[i] += piece
				}
			})
		}
		wg.Wait()
		for i, n := range got {
			if n < 14_500_000 || n > 15_500_000 {
				t.Errorf("transfer %d had %d bytes of 60 MB, want a quarter", i, n)
			}
		}
	})
}

func TestFollowsCalendar(t *testing.T) {
	monday := time.Date(2026, 11, 23, 7, 59, 58, 0, time.UTC)
	for _, c := range []struct {
		name, calendar string
		bytes          int
		least, most    time.Duration
	}{
		// 2 s × 100 kB/s, then the rest at the new rate.
		{"faster", "08:00-09:00=10MB/s,*=100kB/s", 10_000_000, 2900 * time.Millisecond, 3400 * time.Millisecond},
		{"slower", "08:00-09:00=100kB/s,*=10MB/s", 21_000_000, 8 * time.Second, 12 * time.Second},
		// A piece at 1 kB/s would take half a minute: nobody waits for it at eight.
		{"unlimited", "08:00-09:00=unlimited,*=1kB/s", 10_000_000, 2 * time.Second, 3 * time.Second},
		{"limited", "08:00-09:00=100kB/s,*=unlimited", 10_000_000, 0, 0},
		{"resumed", "08:00-09:00=10MB/s,*=pause", 10_000_000, 2900 * time.Millisecond, 4 * time.Second},
		{"paused", "08:00-09:00=pause,*=10MB/s", 30_000_000, time.Hour + 2*time.Second, time.Hour + 4*time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := NewLimiter(parse(t, c.calendar), clock(monday))
				begun := time.Now()
				if err := flood(t.Context(), l, c.bytes, 256<<10); err != nil {
					t.Fatal(err)
				}
				between(t, fmt.Sprintf("%d bytes", c.bytes), time.Since(begun), c.least, c.most)
			})
		})
	}
}

func TestSetCalendar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(parse(t, "*=pause"), nil)
		var wg sync.WaitGroup
		var took [3]time.Duration
		begun := time.Now()
		for i := range took {
			wg.Go(func() {
				if err := l.WaitN(t.Context(), 100_000); err != nil {
					t.Error(err)
				}
				took[i] = time.Since(begun)
			})
		}
		time.Sleep(10 * time.Minute)
		if l.Rate() != Paused {
			t.Errorf("rate is %d", l.Rate())
		}
		l.SetCalendar(nil)
		wg.Wait()
		for _, d := range took {
			between(t, "a wait that a new calendar ended", d, 10*time.Minute, 10*time.Minute+step)
		}
		if l.Calendar() != nil {
			t.Error("the old calendar is still there")
		}
	})
}

// Whoever gives up leaves at once, also from the queue, and takes nothing along.
func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(parse(t, "*=64KiB/s"), nil)
		if err := flood(t.Context(), l, minBurst, minBurst); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if err := l.WaitN(ctx, 32<<10); !errors.Is(err, context.Canceled) {
					t.Errorf("wait was ended by %v", err)
				}
			})
		}
		synctest.Wait()
		begun := time.Now()
		cancel()
		wg.Wait()
		between(t, "leaving", time.Since(begun), 0, 0)
		if err := l.WaitN(t.Context(), 64<<10); err != nil {
			t.Fatal(err)
		}
		between(t, "64 KiB at 64 KiB/s", time.Since(begun), time.Second, time.Second)
		if err := l.WaitN(ctx, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("wait that was over before: %v", err)
		}
	})
}

// TestNeverMore: whoever asks for whatever and whenever, in no window of time
// comes more than rate × window + burst.
func TestNeverMore(t *testing.T) {
	type grant struct {
		at time.Duration
		n  int
	}
	rapid.Check(t, func(rt *rapid.T) {
		kbs := rapid.IntRange(1, 50_000).Draw(rt, "kB/s")
		type ask struct{ pause, n int }
		asks := rapid.SliceOfN(rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) ask {
			return ask{rapid.IntRange(0, 300).Draw(rt, "pause in ms"), rapid.IntRange(1, 256<<10).Draw(rt, "bytes")}
		}), 1, 20), 1, 6).Draw(rt, "asks of each")
		var mu sync.Mutex
		var grants []grant
		synctest.Test(t, func(t *testing.T) {
			l := NewLimiter(parse(t, fmt.Sprintf("*=%dkB/s", kbs)), nil)
			begun := time.Now()
			var wg sync.WaitGroup
			for _, list := range asks {
				wg.Go(func() {
					for _, a := range list {
						time.Sleep(time.Duration(a.pause) * time.Millisecond)
						// In pieces, so that each is seen when it comes.
						for n := a.n; n > 0; n -= pieceSize {
							p := min(n, pieceSize)
							if err := l.WaitN(t.Context(), p); err != nil {
								t.Error(err)
							}
							mu.Lock()
							grants = append(grants, grant{time.Since(begun), p})
							mu.Unlock()
						}
					}
				})
			}
			wg.Wait()
		})
		speed := float64(kbs) * 1000
		for i := range grants {
			sum := 0
			for j := i; j < len(grants); j++ {
				sum += grants[j].n
				window := (grants[j].at - grants[i].at).Seconds()
				if most := speed*window + float64(burst(int64(speed))); float64(sum) > math.Ceil(most)+1 {
					rt.Fatalf("%d bytes in %v s at %v bytes/s, at most %v may be", sum, window, speed, most)
				}
			}
		}
	})
}
