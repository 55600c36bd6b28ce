package fastlane

import "bytes"

// Request is what a head of the plainest kind asks for. Its fields are parts of
// the connection's buffer: they are good until the handler returns.
type Request struct {
	Path           []byte // as it came: nothing in it is encoded
	Host           []byte
	AcceptEncoding []byte // nil if absent, as the others
	IfNoneMatch    []byte
	UserAgent      []byte

	// Old says that it is of HTTP/1.0, from a client that keeps the connection all
	// the same, as ab does.
	Old bool
}

var (
	method     = []byte("GET ")
	version    = []byte(" HTTP/1.1")
	oldVersion = []byte(" HTTP/1.0")
	crlf       = []byte("\r\n")
	endOfHead  = []byte("\r\n\r\n")
	keepAlive  = []byte("keep-alive")
	maxHeaders = 16
)

// parse reads into r the head at the beginning of buf and says how long it is. ok is
// false for all that is not whole and not of this grammar, each header at most
// once:
//
//	"GET " path " HTTP/1.1" CRLF  *( name ":" [SP] value CRLF )  CRLF
//	       or " HTTP/1.0" with Connection: keep-alive
//	path   1*( "/" / letter / digit / "." / "_" / "~" / "-" ), "/" first
//	name   Host (needed), Accept, Accept-Encoding, Accept-Language, Cache-Control,
//	       If-None-Match, Pragma, User-Agent, or Connection with keep-alive
//	value  printable ASCII, no blank at either end
//
// So a request has no body, its end is beyond doubt, and nothing in it could
// change the answer but what a Request holds.
func (r *Request) parse(buf []byte) (size int, ok bool) {
	*r = Request{}
	if !bytes.HasPrefix(buf, method) {
		return 0, false
	}
	end := bytes.Index(buf, endOfHead)
	if end < 0 {
		return 0, false
	}
	line, rest, _ := bytes.Cut(buf[len(method):end+len(crlf)], crlf)
	if r.Path, ok = bytes.CutSuffix(line, version); !ok {
		r.Path, r.Old = bytes.CutSuffix(line, oldVersion)
	}
	if !ok && !r.Old || !plainPath(r.Path) {
		return 0, false
	}
	const keptAlive = 16
	var seen uint
	for n := 0; len(rest) > 0; n++ {
		line, rest, _ = bytes.Cut(rest, crlf)
		name, value, found := bytes.Cut(line, []byte{':'})
		value = bytes.TrimPrefix(value, []byte{' '})
		if !found || n >= maxHeaders || !plainValue(value) {
			return 0, false
		}
		var bit uint
		switch len(name) { // by length first: this is asked for each header
		case 4:
			if is(name, "host") && plainHost(value) {
				bit, r.Host = 1, value
			}
		case 6:
			if is(name, "accept") {
				bit = 2
			} else if is(name, "pragma") {
				bit = 4
			}
		case 10:
			if is(name, "user-agent") {
				bit, r.UserAgent = 8, value
			} else if is(name, "connection") && bytes.EqualFold(value, keepAlive) {
				bit = keptAlive
			}
		case 13:
			if is(name, "if-none-match") {
				bit, r.IfNoneMatch = 32, value
			} else if is(name, "cache-control") {
				bit = 64
			}
		case 15:
			if is(name, "accept-encoding") {
				bit, r.AcceptEncoding = 128, value
			} else if is(name, "accept-language") {
				bit = 256
			}
		}
		if bit == 0 || seen&bit != 0 {
			return 0, false
		}
		seen |= bit
	}
	return end + len(endOfHead), r.Host != nil && (!r.Old || seen&keptAlive != 0)
}

// is compares a name with a lower-case one of the same length.
func is(name []byte, lower string) bool {
	for i := range len(lower) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

func alnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func plainPath(p []byte) bool {
	for _, c := range p {
		if !alnum(c) && c != '/' && c != '.' && c != '-' && c != '_' && c != '~' {
			return false
		}
	}
	return len(p) > 0 && p[0] == '/'
}

func plainHost(h []byte) bool {
	for _, c := range h {
		if !alnum(c) && c != '.' && c != '-' && c != ':' && c != '[' && c != ']' {
			return false
		}
	}
	return len(h) > 0
}

func plainValue(v []byte) bool {
	for _, c := range v {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return len(v) == 0 || v[0] != ' ' && v[len(v)-1] != ' '
}
