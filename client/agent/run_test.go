package agent_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/patchkeep/patchkeep/client/agent"
	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// looker runs the loop in a bubble of time, and writes down when it looks.
type looker struct {
	agent.Loop
	t      *testing.T
	mu     sync.Mutex    // held by the loop while it reads offset or adds a look, and by pass before it lets it run
	offset time.Duration // of the wall clock, from what passes
	begun  time.Time
	looks  []time.Duration // since the beginning, by the wall clock
	answer func(n int) (*agent.Result, error)
	stop   func()
}

// looking starts a loop; what is not set is an hour's interval at home.
func looking(t *testing.T, change func(*looker)) *looker {
	l := &looker{t: t, begun: time.Now(), answer: func(int) (*agent.Result, error) { return nil, nil }}
	l.Interval = time.Hour
	l.Network = func() string { return "home" }
	l.Now = func() time.Time {
		l.mu.Lock()
		defer l.mu.Unlock()
		return time.Now().Add(l.offset)
	}
	l.Look = func(context.Context) (*agent.Result, error) {
		at := l.Now().Sub(l.begun)
		l.mu.Lock()
		l.looks = append(l.looks, at)
		n := len(l.looks)
		l.mu.Unlock()
		return l.answer(n)
	}
	if change != nil {
		change(l)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { l.Run(ctx); close(done) }()
	l.stop = func() { cancel(); <-done }
	synctest.Wait()
	return l
}

// pass lets time pass, and returns how many looks there were meanwhile.
func (l *looker) pass(d time.Duration) int {
	l.mu.Lock()
	before := len(l.looks)
	l.mu.Unlock()
	time.Sleep(d)
	synctest.Wait()
	return len(l.looks) - before
}

func TestLooksAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := looking(t, nil)
		defer l.stop()
		if len(l.looks) != 1 {
			t.Fatalf("%d looks at the beginning", len(l.looks))
		}
		l.pass(100 * time.Hour)
		different := map[time.Duration]bool{}
		for i := 1; i < len(l.looks); i++ {
			gap := l.looks[i] - l.looks[i-1]
			if gap < 45*time.Minute || gap > 75*time.Minute {
				t.Errorf("%s between two looks", gap)
			}
			different[gap] = true
		}
		if n := len(l.looks); n < 80 || n > 134 || len(different) < n/2 {
			t.Errorf("%d looks in 100 hours, %d different waits", n, len(different))
		}
	})
}

// Machines that are switched on together do not ask together.
func TestFirstLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := map[time.Duration]bool{}
		for range 20 {
			l := looking(t, func(l *looker) { l.Spread = 5 * time.Minute })
			if l.pass(5*time.Minute) != 1 {
				t.Fatalf("looks %v within the spread", l.looks)
			}
			first[l.looks[0]] = true
			l.stop()
		}
		if len(first) < 15 {
			t.Errorf("20 machines begin at %d moments", len(first))
		}
	})
}

func TestFailuresOfTheNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := looking(t, func(l *looker) {
			l.answer = func(n int) (*agent.Result, error) {
				if n <= 10 {
					return nil, fmt.Errorf("refresh: %w", tuf.ErrOffline)
				}
				return nil, errors.New("signed by nobody")
			}
		})
		defer l.stop()
		l.pass(24 * time.Hour)
		want := time.Minute
		for i := 1; i < 20; i++ {
			gap := l.looks[i] - l.looks[i-1]
			if i > 10 {
				want = time.Hour // what does not pass is not asked again soon
			}
			if gap < want*3/4 || gap > want*5/4 {
				t.Errorf("look %d comes after %s, want about %s", i+1, gap, want)
			}
			want = min(want*2, time.Hour)
		}
	})
}

func TestLookAfterSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := looking(t, nil)
		defer l.stop()
		l.pass(10 * time.Minute)
		l.offset += 20 * time.Minute // the lid was closed; the look was not due yet
		if n := l.pass(2 * time.Minute); n != 1 {
			t.Errorf("%d looks after waking up: %v", n, l.looks)
		}
		l.offset += 10 * time.Hour
		if n := l.pass(2 * time.Minute); n != 1 {
			t.Errorf("%d looks after a night: %v", n, l.looks)
		}
		l.offset -= 1000 * time.Hour // somebody sets the clock right
		l.pass(time.Minute)
		if n := l.pass(100 * time.Minute); n < 1 || n > 3 {
			t.Errorf("%d looks in 100 minutes after the clock was set back", n)
		}
	})
}

func TestLookAfterMoving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		where := "home"
		l := looking(t, func(l *looker) { l.Network = func() string { return where } })
		defer l.stop()
		l.pass(10 * time.Minute)
		where = "" // on the train
		if n := l.pass(5 * time.Minute); n != 0 {
			t.Errorf("%d looks without a network", n)
		}
		where = "hotel"
		if n := l.pass(2 * time.Minute); n != 1 {
			t.Errorf("%d looks after a move: %v", n, l.looks)
		}
		// A network that comes and goes is not followed at each turn.
		for i := range 20 {
			where = fmt.Sprint("cell ", i)
			l.pass(15 * time.Second)
		}
		if n := len(l.looks); n > 8 {
			t.Errorf("%d looks: %v", n, l.looks)
		}
	})
}

func TestLookWhenATimeComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var opens time.Time
		l := looking(t, func(l *looker) {
			opens = l.begun.Add(20 * time.Minute)
			l.answer = func(int) (*agent.Result, error) {
				return &agent.Result{Report: &agent.Report{Patches: []agent.Item{
					{State: agent.StateWaiting, Until: opens, Trace: trace("window")},
					{State: agent.StateWaiting, Until: l.begun.Add(-time.Second), Trace: trace("window")}, // is over
				}}}, nil
			}
		})
		defer l.stop()
		if n := l.pass(20*time.Minute - time.Second); n != 0 {
			t.Errorf("%d looks before the window", n)
		}
		if n := l.pass(6 * time.Minute); n != 1 {
			t.Errorf("%d looks as it opens: %v", n, l.looks)
		}
		opens = time.Now().Add(1000 * time.Hour)
		if n := l.pass(2 * time.Hour); n < 1 || n > 3 {
			t.Errorf("%d looks in two hours while a window is far off", n)
		}
	})
}

func trace(last string) []rollout.Check { return []rollout.Check{{Name: last}} }

func TestLookMoreOftenWhileTheBatteryHoldsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := looking(t, func(l *looker) {
			l.answer = func(int) (*agent.Result, error) {
				return &agent.Result{Report: &agent.Report{Patches: []agent.Item{{State: agent.StateWaiting, Trace: trace("power")}}}}, nil
			}
		})
		defer l.stop()
		if n := l.pass(time.Hour); n < 4 || n > 8 {
			t.Errorf("%d looks in an hour", n)
		}
	})
}

func TestLookWhenAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wake := make(chan struct{}, 1)
		l := looking(t, func(l *looker) { l.Wake = wake })
		defer l.stop()
		l.pass(time.Minute)
		wake <- struct{}{}
		if n := l.pass(time.Millisecond); n != 1 {
			t.Errorf("%d looks", n)
		}
	})
}
