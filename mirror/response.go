package mirror

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/patchkeep/patchkeep/mirror/access"
	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	// writeGrace is what a client has for any piece, beside the time that
	// the minimum rate gives it.
	writeGrace = 30 * time.Second

	// pieceSize is how much of a file is sent under one deadline.
	pieceSize = 1 << 20

	// copySize is how much is written at once where there is no sendfile: few
	// and large writes are what TLS and HTTP/2 want.
	copySize = 128 << 10

	// corkFrom is the length of an answer from which on it is worth while to
	// have it go in full segments.
	corkFrom = 1 << 20

	// statusGone is how a request whose client has left is counted.
	statusGone = 499
)

// connKey finds the connection of a request in its context.
type connKey struct{}

// ConnContext is for http.Server.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

var copyBuffers = sync.Pool{New: func() any { return new([copySize]byte) }}

// responseWriter counts what is sent, keeps to what the client may have, and
// gives it a deadline for each piece, so that a slow one is served for as long
// as it takes and a dead one does not stay. It keeps the way to sendfile open: a
// file that is copied to it with io.Copy or io.CopyN reaches the connection's
// ReadFrom.
type responseWriter struct {
	http.ResponseWriter
	req     *http.Request
	control http.ResponseController
	visit   access.Visit
	minRate int64
	route   string
	cache   string // "hit" or "miss", of an object
	code    int
	sent    int64
	broken  bool // the client did not take all of it
}

// Unwrap is for http.ResponseController.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *responseWriter) WriteHeader(code int) {
	if w.code == 0 || w.code < 200 {
		w.code = code
	}
	w.ResponseWriter.WriteHeader(code)
}

// extend gives the client time for n bytes. Not every writer in a test has
// deadlines.
func (w *responseWriter) extend(n int64) {
	_ = w.control.SetWriteDeadline(time.Now().Add(writeGrace + time.Duration(float64(n)/float64(w.minRate)*float64(time.Second))))
}

// unhurried takes the deadline of the client away, or begins it anew.
func unhurried(w http.ResponseWriter, on bool) {
	switch rw, ok := w.(*responseWriter); {
	case ok && on:
		_ = rw.control.SetWriteDeadline(time.Time{})
	case ok:
		rw.extend(0)
	}
}

func (w *responseWriter) Write(p []byte) (int, error) {
	w.begin()
	if w.visit.Limited() {
		return w.writeLimited(p)
	}
	if len(p) > 64<<10 || w.sent > 0 {
		w.extend(int64(len(p)))
	}
	return w.pass(p)
}

func (w *responseWriter) pass(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	w.broken = w.broken || err != nil
	return n, err
}

// writeLimited writes piece by piece as the client may have them.
func (w *responseWriter) writeLimited(p []byte) (total int, err error) {
	for {
		n, err := w.allow(int64(len(p) - total))
		if err != nil {
			return total, err
		}
		w.extend(n)
		k, err := w.pass(p[total:][:n])
		if total += k; err != nil || total == len(p) {
			return total, err
		}
	}
}

// allow waits until some of n bytes may be sent to this client, and says how
// many. Meanwhile it has what it has, and the wait is not its fault.
func (w *responseWriter) allow(n int64) (int64, error) {
	if !w.visit.Limited() {
		return n, nil
	}
	n, err := w.visit.Wait(w.req.Context(), n, func() {
		_ = w.control.Flush()
		unhurried(w, true)
	})
	w.broken = w.broken || err != nil
	return n, err
}

func (w *responseWriter) begin() {
	if w.code == 0 {
		w.code = http.StatusOK
	}
}

// growing is a file that is read while it is still being written: Next waits
// until bytes at the file's position may be sent, and says how many, max at
// most; last says that the answer is complete with so many. At the end it is
// io.EOF; any other error means that what was sent is not to be completed.
type growing interface {
	io.Reader
	File() *os.File
	Next(max int64, last bool) (n int64, err error)
}

