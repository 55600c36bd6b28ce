package fill

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// errSuperseded: the bytes of this flow were wrong, and the fill began again.
var errSuperseded = errors.New("the object had to be fetched again")

const (
	// Readers are woken at most this often, so that thousands of them do not
	// cost more than the transfer: wakePerReader for each, within the bounds.
	minWake       = 4 * time.Millisecond
	maxWake       = 100 * time.Millisecond
	wakePerReader = 50 * time.Microsecond
)

// flow is how far readers may read, and how they hear of it.
type flow struct {
	released atomic.Int64 // bytes from the start that readers may have
	sure     atomic.Bool  // each of them is verified, not only the whole at the end

	mu      sync.Mutex    // guards all below
	changed chan struct{} // closed when readers should look again
	readers int           // that wait
	last    time.Time     // when they were woken
	timer   *time.Timer   // will wake them; nil: nothing to wake them for
	whole   bool          // released is all there is
	err     error         // why no more will come
}

func newFlow() *flow { return &flow{changed: make(chan struct{})} }

// publish lets readers have the first n bytes, and tells them soon.
func (w *flow) publish(n int64) {
	if n <= w.released.Load() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	first := w.released.Swap(n) == 0
	if w.readers == 0 || w.timer != nil {
		return
	}
	every := min(max(time.Duration(w.readers)*wakePerReader, minWake), maxWake)
	if since := time.Since(w.last); first || since >= every {
		w.wake()
	} else {
		w.timer = time.AfterFunc(every-since, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.wake()
		})
	}
}

// finish lets readers have the whole object.
func (w *flow) finish(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.released.Store(n)
	w.whole = true
	w.sure.Store(true)
	w.wake()
}

// end tells readers that nothing more will come. nil changes nothing for those
// who have the whole.
func (w *flow) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && !w.whole {
		w.err = err
		if errors.Is(err, errSuperseded) { // not even what was released
			w.released.Store(-1)
		}
	}
	w.wake()
}

// wake is called with mu held.
func (w *flow) wake() {
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
	w.last = time.Now()
	close(w.changed)
	w.changed = make(chan struct{})
}

// wait returns how many bytes there are to read at pos, at least one. At the
// end of the object it is io.EOF.
func (w *flow) wait(ctx context.Context, pos int64) (int64, error) {
	if n := w.released.Load(); n > pos {
		return n - pos, nil
	}
	return w.until(ctx, func() (int64, bool) { n := w.released.Load() - pos; return n, n > 0 })
}

// waitSure waits until all that is released is verified.
func (w *flow) waitSure(ctx context.Context) error {
	if w.sure.Load() {
		return nil
	}
	_, err := w.until(ctx, func() (int64, bool) { return 0, w.sure.Load() })
	return err
}

// until waits for ok, which is asked with mu held.
func (w *flow) until(ctx context.Context, ok func() (int64, bool)) (int64, error) {
	w.mu.Lock()
	w.readers++
	defer func() {
		w.readers--
		w.mu.Unlock()
	}()
	for {
		if n, ok := ok(); ok {
			return n, nil
		}
		switch {
		case w.err != nil:
			return 0, w.err
		case w.whole:
			return 0, io.EOF
		}
		changed := w.changed
		w.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-ctx.Done():
			err = ctx.Err()
		}
		w.mu.Lock()
		if err != nil {
			return 0, err
		}
	}
}

// meter measures a rate over the last seconds.
type meter struct {
	mu    sync.Mutex
	since time.Time
	n     int64
	rate  float64
}

func (m *meter) add(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if m.since.IsZero() {
		m.since = now
	}
	m.n += int64(n)
	if dt := now.Sub(m.since).Seconds(); dt >= 1 {
		inst := float64(m.n) / dt
		if m.rate == 0 {
			m.rate = inst
		}
		m.rate += (inst - m.rate) / 3
		m.since, m.n = now, 0
	}
}

// lately is in bytes/s.
func (m *meter) lately() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if dt := time.Since(m.since).Seconds(); m.rate == 0 && !m.since.IsZero() && dt > 0.05 || dt > 5 && !m.since.IsZero() {
		return float64(m.n) / dt
	}
	return m.rate
}
