package mirror_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/mirror/upstream"
)

// What upstreams do wrong comes first, and then the test.

// offsetOf is where the request's Range begins.
func offsetOf(r *http.Request) int {
	n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-"))
	return n
}

// hijacked takes over the connection and writes a head of its own; rest is what was
// asked for.
func hijacked(w http.ResponseWriter, r *http.Request, data []byte, fn func(c *net.TCPConn, rest []byte)) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	fn(conn.(*net.TCPConn), data[offsetOf(r):])
}

// head is a right head of an answer.
func head(r *http.Request, size int) string {
	if off := offsetOf(r); off > 0 {
		return fmt.Sprintf("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %d-%d/%d\r\nContent-Length: %d\r\n\r\n", off, size-1, size, size-off)
	}
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size)
}

// say answers with exactly these bytes.
func say(s string) reply {
	return func(w http.ResponseWriter, r *http.Request, data []byte) {
		hijacked(w, r, data, func(c *net.TCPConn, _ []byte) { io.WriteString(c, s) })
	}
}

// babble repeats itself until nobody listens.
func babble(begin, again string) reply {
	return func(w http.ResponseWriter, r *http.Request, data []byte) {
		hijacked(w, r, data, func(c *net.TCPConn, _ []byte) {
			io.WriteString(c, begin)
			for chunk := strings.Repeat(again, 1+32<<10/len(again)); ; {
				if _, err := io.WriteString(c, chunk); err != nil {
					return
				}
			}
		})
	}
}

// flip changes the byte at pos(size).
func flip(pos func(size int) int) reply {
	return func(w http.ResponseWriter, r *http.Request, data []byte) {
		data = bytes.Clone(data)
		data[pos(len(data))] ^= 0x10
		honest(w, r, data)
	}
}

// upTo sends the right bytes up to stop(size), and then does something else.
func upTo(stop func(size int) int, then func(c *net.TCPConn)) reply {
	return func(w http.ResponseWriter, r *http.Request, data []byte) {
		hijacked(w, r, data, func(c *net.TCPConn, rest []byte) {
			io.WriteString(c, head(r, len(data)))
			_, _ = c.Write(rest[:max(stop(len(data))-offsetOf(r), 0)])
			then(c)
		})
	}
}

func first(int) int       { return 0 }
func half(size int) int   { return size / 2 }
func nearly(size int) int { return size - 100 }
func last(size int) int   { return size - 1 }

func closes(*net.TCPConn)   {}
func resets(c *net.TCPConn) { _ = c.SetLinger(0) }

// hangs waits for the other side to go.
func hangs(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }

func code(status int, headers ...string) reply {
	return func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
	}
}

// resumed sends the first half, and to whoever asks for the rest what then says.
func resumed(then reply) reply {
	begin := upTo(half, closes)
	return func(w http.ResponseWriter, r *http.Request, data []byte) {
		if offsetOf(r) == 0 {
			begin(w, r, data)
		} else {
			then(w, r, data)
		}
	}
}

// ranged answers 206 with that Content-Range, made of offset and size.
func ranged(contentRange func(off, size int) string, body func(off int, data []byte) []byte) reply {
	return func(w http.ResponseWriter, r *http.Request, data []byte) {
		off := offsetOf(r)
		w.Header().Set("Content-Range", contentRange(off, len(data)))
		w.WriteHeader(http.StatusPartialContent)
		w.Write(body(off, data))
	}
}

func rightRange(off, size int) string                                { return fmt.Sprintf("bytes %d-%d/%d", off, size-1, size) }
func rightBody(off int, data []byte) []byte                          { return data[off:] }
func evil(n int) []byte                                              { return noise("evil", n) }
func evilBody(off int, data []byte) []byte                           { return evil(len(data) - off) }
func evilAnswer(w http.ResponseWriter, r *http.Request, data []byte) { honest(w, r, evil(len(data))) }

const portal = "<!DOCTYPE html><title>Welcome</title>Please log in to the hotel's network."

type fault struct {
	name   string
	answer reply
	hasty  bool // it is given little time
	heals  bool // the right bytes come of it after all
	crowd  bool // 200 clients see it, rather than 20
}

