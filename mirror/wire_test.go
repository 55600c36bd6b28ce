package mirror_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// onTheWire counts what goes over the line: bodies as they are sent.
type onTheWire struct {
	http.Handler
	requests, bytes atomic.Int64
}

func (c *onTheWire) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.requests.Add(1)
	c.Handler.ServeHTTP(&wireWriter{w, &c.bytes}, r)
}

type wireWriter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (w *wireWriter) Write(p []byte) (int, error) {
	w.n.Add(int64(len(p)))
	return w.ResponseWriter.Write(p)
}

func (w *wireWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// The first refresh and a look-up among 100 000 patches take at most 64 KiB of
// a machine's line, and a poll with nothing new two requests and hardly a byte.
// Only the bin that is looked into is filled: the others go over no line.
func TestFirstLookUpIsSmall(t *testing.T) {
	const patches, bits = 100_000, 8
	var wanted, in string
	s := newSite(t, func(s *site) {
		s.repo.Delegate("targets", tuftest.Delegation{Role: "product-big", Paths: layout.ProductPatterns("big"), Terminating: true})
		s.repo.DelegateBins("product-big", bits, "product-big")
		bins := s.repo.Targets["product-big"].Signed.Delegations.SuccinctRoles
		binOf := func(path string) string { return bins.GetRolesForTarget(path)[0].Name }
		n := 0
		for i := range patches {
			version := fmt.Sprintf("%d.%d.%d", i/1000, i/10%100, i%10)
			path, err := layout.PatchPath("big", version, "linux-amd64", fmt.Sprintf("big_%s_amd64.deb", version))
			must(t, err)
			bin := binOf(path)
			if wanted == "" {
				wanted, in = path, bin
			}
			if bin != in {
				continue
			}
			n++
			p := patch.Patch{
				Format: patch.Format, ID: patch.MakeID("big", version, "linux-amd64"), Product: "big", Version: version, Platform: "linux-amd64",
				Title: "Fixes what was wrong in " + version, Severity: patch.SeverityImportant, CVEs: []string{fmt.Sprintf("CVE-2026-%05d", i)},
				Kind: patch.KindDeb, Released: time.Unix(1_790_000_000+int64(i), 0).UTC(),
				Install:  &patch.Recipe{Argv: []string{"dpkg", "-i", "{file}"}, Timeout: 600},
				Verify:   &patch.Recipe{Argv: []string{"dpkg-query", "-W", "big"}},
				Rollback: &patch.Recipe{Argv: []string{"apt-get", "install", "big={previous}"}},
			}
			custom, err := p.ToCustom()
			must(t, err)
			s.repo.AddArtifact(bin, path, fmt.Append(nil, i))
			s.repo.Targets[bin].Signed.Targets[path].Custom = &custom
		}
		if n < patches>>bits*8/10 {
			t.Fatalf("only %d patches in the bin", n)
		}
		s.repo.PublishAll()
		export(t, s.repo, s.dir)
	})
	line := &onTheWire{Handler: s.m}
	srv := httptest.NewServer(line)
	defer srv.Close()
	c, err := client.Open(client.Config{Dir: t.TempDir(), Root: s.root, Mirrors: []string{srv.URL}})
	must(t, err)
	defer c.Close()
	must(t, c.Refresh(t.Context()))
	if _, err := c.Target(t.Context(), wanted); err != nil {
		t.Fatal(err)
	}
	first := line.bytes.Load()
	t.Logf("first refresh and look-up: %d requests, %d bytes", line.requests.Load(), first)
	if first > 64<<10 {
		t.Errorf("%d bytes on the wire", first)
	}
	line.bytes.Store(0)
	line.requests.Store(0)
	must(t, c.Refresh(t.Context()))
	if r, b := line.requests.Load(), line.bytes.Load(); r > 2 || b > 1000 {
		t.Errorf("poll: %d requests, %d bytes", r, b)
	}
}
