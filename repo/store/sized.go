package store

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// errLonger is returned by a sized reader whose source goes on after size.
var errLonger = errors.New("content is longer than announced")

// SizedReader returns the bytes of r for a driver's Create: it ends with io.EOF
// only if r ends after exactly size bytes, and with another error if r ends
// early or goes on, or once ctx is done. Size -1 means any.
func SizedReader(ctx context.Context, r io.Reader, size int64) io.Reader {
	return &sizedReader{ctx: ctx, r: r, left: size, sized: size >= 0}
}

type sizedReader struct {
	ctx   context.Context // of the one Create that reads
	r     io.Reader
	left  int64
	sized bool
}

func (s *sizedReader) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	if len(p) == 0 || !s.sized {
		return s.r.Read(p)
	}
	if s.left == 0 {
		return 0, s.end()
	}
	n, err := s.r.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	switch {
	case err != io.EOF:
		return n, err
	case s.left > 0:
		return n, fmt.Errorf("content ends %d bytes early: %w", s.left, io.ErrUnexpectedEOF)
	}
	return n, io.EOF
}

// end reads on to see that there is nothing more.
func (s *sizedReader) end() error {
	var b [1]byte
	switch n, err := io.ReadFull(s.r, b[:]); {
	case n > 0:
		return errLonger
	default:
		return err // io.EOF if all is well
	}
}
