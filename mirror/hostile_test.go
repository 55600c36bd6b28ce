package mirror_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/mirror/access"
)

// exposed is a site as the command serves it to the internet: with the fast
// lane, a gate, and limits of headers.
func exposed(t *testing.T, rules access.Rules, change ...func(*site)) (s *site, addr string) {
	t.Helper()
	gate := access.New(rules, nil)
	s = newSite(t, append(change, func(s *site) { s.cfg.Access = gate })...)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	srv := &http.Server{Handler: s.m, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10, ConnState: s.m.ConnState}
	done := make(chan error, 1)
	lane := s.m.Listener(gate.Listener(t.Context(), l), 0)
	go func() { done <- srv.Serve(lane) }()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return s, l.Addr().String()
}

// cached gets an object, and waits until it is at its place: clients have it
// before.
func (s *site) cached(path string, data []byte) {
	s.t.Helper()
	n := s.m.Status().Cache.Objects
	s.want(path, data)
	for s.m.Status().Cache.Objects == n {
		runtime.Gosched()
	}
}

// answer is one of a connection.
type answer struct {
	status int
	body   []byte
}

// converse sends bytes over one connection and reads all that comes back.
func converse(t *testing.T, addr, request string) (answers []answer, rest []byte) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	go func() {
		io.WriteString(conn, request) // may be refused half way
		conn.(*net.TCPConn).CloseWrite()
	}()
	r := bufio.NewReader(conn)
	for {
		peeked, err := r.Peek(5)
		if len(peeked) == 0 {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Errorf("%.60q: the connection hangs", request)
			}
			return answers, nil
		}
		if string(peeked) != "HTTP/" {
			rest, _ = io.ReadAll(r)
			return answers, rest
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return answers, nil
		}
		body, _ := io.ReadAll(resp.Body)
		answers = append(answers, answer{resp.StatusCode, body})
	}
}

const end = "GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