// faults that need no more than the server itself.
var upstreamFaults = []fault{
	{name: "honest", answer: honest, heals: true, crowd: true},

	// Other bytes.
	{name: "first byte flipped", answer: flip(first)},
	{name: "byte in the middle flipped", answer: flip(half), crowd: true},
	{name: "last byte flipped", answer: flip(last), crowd: true},
	{name: "other software of the same size", answer: evilAnswer},
	{name: "all zeros", answer: func(w http.ResponseWriter, r *http.Request, data []byte) { honest(w, r, make([]byte, len(data))) }},
	{name: "first half right, then cut, then other software", answer: resumed(ranged(rightRange, evilBody))},

	// Too little.
	{name: "closes in the middle", answer: upTo(half, closes), crowd: true},
	{name: "closes right before the end", answer: upTo(nearly, closes)},
	{name: "closes after the head", answer: upTo(first, closes)},
	{name: "closes at once", answer: say("")},
	{name: "resets in the middle", answer: upTo(half, resets)},
	{name: "resets at once", answer: func(w http.ResponseWriter, r *http.Request, data []byte) {
		hijacked(w, r, data, func(c *net.TCPConn, _ []byte) { resets(c) })
	}},
	{name: "shorter, and says so", answer: func(w http.ResponseWriter, r *http.Request, data []byte) { honest(w, r, data[:len(data)/2]) }},
	{name: "nothing, and says so", answer: code(200, "Content-Length", "0")},
	{name: "no length, and ends early", answer: func(w http.ResponseWriter, _ *http.Request, data []byte) {
		flush(w)
		w.Write(data[:len(data)/2])
	}},
	{name: "no length, and closes early", answer: func(w http.ResponseWriter, r *http.Request, data []byte) {
		hijacked(w, r, data, func(c *net.TCPConn, _ []byte) {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s", len(data), data[:len(data)/2])
		})
	}},
	{name: "HTTP/1.0, ends early", answer: func(w http.ResponseWriter, r *http.Request, data []byte) {
		hijacked(w, r, data, func(c *net.TCPConn, _ []byte) {
			fmt.Fprintf(c, "HTTP/1.0 200 OK\r\n\r\n%s", data[:len(data)/2])
		})
	}},
	{name: "HTTP/1.0", heals: true, answer: func(w http.ResponseWriter, r *http.Request, data []byte) {
		hijacked(w, r, data, func(c *net.TCPConn, _ []byte) { fmt.Fprintf(c, "HTTP/1.0 200 OK\r\n\r\n%s", data) })
	}},
	{name: "cuts every 300 kB", heals: true, answer: func(w http.ResponseWriter, r *http.Request, data []byte) {
		upTo(func(size int) int { return min(offsetOf(r)+300_000, size) }, closes)(w, r, data)
	}},
	{name: "cuts every 300 kB, and knows no Range", answer: func(w http.ResponseWriter, r *http.Request, data []byte) {
		hijacked(w, r, data, func(c *net.TCPConn, _ []byte) {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(data))
			_, _ = c.Write(data[:min(len(data)-1, 300_000)])
		})
	}},

	// Too late.
	{name: "never answers", hasty: true, answer: func(_ http.ResponseWriter, r *http.Request, _ []byte) { <-r.Context().Done() }},
	{name: "stalls after the head", hasty: true, answer: upTo(first, hangs)},
	{name: "stalls in the middle", hasty: true, crowd: true, answer: upTo(half, hangs)},
	{name: "stalls right before the end", hasty: true, answer: upTo(nearly, hangs)},
	{name: "drips", hasty: true, crowd: true, answer: upTo(first, dripping)},
	{name: "drips after the middle", hasty: true, answer: upTo(half, dripping)},
	{name: "drips its head", hasty: true, answer: func(w http.ResponseWriter, r *http.Request, data []byte) {
		hijacked(w, r, data, func(c *net.TCPConn, _ []byte) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nX: ")
			dripping(c)
		})
	}},

	// Lies about length and range.
	{name: "one byte more", answer: func(w http.ResponseWriter, r *http.Request, data []byte) {
		honest(w, r, append(bytes.Clone(data), 'x'))
	}},
	{name: "one byte more, of no length", heals: true, answer: func(w http.ResponseWriter, r *http.Request, data []byte) {
		flush(w)
		w.Write(data[min(offsetOf(r), len(data)):])
		w.Write([]byte("x"))
	}},
	{name: "one byte more than it says", heals: true, answer: func(w http.ResponseWriter, r *http.Request, data []byte) {
		hijacked(w, r, data, func(c *net.TCPConn, rest []byte) { fmt.Fprintf(c, "%s%sx", head(r, len(data)), rest) })
	}},
	{name: "says one byte more", answer: func(w http.ResponseWriter, r *http.Request, data []byte) {
		hijacked(w, r, data, func(c *net.TCPConn, rest []byte) { fmt.Fprintf(c, "%s%s", head(r, len(data)+1), rest) })
	}},
	{name: "says one byte less", answer: func(w http.ResponseWriter, r *http.Request, data []byte) {
		hijacked(w, r, data, func(c *net.TCPConn, rest []byte) { fmt.Fprintf(c, "%s%s", head(r, len(data)-1), rest) })
	}},
	{name: "absurd length", answer: say("HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\nxx")},
	{name: "negative length", answer: say("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nxx")},
	{name: "two lengths", answer: func(w http.ResponseWriter, r *http.Request, data []byte) {
		hijacked(w, r, data, func(c *net.TCPConn, _ []byte) {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: %d\r\n\r\n%s", len(data), data)
		})
	}},
	{name: "206 where no Range was asked for", answer: ranged(rightRange, rightBody)},
	{name: "206 of another offset", answer: resumed(ranged(
		func(off, size int) string { return rightRange(off-1, size) }, func(off int, data []byte) []byte { return data[off-1:] }))},
	{name: "206 that says the right offset, and is not", answer: resumed(ranged(rightRange, func(off int, data []byte) []byte { return data[:len(data)-off] }))},
	{name: "206 of another total", answer: resumed(ranged(
		func(off, size int) string { return fmt.Sprintf("bytes %d-%d/%d", off, size-1, size+1) }, rightBody))},
	{name: "206 of a part", answer: resumed(ranged(
		func(off, size int) string { return fmt.Sprintf("bytes %d-%d/%d", off, off, size) },
		func(off int, data []byte) []byte { return data[off : off+1] }))},
	{name: "206 without Content-Range", answer: resumed(func(w http.ResponseWriter, r *http.Request, data []byte) {
		w.WriteHeader(http.StatusPartialContent)
		w.Write(data[offsetOf(r):])
	})},
	{name: "206 of several parts", answer: resumed(func(w http.ResponseWriter, r *http.Request, data []byte) {
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-,0-1", offsetOf(r)))
		honest(w, r, data)
	})},
	{name: "200 of other software to a Range", answer: resumed(func(w http.ResponseWriter, r *http.Request, data []byte) {
		r.Header.Del("Range")
		evilAnswer(w, r, data)
	})},
	{name: "200 of the whole to a Range", heals: true, answer: resumed(func(w http.ResponseWriter, r *http.Request, data []byte) {
		r.Header.Del("Range")
		honest(w, r, data)
	})},
	{name: "416 to a Range", answer: resumed(code(416, "Content-Range", "bytes */1"))},

	// Something else.
	{name: "web page", crowd: true, answer: say("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: " + strconv.Itoa(len(portal)) + "\r\n\r\n" + portal)},
	{name: "web page of no length", answer: say("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n" + portal)},
	{name: "web page of the right length", answer: func(w http.ResponseWriter, r *http.Request, data []byte) {
		w.Header().Set("Content-Type", "text/html")
		honest(w, r, []byte(strings.Repeat(portal, len(data)/len(portal)+1)[:len(data)]))
	}},
	{name: "compressed", answer: func(w http.ResponseWriter, _ *http.Request, data []byte) {
		w.Header().Set("Content-Encoding", "gzip")
		z, _ := gzip.NewWriterLevel(w, gzip.NoCompression)
		_, _ = z.Write(data)
		_ = z.Close()
	}},
	{name: "endless body", crowd: true, answer: babble("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1000\r\n"+strings.Repeat("x", 4096)+"\r\n")},
	{name: "endless body of HTTP/1.0", answer: babble("HTTP/1.0 200 OK\r\n\r\n", "x")},
	{name: "endless chunk extension", answer: babble("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", "x")},
	{name: "endless headers", answer: babble("HTTP/1.1 200 OK\r\n", "X: x\r\n")},
	{name: "endless header", answer: babble("HTTP/1.1 200 OK\r\nX: ", "x")},
	{name: "endless trailers", answer: babble("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "X: x\r\n")},
	{name: "endless early hints", answer: babble("", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")},
	{name: "endless continue", answer: babble("", "HTTP/1.1 100 Continue\r\n\r\n")},
	{name: "switches protocols", answer: say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")},
	{name: "no HTTP", answer: say("SSH-2.0-OpenSSH_9.9\r\n")},
	{name: "404", answer: code(404)},
	{name: "403", answer: code(403)},
	{name: "401", answer: code(401, "WWW-Authenticate", "Basic")},
	{name: "410", answer: code(410)},
	{name: "429", answer: code(429, "Retry-After", "1000000")},
	{name: "500", answer: code(500)},
	{name: "503", answer: code(503, "Retry-After", "Fri, 31 Dec 9999 23:59:59 GMT")},
	{name: "508", answer: code(508)},
	{name: "204", answer: code(204)},
	{name: "304", answer: code(304)},
	{name: "redirect to itself", answer: func(w http.ResponseWriter, r *http.Request, _ []byte) {
		http.Redirect(w, r, r.URL.Path, http.StatusFound)
	}},
	{name: "redirect ever on", answer: func(w http.ResponseWriter, r *http.Request, _ []byte) {
		http.Redirect(w, r, r.URL.Path+"?"+r.URL.RawQuery+"x", http.StatusTemporaryRedirect)
	}},
	{name: "redirect to a file", answer: code(302, "Location", "file:///etc/passwd")},
	{name: "redirect to another protocol", answer: code(302, "Location", "gopher://127.0.0.1/")},
	{name: "redirect to nowhere", answer: code(302)},
}

func flush(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }

// dripping sends a byte every now and then.
func dripping(c *net.TCPConn) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		if _, err := c.Write([]byte("x")); err != nil {
			return
		}
	}
}

// TestUpstreamFaults: whatever an upstream does, nobody completes a wrong file.
// Beside a good one everybody gets the right one: with a block list, or of a
// small object, without noticing; else with few requests more.
func TestUpstreamFaults(t *testing.T) {
	d := newDepot(t)
	elsewhere := newOrigin(t, d) // where redirects lead
	elsewhere.on(evilAnswer)
	right := newOrigin(t, d)
	to := func(base string) reply {
		return func(w http.ResponseWriter, r *http.Request, _ []byte) {
			http.Redirect(w, r, base+r.URL.EscapedPath(), http.StatusMovedPermanently)
		}
	}
	faults := append([]fault{
		{name: "redirect to other software", answer: to(elsewhere.URL), crowd: true},
		{name: "redirect to the right one", answer: to(right.URL), heals: true},
		{name: "answer to another request", answer: func(w http.ResponseWriter, r *http.Request, data []byte) {
			for _, i := range d.items() {
				if len(i.data) != len(data) {
					honest(w, r, i.data)
					return
				}
			}
		}},
	}, upstreamFaults...)
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			bad := newOrigin(t, d)
			bad.on(f.answer)
			testFault(t, d, f, bad)
		})
	}
	t.Run("downgrade from TLS", func(t *testing.T) {
		t.Parallel()
		bad := unstarted(d)
		bad.StartTLS()
		t.Cleanup(bad.stop)
		testFault(t, d, fault{heals: true}, bad) // it is trusted
		bad.on(to(right.URL))                    // the right bytes, but who knows
		testFault(t, d, fault{}, bad)
	})
	t.Run("connection refused", func(t *testing.T) {
		t.Parallel()
		testFault(t, d, fault{}, newOrigin(t, d), func(bad *origin) { bad.stop() })
	})
	t.Run("block list", func(t *testing.T) {
		t.Parallel()
		for _, f := range []fault{
			{name: "flipped", answer: flip(half)},
			{name: "other", answer: evilAnswer},
			{name: "404", answer: code(404)},
			{name: "closes", answer: upTo(half, closes)},
			{name: "hangs", answer: upTo(half, hangs), hasty: true},
		} {
			t.Run(f.name, func(t *testing.T) {
				t.Parallel()
				bad := newOrigin(t, d)
				bad.on(func(w http.ResponseWriter, r *http.Request, data []byte) {
					if strings.HasSuffix(r.URL.Path, ".blocks") {
						f.answer(w, r, data)
					} else {
						honest(w, r, data)
					}
				})
				f.heals = true // there is no need of one
				testFault(t, d, f, bad)
			})
		}
	})
}

