// Package upstream is where a mirror gets its bytes from: a bucket or a
// directory, which makes the mirror an origin, or another mirror over HTTP.
//
// Nothing that comes from here is trusted. What an Upstream promises is only
// that it ends: no call and no read hangs for ever, nothing grows without
// bound, and errors say whether trying again makes sense.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/store"
)

// Upstream serves the objects of one repository. Implementations are safe for
// concurrent use.
type Upstream interface {
	// FetchMetadata is tuf.Fetcher's, with the same errors.
	FetchMetadata(ctx context.Context, name string, max int64) ([]byte, error)

	// OpenTarget returns the bytes of an object, "targets/…" as package layout
	// names it, from offset to its end, and the size of the whole object, or -1
	// if the upstream does not say. An absent object is fs.ErrNotExist.
	OpenTarget(ctx context.Context, object string, offset int64) (body io.ReadCloser, size int64, err error)

	// String names the upstream for people, without credentials.
	String() string
}

// Open makes an Upstream of a reference: the base URL of a mirror (http:// or
// https://), or what storeurl.Open takes: s3://bucket/prefix?… or a directory.
// It is guarded with lim.
func Open(ctx context.Context, ref string, lim Limits) (Upstream, error) {
	return Credentials{}.Open(ctx, ref, lim)
}

// FromStore reads a repository from its store. name is for people.
func FromStore(r store.Reader, name string) Upstream { return &fromStore{r, name} }

type fromStore struct {
	r    store.Reader
	name string
}

func (s *fromStore) String() string { return s.name }

func (s *fromStore) FetchMetadata(ctx context.Context, name string, max int64) ([]byte, error) {
	object := layout.MetadataDir + "/" + name
	data, err := func() ([]byte, error) {
		body, _, err := s.r.Open(ctx, object, 0)
		if err != nil {
			return nil, err
		}
		defer body.Close()
		return readAll(body, max)
	}()
	switch {
	case err == nil:
		return data, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, tuf.ErrTooLarge):
		return nil, fmt.Errorf("fetch %s: %w", object, err)
	case errors.Is(err, store.ErrDenied) && name != layout.TimestampName:
		// S3 says 403 for what is not there to those who may not list. The
		// timestamp is always there: denied means denied.
		return nil, fmt.Errorf("fetch %s: %w: %w", object, fs.ErrNotExist, err)
	}
	return nil, fmt.Errorf("fetch %s: %w: %w", object, tuf.ErrOffline, err)
}

func (s *fromStore) OpenTarget(ctx context.Context, object string, offset int64) (io.ReadCloser, int64, error) {
	body, info, err := s.r.Open(ctx, object, offset)
	if err != nil {
		return nil, 0, err
	}
	return body, info.Size, nil
}

// readAll reads at most max bytes; more is tuf.ErrTooLarge.
func readAll(r io.Reader, max int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, max+1))
	if err == nil && int64(len(data)) > max {
		return nil, fmt.Errorf("more than %d bytes: %w", max, tuf.ErrTooLarge)
	}
	return data, err
}

// Limits say how long an upstream may keep us waiting. Zero fields take the
// default.
type Limits struct {
	Metadata time.Duration // a whole metadata file: 1 min
	Open     time.Duration // the first byte of a target, or its headers: 30 s
	Stall    time.Duration // no byte of a body for so long: 15 s
	MinRate  int64         // bytes/s once bytes come, averaged over Window: 4 KiB/s
	Window   time.Duration // as long as Stall
}

// ToSibling is for a mirror of the same site: one that is there answers at
// once, but the bytes may wait until it is the object's turn.
var ToSibling = Limits{Open: 3 * time.Second, Stall: 2 * time.Minute, Window: 15 * time.Second}

func (l Limits) withDefaults() Limits {
	def := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.Metadata, time.Minute)
	def(&l.Open, 30*time.Second)
	def(&l.Stall, 15*time.Second)
	def(&l.Window, l.Stall)
	if l.MinRate <= 0 {
		l.MinRate = 4 << 10
	}
	return l
}
