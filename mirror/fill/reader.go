package fill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/patchkeep/patchkeep/mirror/cache"
)

// Reader reads an object that is cached, or follows the fill that brings it. It
// has a file handle of its own. It is for one goroutine.
type Reader struct {
	file *os.File // nil before the first byte
	size int64
	hit  bool

	joined bool // a fill that was under way

	f     *Filler // of the fill that it follows; nil if it follows none
	fl    *fill
	flow  *flow
	ctx   context.Context //nolint:containedctx // of the request: io.Reader has no other way
	pos   int64           // before there is a file
	err   error           // of Next, but for io.EOF
	once  sync.Once
	close func() error
}

// errGone: the fill is over, and the object is no longer where it was put.
var errGone = fmt.Errorf("object has left the cache at once: %w", cache.ErrNoSpace)

// Hit reports whether the object was cached when it was asked for.
func (r *Reader) Hit() bool { return r.hit }

// Joined reports whether the reader follows a fill that had been begun for
// somebody else.
func (r *Reader) Joined() bool { return r.joined }

// Size is the length of the object in bytes.
func (r *Reader) Size() int64 { return r.size }

// File is the reader's file, at its position; nil before Next.
func (r *Reader) File() *os.File { return r.file }

// Close lets the object go. A fill goes on.
func (r *Reader) Close() error {
	var err error
	r.once.Do(func() {
		if r.file != nil && r.fl != nil {
			err = r.file.Close()
		}
		err = errors.Join(err, r.close())
	})
	return err
}

// attach waits for the first byte and opens the file. If the bytes that the
// fill had were wrong before anybody saw them, it waits for the right ones.
func (r *Reader) attach() error {
	for {
		r.f.mu.Lock()
		flow := r.fl.flow
		r.f.mu.Unlock()
		_, err := flow.wait(r.ctx, 0)
		switch {
		case errors.Is(err, errSuperseded):
			continue
		case err != nil && err != io.EOF:
			return err
		}
		r.f.mu.Lock()
		w, same := r.fl.w, r.fl.flow == flow
		r.f.mu.Unlock()
		if !same {
			continue
		}
		file, err := r.open(w)
		if err != nil {
			return err
		}
		// A new flow begins before its file does, so this is the flow's file if the
		// flow is still the fill's.
		r.f.mu.Lock()
		same = r.fl.flow == flow
		r.f.mu.Unlock()
		if same {
			_, err = file.Seek(r.pos, io.SeekStart)
		}
		if !same || err != nil {
			file.Close()
			if err != nil {
				return err
			}
			continue
		}
		r.file, r.flow = file, flow
		return nil
	}
}

// open opens the file that is written, or the object that it has become.
func (r *Reader) open(w *cache.Writer) (*os.File, error) {
	if w != nil {
		file, err := w.Open()
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return file, err
		}
	}
	h, ok := r.f.cfg.Cache.Get(r.ctx, r.fl.key.sum, r.size)
	if !ok {
		return nil, errGone
	}
	leave := r.close
	r.close = func() error { return errors.Join(leave(), h.Close()) }
	return h.File, nil
}

// Err says why Next or Read failed, nil if they did not.
func (r *Reader) Err() error { return r.err }

// Next waits until bytes at the file's position may be sent, and returns how
// many, limit at most. At the end it is io.EOF. With any other error what was
// read so far must not be completed.
//
// last says that the answer is complete with limit bytes. It may be a part of
// the object, and what is released is not verified if there is no block list:
// then the last byte waits until the whole is.
func (r *Reader) Next(limit int64, last bool) (int64, error) {
	n, err := r.next(limit, last)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

func (r *Reader) next(limit int64, last bool) (int64, error) {
	if r.file == nil {
		if err := r.attach(); err != nil {
			return 0, err
		}
	}
	pos, err := r.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	n := r.size - pos
	if r.flow != nil {
		if n, err = r.flow.wait(r.ctx, pos); err != nil {
			return 0, err
		}
		if last && n >= limit && !r.flow.sure.Load() {
			if limit > 1 {
				return limit - 1, nil
			}
			if err := r.flow.waitSure(r.ctx); err != nil {
				return 0, err
			}
		}
	}
	if n <= 0 {
		return 0, io.EOF
	}
	return min(n, limit), nil
}

// Read waits until what it reads is verified: nobody knows with which of its
// bytes something is complete.
func (r *Reader) Read(p []byte) (int, error) {
	n, err := r.Next(int64(len(p)), false)
	if err == nil && r.flow != nil {
		if err = r.flow.waitSure(r.ctx); err != nil {
			r.err = err
		}
	}
	if err != nil {
		return 0, err
	}
	return r.file.Read(p[:n])
}

// Seek waits for nothing.
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		if r.file != nil {
			pos, err := r.file.Seek(0, io.SeekCurrent)
			if err != nil {
				return 0, err
			}
			offset += pos
		} else {
			offset += r.pos
		}
	case io.SeekEnd:
		offset += r.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek: %w", fs.ErrInvalid)
	}
	if r.file != nil {
		return r.file.Seek(offset, io.SeekStart)
	}
	r.pos = offset
	return offset, nil
}