// testFault tries one fault alone, after which the upstream mends its ways, and
// beside a good upstream.
func testFault(t *testing.T, d *depot, f fault, bad *origin, broken ...func(*origin)) {
	t.Helper()
	// 20 clients, or 200.
	n := func(i *item) int {
		n := map[*item]int{d.listed: 3, d.plain: 5, d.small: 12}[i]
		if f.crowd {
			n *= 10
		}
		return n
	}
	lists := strings.Contains(t.Name(), "block_list") // are what is tried
	lim := func(object string) upstream.Limits {
		if f.hasty && !bad.mended() && strings.HasSuffix(object, ".blocks") == lists {
			return upstream.Limits{Open: 150 * time.Millisecond, Stall: 60 * time.Millisecond, MinRate: 256 << 10}
		}
		return upstream.Limits{}
	}
	// Else the block list comes as it should, so that it is the object that is tried.
	bad.mu.Lock()
	wrong := bad.answer
	bad.mu.Unlock()
	if wrong != nil && !lists {
		bad.on(func(w http.ResponseWriter, r *http.Request, data []byte) {
			if strings.HasSuffix(r.URL.Path, ".blocks") {
				honest(w, r, data)
			} else {
				wrong(w, r, data)
			}
		})
	}

	alone := newEdge(t, d, func(c *mirror.Config) { c.FailFor = time.Minute }, impatient{up(t, bad.URL, upstream.Limits{}), lim})
	both := newEdge(t, d, nil, impatient{up(t, bad.URL, upstream.Limits{}), lim}, up(t, newOrigin(t, d).URL, upstream.Limits{}))
	for _, b := range broken {
		b(bad)
	}

	var wg sync.WaitGroup
	wg.Go(func() {
		for _, p := range mixedCrowd(alone.srv.URL, 1, n, d.items()...) {
			switch {
			case p.lied != nil:
				t.Errorf("alone: %s: %v", p.i.path, p.lied)
			case p.done != f.heals:
				t.Errorf("alone: %s: completed: %v", p.i.path, p.done)
			case p.dirty > 0 && p.i != d.plain:
				t.Errorf("alone: %s: a wrong byte was shown", p.i.path)
			}
		}
		for _, i := range d.items() {
			if len(broken) == 0 && len(bad.requests(i.object())) == 0 {
				t.Errorf("alone: %s was never asked for", i.path)
			}
		}
	})
	wg.Go(func() {
		for _, p := range mixedCrowd(both.srv.URL, 4, n, d.items()...) {
			switch {
			case p.lied != nil:
				t.Errorf("beside a good one: %s: %v", p.i.path, p.lied)
			case !p.done:
				t.Errorf("beside a good one: %s: not done after %d tries", p.i.path, p.tries)
			case p.tries > 1 && p.i != d.plain:
				t.Errorf("beside a good one: %s: %d tries", p.i.path, p.tries)
			case p.dirty > 0 && p.i != d.plain:
				t.Errorf("beside a good one: %s: a wrong byte was shown", p.i.path)
			}
		}
	})
	wg.Wait()
	both.stop()
	clean(t, both.cfg.Dir)

	// It mends its ways: what it sent before spoils nothing.
	if len(broken) == 0 {
		bad.on(nil)
		alone.later(time.Hour)
		for _, p := range crowd(alone.srv.URL, 1, 3, d.items()...) {
			if !p.done || p.lied != nil || p.tries > 1 && p.i != d.plain {
				t.Errorf("mended: %s: %+v", p.i.path, p)
			}
		}
	}
	alone.stop()
	clean(t, alone.cfg.Dir)
}
