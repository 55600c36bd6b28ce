package fastlane

import (
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// MaxBody is the largest body in bytes that takes the lane: what one write can
// leave with the kernel, whether the client reads or not.
const MaxBody = 32 << 10

// Response is an answer with its head made once.
type Response struct {
	Status int
	Body   []byte
	head   []byte
}

// NewResponse makes the answer that net/http would give with that header, which
// has to say what length and type the body has; or nil if the body is too
// large for the lane. Neither header nor body may change after.
func NewResponse(status int, header http.Header, body []byte) *Response {
	if len(body) > MaxBody {
		return nil
	}
	r := &Response{Status: status, Body: body}
	r.head = append(strconv.AppendInt([]byte("HTTP/1.1 "), int64(status), 10), ' ')
	r.head = append(append(r.head, http.StatusText(status)...), crlf...)
	names := make([]string, 0, len(header))
	for name := range header {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, v := range header[name] {
			r.head = append(append(append(append(r.head, name...), ": "...), v...), crlf...)
		}
	}
	r.head = append(r.head, "Date: "...)
	return r
}

func (r *Response) append(to, date []byte, old bool) []byte {
	const version = "HTTP/1.0"
	begin := len(to)
	to = append(append(to, r.head...), date...)
	if old {
		copy(to[begin:], version)
		to = append(to, "\r\nConnection: keep-alive"...)
	}
	return append(append(to, endOfHead...), r.Body...)
}

// dates keeps the Date of the current second.
type dates struct{ last atomic.Pointer[date] }

type date struct {
	second int64
	text   []byte
}

func (d *dates) at(now time.Time) []byte {
	last := d.last.Load()
	if last == nil || last.second != now.Unix() {
		last = &date{now.Unix(), now.UTC().AppendFormat(nil, http.TimeFormat)}
		d.last.Store(last)
	}
	return last.text
}

// buffers are for answers on their way out.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}
