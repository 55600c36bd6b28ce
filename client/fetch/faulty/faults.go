package faulty

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"
)

// Honest is no fault.
var Honest = Fault{Name: "honest"}

// Faults are all there are.
var Faults = []Fault{
	{Name: "cut", Ends: Broken, answer: func(x *exchange) {
		x.some(x.head(x.body))
		panic(http.ErrAbortHandler)
	}},
	{Name: "cut now and then", Ends: Broken, answer: func(x *exchange) {
		rest := x.head(x.body)
		if x.draw(3) > 0 {
			x.w.Write(rest)
			return
		}
		x.some(rest)
		panic(http.ErrAbortHandler)
	}},
	{Name: "stall", Ends: Broken, answer: func(x *exchange) {
		if rest := x.head(x.body); x.some(rest) < len(rest) {
			x.wait()
		}
	}},
	{Name: "silence", Ends: Broken, answer: func(x *exchange) { x.wait() }},
	{Name: "drip of 1 KB/s", Ends: Broken, answer: func(x *exchange) {
		for rest := x.head(x.body); len(rest) > 0 && x.pause(10*time.Millisecond); rest = rest[min(10, len(rest)):] {
			x.w.Write(rest[:min(10, len(rest))])
			x.flush()
		}
	}},
	{Name: "flipped bit", Ends: Either, answer: func(x *exchange) { // an encoding's, or a length's, among them
		bad := bytes.Clone(x.body)
		if len(bad) > 0 {
			bad[x.draw(len(bad))] ^= 1 << x.draw(8)
		}
		x.send(bad)
	}},
	{Name: "noise", Ends: Lying, answer: func(x *exchange) {
		bad := bytes.Clone(x.body)
		for i := 0; i < len(bad); i += 61 {
			bad[i] ^= 0x55
		}
		x.send(bad)
	}},
	{Name: "short", Ends: Lying, answer: func(x *exchange) { x.send(x.body[:x.draw(len(x.body))]) }},
	{Name: "long", Ends: Lying, answer: func(x *exchange) {
		x.send(append(bytes.Clone(x.body), make([]byte, 1+x.draw(1<<16))...))
	}},
	{Name: "endless", Ends: Lying, answer: func(x *exchange) {
		x.w.Write(x.body)
		for junk := make([]byte, 4<<10); x.r.Context().Err() == nil; {
			if _, err := x.w.Write(junk); err != nil {
				return
			}
		}
	}},
	{Name: "no length", Ends: Harmless, answer: func(x *exchange) {
		x.w.WriteHeader(http.StatusOK)
		x.flush()
		x.w.Write(x.body)
	}},
	{Name: "length too great", Ends: Either, answer: func(x *exchange) { // and cut where the file ends
		x.w.Header().Set("Content-Length", strconv.Itoa(len(x.body)+1+x.draw(1000)))
		x.w.Write(x.body)
		x.flush()
		panic(http.ErrAbortHandler)
	}},
	{Name: "no ranges", Ends: Harmless, answer: func(x *exchange) {
		x.r.Header.Del("Range")
		x.send(x.body)
	}},
	{Name: "no ranges, and cut", Ends: Broken, answer: func(x *exchange) {
		x.r.Header.Del("Range")
		x.some(x.head(x.body))
		panic(http.ErrAbortHandler)
	}},
	{Name: "other range", Ends: Either, answer: func(x *exchange) {
		from, to, ok := x.asked(len(x.body))
		if !ok { // so that there is something to go on with
			x.some(x.head(x.body))
			panic(http.ErrAbortHandler)
		}
		total := len(x.body)
		switch x.draw(5) {
		case 0:
			from = max(0, from-1-x.draw(1<<20))
		case 1:
			total += 1 + x.draw(99)
		case 2:
			to = total + 1
		case 3:
			x.w.Header().Set("Content-Range", "bytes */"+strconv.Itoa(total))
			x.w.WriteHeader(http.StatusPartialContent)
			return
		case 4: // the right words for other bytes
			x.w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, total))
			x.w.WriteHeader(http.StatusPartialContent)
			x.w.Write(make([]byte, to-from))
			return
		}
		x.w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, total))
		x.w.WriteHeader(http.StatusPartialContent)
		x.w.Write(x.body[from:min(to, len(x.body))])
	}},
	{Name: "shorter ranges", Ends: Harmless, answer: func(x *exchange) { // as is allowed
		from, to, ok := x.asked(len(x.body))
		if to -= (to - from) / 2; !ok || to == from {
			x.send(x.body)
			return
		}
		x.w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(x.body)))
		x.w.WriteHeader(http.StatusPartialContent)
		x.w.Write(x.body[from:to])
	}},
	{Name: "416", Ends: Either, answer: func(x *exchange) { x.status(http.StatusRequestedRangeNotSatisfiable) }},
	{Name: "500", Ends: Broken, answer: func(x *exchange) { x.status(500 + x.draw(6)) }},
	{Name: "500 now and then", Ends: Broken, answer: func(x *exchange) {
		if x.draw(2) == 0 {
			x.status(http.StatusBadGateway)
			return
		}
		x.send(x.body)
	}},
	{Name: "503 with Retry-After", Ends: Broken, answer: func(x *exchange) {
		x.w.Header().Set("Retry-After", []string{"0", "86400", "Mon, 01 Jan 2001 00:00:00 GMT", "soon"}[x.draw(4)])
		x.status(http.StatusServiceUnavailable)
	}},
	{Name: "redirect to another host", Ends: Harmless, answer: func(x *exchange) {
		other := x.net.Add(x.origin, Honest, nil, 0)
		http.Redirect(x.w, x.r, other+x.path(), http.StatusFound)
	}},
	{Name: "redirects for ever", Ends: Broken, answer: func(x *exchange) {
		http.Redirect(x.w, x.r, x.path(), http.StatusFound)
	}},
	{Name: "redirect from https to http", Ends: Broken, tls: true, answer: func(x *exchange) {
		http.Redirect(x.w, x.r, "http://"+x.r.Host+x.path(), http.StatusFound)
	}},
	{Name: "redirect elsewhere", Ends: Broken, answer: func(x *exchange) {
		to := []string{"file:///etc/passwd", "ftp://127.0.0.1/x", "http://[::1", "//"}[x.draw(4)]
		x.w.Header().Set("Location", to)
		x.status(http.StatusFound)
	}},
	{Name: "web page", Ends: Broken, answer: func(x *exchange) {
		x.w.Header().Set("Content-Type", "text/html")
		x.w.Write([]byte("<html><body>Welcome to our hotel. Please sign in.</body></html>"))
	}},
	{Name: "web page that says it is none", Ends: Either, answer: func(x *exchange) {
		x.w.Header().Set("Content-Type", "application/octet-stream")
		x.w.Write([]byte("<html><body>Welcome to our hotel. Please sign in.</body></html>"))
	}},
	{Name: "gzip unasked", Ends: Either, answer: func(x *exchange) {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		_, _ = z.Write(x.body)
		_ = z.Close()
		x.w.Header().Set("Content-Encoding", "gzip")
		x.r.Header.Del("Range")
		x.send(packed.Bytes())
	}},
	{Name: "slow TLS", Ends: Broken, tls: true, dial: func() (net.Conn, error) {
		here, there := net.Pipe()
		go func() { // takes what it is sent and says nothing
			_, _ = io.Copy(io.Discard, there)
			there.Close()
		}()
		return here, nil
	}},
	{Name: "nobody listens", Ends: Broken, dial: func() (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}},
	{Name: "no answer to a dial", Ends: Broken, dial: func() (net.Conn, error) {
		here, _ := net.Pipe()
		return here, nil
	}},
	{Name: "no such host", Ends: Broken, dial: func() (net.Conn, error) {
		return nil, &net.DNSError{Err: "no such host", Name: "mirror.example", IsNotFound: true}
	}},
	{Name: "name server away", Ends: Broken, dial: func() (net.Conn, error) {
		return nil, &net.DNSError{Err: "i/o timeout", Name: "mirror.example", IsTimeout: true, IsTemporary: true}
	}},
}

func (x *exchange) status(code int) { http.Error(x.w, http.StatusText(code), code) }

// path is the path of the request, as it was sent.
func (x *exchange) path() string { return x.r.URL.EscapedPath() }
