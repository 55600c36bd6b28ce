package upstream

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf"
)

// Guard keeps an upstream from hanging: it ends what takes longer than lim
// allows, with an error that wraps tuf.ErrOffline. A transfer may last as long
// as it likes while bytes come.
func Guard(u Upstream, lim Limits) Upstream { return &guarded{u, lim.withDefaults()} }

type guarded struct {
	Upstream
	lim Limits
}

func (g *guarded) FetchMetadata(ctx context.Context, name string, max int64) ([]byte, error) {
	tctx, cancel := context.WithTimeout(ctx, g.lim.Metadata)
	defer cancel()
	data, err := g.Upstream.FetchMetadata(tctx, name, max)
	if err != nil && ctx.Err() == nil && tctx.Err() != nil {
		return nil, fmt.Errorf("fetch %s: %w: no answer within %s", name, tuf.ErrOffline, g.lim.Metadata)
	}
	return data, err
}

func (g *guarded) OpenTarget(ctx context.Context, object string, offset int64) (io.ReadCloser, int64, error) {
	b := &guardedBody{lim: g.lim}
	tctx, cancel := context.WithCancel(ctx)
	b.cancel = cancel
	b.timer = time.AfterFunc(g.lim.Open, func() { b.expire(fmt.Sprintf("no answer within %s", g.lim.Open)) })
	body, size, err := g.Upstream.OpenTarget(tctx, object, offset)
	b.timer.Stop()
	if late := b.late(); err == nil && late != nil {
		body.Close()
		err = late
	} else if err != nil && late != nil {
		err = late
	}
	if err != nil {
		cancel()
		return nil, 0, err
	}
	b.body = body
	return b, size, nil
}

// guardedBody watches the reads of one body. Only the time spent in a Read
// counts: a slow reader is not the upstream's fault.
type guardedBody struct {
	body   io.ReadCloser
	lim    Limits
	cancel context.CancelFunc
	timer  *time.Timer

	begun bool          // a byte has come: before, only Stall counts
	spent time.Duration // in Read, in the current window
	got   int64         // bytes in it

	mu  sync.Mutex
	why error // guarded by mu; set by the timer
}

func (b *guardedBody) expire(why string) {
	b.mu.Lock()
	b.why = fmt.Errorf("%w: %s", tuf.ErrOffline, why)
	b.mu.Unlock()
	b.cancel()
}

func (b *guardedBody) late() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.why
}

func (b *guardedBody) Read(p []byte) (int, error) {
	begun := time.Now()
	b.timer.Stop()
	timer := time.AfterFunc(b.lim.Stall, func() { b.expire(fmt.Sprintf("no byte for %s", b.lim.Stall)) })
	n, err := b.body.Read(p)
	timer.Stop()
	if late := b.late(); late != nil && err != io.EOF {
		return n, late
	}
	if b.begun {
		b.spent += time.Since(begun)
		b.got += int64(n)
	}
	b.begun = b.begun || n > 0
	if err == nil && b.spent >= b.lim.Window {
		if float64(b.got) < float64(b.lim.MinRate)*b.spent.Seconds() {
			b.cancel()
			return n, fmt.Errorf("%w: only %d bytes in %s", tuf.ErrOffline, b.got, b.spent.Round(time.Millisecond))
		}
		b.spent, b.got = 0, 0
	}
	return n, err
}

func (b *guardedBody) Close() error {
	b.cancel()
	return b.body.Close()
}