// ReadFrom sends a file in pieces. The pieces are made of the file itself, since
// the kernel's sendfile is only reached through at most one io.LimitedReader.
func (w *responseWriter) ReadFrom(src io.Reader) (int64, error) {
	w.begin()
	lr, limited := src.(*io.LimitedReader)
	if !limited {
		return io.Copy(writerOnly{w}, src)
	}
	next, file := whole, (*os.File)(nil)
	switch r := lr.R.(type) {
	case *os.File:
		if file = r; lr.N >= corkFrom {
			uncork := cork(w.req)
			defer uncork()
		}
	case growing: // it has no file before there is a byte
		next = func(want int64) (int64, error) {
			n, err := w.await(r, want, want == lr.N)
			file = r.File()
			return n, err
		}
	default:
		return io.Copy(writerOnly{w}, src)
	}
	var total int64
	for lr.N > 0 {
		want, err := next(min(lr.N, pieceSize))
		if err != nil {
			return total, err
		}
		if want, err = w.allow(want); err != nil {
			return total, err
		}
		w.extend(want)
		n, err := w.send(file, want)
		total += n
		lr.N -= n
		if err != nil || n < want {
			return total, err
		}
	}
	return total, nil
}

// send sends the next n bytes of a file, by sendfile where there is nothing
// between us and the connection.
func (w *responseWriter) send(file *os.File, n int64) (sent int64, err error) {
	defer func() {
		w.sent += sent
		w.broken = w.broken || err != nil
	}()
	if rf, ok := w.ResponseWriter.(io.ReaderFrom); ok && w.req.TLS == nil {
		return rf.ReadFrom(&io.LimitedReader{R: file, N: n})
	}
	buf := copyBuffers.Get().(*[copySize]byte) //nolint:forcetypeassert // there are no others
	defer copyBuffers.Put(buf)
	for sent < n {
		k, err := file.Read(buf[:min(n-sent, copySize)])
		if k > 0 {
			k, err := w.ResponseWriter.Write(buf[:k])
			if sent += int64(k); err != nil {
				return sent, err
			}
		}
		if err != nil {
			if err == io.EOF { // as io.Copy has it: the caller sees that it is short
				err = nil
			}
			return sent, err
		}
	}
	return sent, nil
}

// whole is the next of a file that has all its bytes.
func whole(want int64) (int64, error) { return want, nil }

// await waits for bytes of a growing file. What there is of the answer so far,
// if only its header, is not kept from the client, and the wait is not its fault.
func (w *responseWriter) await(r growing, want int64, last bool) (int64, error) {
	_ = w.control.Flush()
	unhurried(w, true)
	return r.Next(want, last)
}

// writerOnly hides ReadFrom from io.Copy.
type writerOnly struct{ io.Writer }

// label says under which route the request is counted.
func label(w http.ResponseWriter, route string) {
	if rw, ok := w.(*responseWriter); ok {
		rw.route = route
	}
}

// labelCache says whether the object was there.
func labelCache(w http.ResponseWriter, hit bool) {
	if rw, ok := w.(*responseWriter); ok {
		if rw.cache = "miss"; hit {
			rw.cache = "hit"
		}
	}
}

// objectHeaders are those that a failure must not carry.
var objectHeaders = []string{"Etag", "Cache-Control", "Accept-Ranges", "Content-Type", "Content-Length"}

func setObjectHeaders(h http.Header, name string, o *object) {
	h.Set("Etag", o.etag)
	h.Set("Content-Type", layout.ContentType(name))
	h.Set("Cache-Control", layout.CacheControl(name))
}

// fail answers with a status and a line that says no more than the status: it
// is for strangers. Nobody on the way may keep it.
func fail(w http.ResponseWriter, code int) {
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, http.StatusText(code), code)
}

// failLater also says after how many seconds to ask again.
func failLater(w http.ResponseWriter, code int, after string) {
	w.Header().Set("Retry-After", after)
	fail(w, code)
}