// TestHostileRequests sends what confuses parsers. Each case says which answers
// may come, in order. Behind most of them hides a request for /healthz that must
// never be answered as one of its own.
func TestHostileRequests(t *testing.T) {
	s, addr := exposed(t, access.Rules{})
	s.cached(patchA, bytesA)
	before, fetched, transfers := s.files("."), s.up.fetches.Load(), s.up.transfers.Load()

	const (
		ts     = "/metadata/timestamp.json HTTP/1.1\r\nHost: x\r\n"
		hidden = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
	)
	get, post := "GET "+ts, "POST "+ts
	body := func(n int) string { return fmt.Sprintf("Content-Length: %d\r\n\r\n", n) + hidden + end }
	many := func(n int, line string) string { return strings.Repeat(line, n) }
	for what, c := range map[string]struct{ request, want string }{
		// Where does the body end?
		"both framings, as chunks":    {post + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, "405|400"},
		"both framings, as length":    {post + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n" + hidden + "\r\n0\r\n\r\n", "405|400"},
		"both framings, GET":          {get + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, "200|400"},
		"two codings":                 {post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + hidden, "400|501"},
		"list of codings":             {post + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + hidden, "400|501"},
		"gzip, chunked":               {post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + hidden, "400|501"},
		"unknown coding":              {post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + hidden, "400|501"},
		"coding with a colon":         {post + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + hidden, "400"},
		"coding before a blank":       {post + " Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, "400|405"},
		"coding after a tab":          {post + "Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n" + hidden, "405|400|501"},
		"coding after a feed":         {post + "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + hidden, "400|501"},
		"coding folded":               {post + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + hidden, "405|400|501"},
		"coding in capitals":          {post + "TRANSFER-ENCODING: CHUNKED\r\n\r\n0\r\n\r\n" + hidden, "405|400|501"},
		"coding in quotes":            {post + "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n" + hidden, "400|501"},
		"coding after a bare LF":      {post + "X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, "405|400"},
		"coding after a bare CR":      {post + "X: y\rTransfer-Encoding: chunked\r\n\r\n", "400|405"},
		"coding in HTTP/1.0":          {"POST /metadata/timestamp.json HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, "405|400|501"},
		"two lengths":                 {get + "Content-Length: 0\r\nContent-Length: 5\r\n\r\n" + hidden, "400"},
		"list of lengths":             {get + "Content-Length: 0, 5\r\n\r\n" + hidden, "400"},
		"length with a sign":          {get + "Content-Length: +5\r\n\r\n" + hidden, "400"},
		"negative length":             {get + "Content-Length: -5\r\n\r\n" + hidden, "400"},
		"length in hex":               {get + "Content-Length: 0x5\r\n\r\n" + hidden, "400"},
		"length with a blank":         {get + "Content-Length: 1 0\r\n\r\n" + hidden, "400"},
		"length before a colon":       {get + "Content-Length : 5\r\n\r\n" + hidden, "400"},
		"no length":                   {get + "Content-Length: \r\n\r\n" + hidden, "400"},
		"huge length":                 {get + "Content-Length: 99999999999999999999\r\n\r\n" + hidden, "400"},
		"largest length":              {get + "Content-Length: 9223372036854775807\r\n\r\n" + hidden, "200"},
		"body on GET":                 {get + body(len(hidden)), "200"},
		"body on GET, short length":   {get + body(3), "200"},
		"body on POST":                {post + body(len(hidden)), "405"},
		"body on HEAD":                {"HEAD " + ts + body(len(hidden)), "200"},
		"body never comes":            {post + "Content-Length: 1000000000\r\n\r\n", "405"},
		"chunk without a size":        {post + "Transfer-Encoding: chunked\r\n\r\nx\r\n" + hidden, "405"},
		"chunk of negative size":      {post + "Transfer-Encoding: chunked\r\n\r\n-1\r\n" + hidden, "405"},
		"chunk of a huge size":        {post + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + hidden, "405"},
		"chunk of overflowing size":   {post + "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n" + hidden, "405"},
		"chunk with an extension":     {post + "Transfer-Encoding: chunked\r\n\r\n0;" + many(9000, "x") + "\r\n\r\n" + hidden, "405"},
		"chunk after a bare LF":       {post + "Transfer-Encoding: chunked\r\n\r\n0\n\n" + hidden, "405"},
		"chunk in hex with 0x":        {post + "Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n" + hidden, "405"},
		"trailers":                    {post + "Transfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n0\r\nContent-Length: 5\r\n\r\n" + hidden, "405|400"},
		"expectation":                 {post + "Expect: 100-continue\r\n" + body(len(hidden)), "405"},
		"odd expectation":             {get + "Expect: the unexpected\r\n" + body(len(hidden)), "417"},
		"upgrade to HTTP/2":           {get + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n" + end, "200 404"},
		"upgrade to WebSocket":        {get + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n" + end, "200 404"},
		"connection names everything": {get + "Connection: Host, Content-Length, Transfer-Encoding, close\r\n\r\n" + hidden, "200"},

		// What is a request at all?
		"HTTP/0.9":              {"GET /metadata/timestamp.json\r\n\r\n" + hidden, "400"},
		"HTTP/1.0":              {"GET /metadata/timestamp.json HTTP/1.0\r\n\r\n" + hidden, "200"},
		"HTTP/1.2":              {"GET /metadata/timestamp.json HTTP/1.2\r\nHost: x\r\nConnection: close\r\n\r\n", "200|400|505"},
		"HTTP/2 without TLS":    {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", "400|404|405|505"},
		"HTTP/3":                {"GET /metadata/timestamp.json HTTP/3.0\r\nHost: x\r\n\r\n", "505|400"},
		"HTTP/1.10":             {"GET /metadata/timestamp.json HTTP/1.10\r\nHost: x\r\n\r\n", "400|505"},
		"http/1.1":              {"GET /metadata/timestamp.json http/1.1\r\nHost: x\r\n\r\n", "400|505"},
		"two blanks":            {"GET  /metadata/timestamp.json HTTP/1.1\r\nHost: x\r\n\r\n" + hidden, "400"},
		"a tab":                 {"GET\t/metadata/timestamp.json\tHTTP/1.1\r\nHost: x\r\n\r\n" + hidden, "400"},
		"blank in the path":     {"GET /metadata/ timestamp.json HTTP/1.1\r\nHost: x\r\n\r\n" + hidden, "400"},
		"bare CR in the path":   {"GET /metadata/\rtimestamp.json HTTP/1.1\r\nHost: x\r\n\r\n" + hidden, "400"},
		"NUL in the path":       {"GET /metadata/\x00 HTTP/1.1\r\nHost: x\r\n\r\n" + hidden, "400"},
		"NUL in a header":       {get + "X: a\x00b\r\n\r\n" + hidden, "400"},
		"bare CR in a header":   {get + "X: a\rb\r\n\r\n" + hidden, "400"},
		"header without a name": {get + ": x\r\n\r\n" + hidden, "400"},
		"header without colon":  {get + "x\r\n\r\n" + hidden, "400"},
		"header name with CTL":  {get + "a\x01b: x\r\n\r\n" + hidden, "400"},
		"obsolete folding":      {get + "X: a\r\n b\r\nConnection: close\r\n\r\n" + hidden, "200|400"},
		"folding at first":      {"GET /metadata/timestamp.json HTTP/1.1\r\n Host: x\r\n\r\n" + hidden, "400"},
		"bare LFs alone":        {"GET /metadata/timestamp.json HTTP/1.1\nHost: x\nConnection: close\n\n" + hidden, "200|400"},
		"no host":               {"GET /metadata/timestamp.json HTTP/1.1\r\n\r\n" + hidden, "400"},
		"two hosts":             {get + "Host: y\r\n\r\n" + hidden, "400"},
		"host with a path":      {"GET /metadata/timestamp.json HTTP/1.1\r\nHost: x/y\r\n\r\n" + hidden, "400"},
		"host with a blank":     {"GET /metadata/timestamp.json HTTP/1.1\r\nHost: a b\r\n\r\n" + hidden, "400"},
		"absolute form":         {"GET http://169.254.169.254/metadata/timestamp.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "200"}, // ours, as RFC 9112 §3.2.2 has it
		"absolute form, not us": {"GET http://169.254.169.254/latest/meta-data HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "404"},
		"absolute form, user":   {"GET http://a:b@169.254.169.254/targets/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "404"},
		"absolute form, file":   {"GET file:///etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "404|400"},
		"authority form":        {"GET 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\n\r\n" + hidden, "400"},
		"connect":               {"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "405"},
		"connect to a path":     {"CONNECT /metadata/timestamp.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "405"},
		"asterisk":              {"GET * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "404|400"},
		"options asterisk":      {"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "200|405"},
		"backslashes":           {"GET \\metadata\\timestamp.json HTTP/1.1\r\nHost: x\r\n\r\n" + hidden, "400"},
		"no slash":              {"GET metadata/timestamp.json HTTP/1.1\r\nHost: x\r\n\r\n" + hidden, "400"},
		"fragment":              {"GET /metadata/#timestamp.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "404|400"},
		"raw UTF-8":             {"GET /targets/ü HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "404|400"},
		"overlong UTF-8":        {"GET /targets/%c0%ae%c0%ae/%c0%af HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "404|400"},
		"encoded twice":         {"GET /targets/%252e%252e%252flock HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "404|400"},
		"rubbish":               {many(1000, "\xff\x00\r\n"), "400"},
		"TLS to a plain port":   {"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + many(200, "\x00") + "\r\n\r\n", "400"},
		"nothing but lines":     {many(20_000, "\r\n"), "400|431|"},
		"nothing":               {"", ""},

		// Too much.
		"huge header":     {get + "X: " + many(1<<20, "x") + "\r\n\r\n", "431"},
		"many headers":    {get + many(10_000, "X: y\r\n") + "\r\n", "431"},
		"endless header":  {get + many(1<<20, "x"), "431"},
		"long path":       {"GET /" + many(1<<20, "x") + " HTTP/1.1\r\nHost: x\r\n\r\n", "431|414"},
		"long method":     {many(1<<16, "G") + " / HTTP/1.1\r\nHost: x\r\n\r\n", "431|400"},
		"long cookies":    {get + many(15, "Cookie: "+many(900, "a=b;")+"\r\n") + "\r\n", "431"},
		"many If-None":    {get + "If-None-Match: " + many(3000, `"a",`) + "\r\nConnection: close\r\n\r\n", "200"},
		"many codings":    {get + "Accept-Encoding: " + many(3000, "a;q=") + "\r\nConnection: close\r\n\r\n", "200|406"},
		"many in between": {get + "CDN-Loop: " + many(3000, "pk-,") + "\r\nConnection: close\r\n\r\n", "200"},
	} {
		t.Run(what, func(t *testing.T) {
			answers, rest := converse(t, addr, c.request)
			var got []string
			for _, a := range answers {
				got = append(got, fmt.Sprint(a.status))
				if string(a.body) == "ok\n" {
					t.Errorf("the hidden request was answered: %v", answers)
				}
				if a.status >= 300 && len(a.body) > 100 {
					t.Errorf("status %d with %d bytes", a.status, len(a.body))
				}
			}
			// HEAD has no body, which ReadResponse cannot know.
			if len(rest) > 0 && !strings.HasPrefix(c.request, "HEAD") {
				t.Errorf("what comes is no answer: %.80q", rest)
			}
			if !fits(got, c.want) {
				t.Errorf("answers %v, want %q", got, c.want)
			}
		})
	}
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "TRACE", "OPTIONS", "PROPFIND", "MKCOL", "COPY", "PURGE", "get", "GETT", "X-Y"} {
		for _, path := range []string{"/metadata/timestamp.json", urlOf(patchA, bytesA), "/healthz", "/readyz"} {
			if answers, _ := converse(t, addr, method+" "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); len(answers) != 1 || answers[0].status != 405 {
				t.Errorf("%s %s: %v", method, path, answers)
			}
		}
	}
	if n := s.up.fetches.Load() - fetched + s.up.transfers.Load() - transfers; n != 0 {
		t.Errorf("%d requests reached the upstream", n)
	}
	if after := s.files("."); !slices.Equal(after, before) {
		t.Errorf("files before: %v\nafter: %v", before, after)
	}
	s.want(patchA, bytesA)
}

// fits says whether statuses are as wanted: alternatives separated by bars, one
// after the other by blanks.
func fits(got []string, want string) bool {
	if len(got) == 0 {
		return want == "" || strings.HasSuffix(want, "|")
	}
	steps := strings.Fields(want)
	if len(steps) != len(got) {
		return false
	}
	for i, step := range steps {
		if !slices.Contains(strings.Split(step, "|"), got[i]) {
			return false
		}
	}
	return true
}

// TestAbsurdRanges: whatever is asked for, what comes is from the file, not much
// more of it than there is, and the connection goes on as if nothing had been.
func TestAbsurdRanges(t *testing.T) {
	s, addr := exposed(t, access.Rules{})
	s.cached(patchA, bytesA)
	transfers := s.up.transfers.Load()
	many := func(n int, f func(i int) string) string {
		parts := make([]string, n)
		for i := range parts {
			parts[i] = f(i)
		}
		return "bytes=" + strings.Join(parts, ",")
	}
	for what, header := range map[string]string{
		"1000 parts":          many(1000, func(i int) string { return fmt.Sprintf("%d-%d", i, i) }),
		"1000 times all":      many(1000, func(int) string { return "0-" }),
		"overlapping":         many(15, func(i int) string { return fmt.Sprintf("%d-", i) }),
		"backwards":           many(15, func(i int) string { return fmt.Sprintf("%d-%d", 1000-i*10, 1005-i*10) }),
		"suffixes":            many(15, func(i int) string { return fmt.Sprintf("-%d", i+1) }),
		"negative":            "bytes=-5--1",
		"double minus":        "bytes=--5",
		"reversed":            "bytes=500-100",
		"huge":                "bytes=0-18446744073709551615",
		"huge from":           "bytes=18446744073709551616-",
		"overflow":            "bytes=9223372036854775807-9223372036854775808",
		"most negative":       "bytes=-9223372036854775808",
		"signs":               "bytes=+1-+5",
		"hex":                 "bytes=0x1-0x5",
		"float":               "bytes=1.5-2e3",
		"no numbers":          "bytes=-",
		"no bytes":            "bytes=",
		"nothing":             "=",
		"commas":              "bytes=,,,,,,,,",
		"blanks":              "bytes= 0 - 5 , 7 - 9 ",
		"other unit":          "seconds=1-5",
		"beyond":              "bytes=300000-300001",
		"one in, one out":     "bytes=0-5,400000-",
		"UTF-8 digits":        "bytes=١-٥",
		"8 KiB of digits":     "bytes=0-" + strings.Repeat("9", 8<<10),
		"case":                "BYTES=0-5",
		"last byte many ways": "bytes=299999-299999,-1,299999-",
	} {
		t.Run(what, func(t *testing.T) {
			answers, rest := converse(t, addr, "GET "+urlOf(patchA, bytesA)+" HTTP/1.1\r\nHost: x\r\nRange: "+header+"\r\n\r\n"+end)
			if len(answers) != 2 || len(rest) != 0 || answers[1].status != 404 {
				t.Fatalf("%d answers, %d bytes after", len(answers), len(rest))
			}
			switch a := answers[0]; {
			case a.status == 200 && !bytes.Equal(a.body, bytesA):
				t.Errorf("200 with %d bytes", len(a.body))
			case a.status == 206 && len(a.body) > len(bytesA)+16*300:
				t.Errorf("206 with %d bytes", len(a.body))
			case a.status != 200 && a.status != 206 && a.status != 416:
				t.Errorf("status %d", a.status)
			}
		})
	}
	if n := s.up.transfers.Load() - transfers; n != 0 {
		t.Errorf("%d requests reached the upstream", n)
	}
}

// TestPipelining: requests that come at once are answered in order, each with its
// own, whoever answers them.
func TestPipelining(t *testing.T) {
	s, addr := exposed(t, access.Rules{})
	s.want(patchB, bytesB)
	paths := map[string][]byte{
		"/metadata/timestamp.json": s.repo.Latest("timestamp"), "/metadata/2.snapshot.json": s.repo.Latest("snapshot"),
		urlOf(patchB, bytesB): bytesB, "/healthz": []byte("ok\n"), "/metadata/1.root.json": s.root,
	}
	var request strings.Builder
	var want [][]byte
	for range 20 {
		for path, body := range paths {
			fmt.Fprintf(&request, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
			want = append(want, body)
		}
	}
	answers, rest := converse(t, addr, request.String()+end)
	if len(answers) != len(want)+1 || len(rest) != 0 {
		t.Fatalf("%d answers to %d requests, %d bytes after", len(answers), len(want)+1, len(rest))
	}
	for i, w := range want {
		if answers[i].status != 200 || !bytes.Equal(answers[i].body, w) {
			t.Errorf("answer %d: status %d, %d bytes, want %d", i, answers[i].status, len(answers[i].body), len(w))
		}
	}
}
