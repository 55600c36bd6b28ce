package mirror_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkMetadata is the handler alone, for the small file that every client
// asks for at every poll.
func BenchmarkMetadata(b *testing.B) {
	s := newSite(b)
	for name, header := range map[string]string{"200": "", "304": "*"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				w := &discard{h: http.Header{}}
				req := httptest.NewRequest("GET", "/metadata/timestamp.json", nil)
				if header != "" {
					req.Header.Set("If-None-Match", header)
				}
				for pb.Next() {
					clear(w.h)
					s.m.ServeHTTP(w, req)
				}
			})
		})
	}
}

type discard struct{ h http.Header }

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) WriteHeader(int)             {}
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkMetadataHTTP is the same over 64 real connections, beside a handler
// of net/http that writes the same bytes: the ratio is what this package costs.
func BenchmarkMetadataHTTP(b *testing.B) {
	s := newSite(b)
	_, body := s.get("/metadata/timestamp.json")
	plain := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(body) })
	for name, h := range map[string]http.Handler{"mirror": s.m, "bare net-http": plain} {
		b.Run(name, func(b *testing.B) {
			srv := httptest.NewServer(h)
			defer srv.Close()
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
			defer client.CloseIdleConnections()
			b.SetParallelism(32)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					resp, err := client.Get(srv.URL + "/metadata/timestamp.json")
					if err != nil {
						b.Error(err)
						return
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			})
		})
	}
}

// BenchmarkObject is a hot object of 100 MB over loopback, beside net/http's
// file server, which reaches sendfile.
func BenchmarkObject(b *testing.B) {
	const size = 100_000_000
	data := content("big", size)
	s := newSite(b, func(s *site) {
		s.repo.AddArtifact("product-app", "patches/app/9/any/big", data)
		s.repo.PublishAll()
		export(b, s.repo, s.dir)
	})
	s.want("patches/app/9/any/big", data)
	file := filepath.Join(b.TempDir(), "big")
	must(b, os.WriteFile(file, data, 0o644))
	files := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeFile(w, r, file)
	})
	path := urlOf("patches/app/9/any/big", data)
	for name, h := range map[string]http.Handler{"mirror": s.m, "net-http file server": files} {
		b.Run(name, func(b *testing.B) {
			srv := httptest.NewServer(h)
			defer srv.Close()
			conn, err := net.Dial("tcp", srv.Listener.Addr().String())
			must(b, err)
			defer conn.Close()
			b.SetBytes(size)
			buf := make([]byte, 1<<20)
			for b.Loop() {
				_, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n")
				must(b, err)
				for left := size; left > 0; { // the few bytes of header count as body: nobody looks
					n, err := conn.Read(buf[:min(len(buf), left)])
					must(b, err)
					left -= n
				}
				conn.Close()
				conn, err = net.Dial("tcp", srv.Listener.Addr().String())
				must(b, err)
			}
		})
	}
}

// BenchmarkNewView is what a publish costs a mirror of 100 000 patches.
func BenchmarkNewView(b *testing.B) {
	s := newSite(b, func(s *site) {
		for i, bin := range s.repo.DelegateBins("product-app", 10, "bin") {
			for j := range 100 {
				s.repo.AddArtifact(bin, fmt.Sprintf("patches/app/%d/any/%d", i, j), nil)
			}
		}
		clear(s.repo.Artifacts) // only the metadata matters
		s.repo.PublishAll()
		export(b, s.repo, s.dir)
	})
	for b.Loop() {
		b.StopTimer()
		s.repo.Publish("bin-000", "snapshot", "timestamp")
		export(b, s.repo, s.dir)
		b.StartTimer()
		must(b, s.m.Refresh(b.Context()))
	}
	b.ReportMetric(float64(s.m.Status().View.Objects), "objects")
}
