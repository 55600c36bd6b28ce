package mirror

import (
	"bytes"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/patchkeep/patchkeep/mirror/access"
	"github.com/patchkeep/patchkeep/mirror/fastlane"
)

// Listener lets the plainest requests for metadata over l pass ahead of
// net/http, at half its cost. It is for an http.Server of Handler or Public,
// which would give the same answers, and whose connections have no TLS. idle is
// that server's IdleTimeout; 0: 2 min.
func (m *Mirror) Listener(l net.Listener, idle time.Duration) net.Listener {
	h := http.Header{}
	setNoRootHeader(h)
	f := &fast{m, newResponse(http.StatusNotFound, h, noRoot)}
	return fastlane.New(l, fastlane.Config{Handler: f.answer, Idle: idle, State: m.ConnState})
}

// fast answers what needs nothing but memory.
type fast struct {
	m      *Mirror
	noRoot *fastlane.Response
}

// answer is what the handler would answer, or nil if there is more to it.
func (f *fast) answer(conn net.Conn, r *fastlane.Request) *fastlane.Response {
	name, ours := bytes.CutPrefix(r.Path, []byte(metadataPrefix))
	s := f.m.shown.Load()
	if !ours || s == nil {
		return nil
	}
	resp := f.find(s, string(name), r)
	if resp == nil {
		return nil
	}
	gate := f.m.cfg.Access
	if gate != nil && !gate.EnterPlain(conn) {
		return nil
	}
	f.m.seen.requests[routeMetadata][resp.Status].Add(1)
	f.m.seen.sent[routeMetadata].Add(int64(len(resp.Body)))
	if gate != nil && gate.Logs() {
		proto := "HTTP/1.1"
		if r.Old {
			proto = "HTTP/1.0"
		}
		gate.Record(access.Entry{
			Request: &http.Request{
				Method: http.MethodGet, URL: &url.URL{Path: string(r.Path)}, Proto: proto,
				Header: http.Header{"User-Agent": {string(r.UserAgent)}}, RemoteAddr: conn.RemoteAddr().String(),
			},
			Began: time.Now(), Route: "metadata", Status: resp.Status, Bytes: int64(len(resp.Body)),
		})
	}
	return resp
}

// find is serveMetadata, as far as all is well.
func (f *fast) find(s *shown, name string, r *fastlane.Request) *fastlane.Response {
	d := s.doc(name)
	if d == nil {
		if s.isNextRoot(name) {
			return f.noRoot
		}
		return nil
	}
	c, ok := d.choose(string(r.AcceptEncoding))
	if !ok {
		return nil
	}
	if v := d.matched(string(r.IfNoneMatch), c); v != nil {
		return d.response(&v.same, v, http.StatusNotModified, nil)
	}
	v := d.in(c)
	return d.response(&v.fast, v, http.StatusOK, v.body)
}

// response is made when it is first asked for.
func (d *doc) response(made *atomic.Pointer[fastlane.Response], v *variant, status int, body []byte) *fastlane.Response {
	resp := made.Load()
	if resp == nil {
		h := http.Header{}
		d.setHeader(h, v, status)
		if resp = newResponse(status, h, body); resp != nil {
			made.Store(resp)
		}
	}
	return resp
}

// newResponse adds what the frame has on every answer.
func newResponse(status int, h http.Header, body []byte) *fastlane.Response {
	for _, s := range securityHeaders {
		h[s.name] = s.value
	}
	return fastlane.NewResponse(status, h, body)
}
