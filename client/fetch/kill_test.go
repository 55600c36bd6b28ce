package fetch_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/fetch"
)

// TestMain lets this binary be a process that downloads until it is killed:
// arguments size of newObject, block list in base64 or "", dest, base or "", URLs
// that are all asked at once.
func TestMain(m *testing.M) {
	if os.Getenv("PATCHKEEP_TEST_ROLE") != "download" {
		os.Exit(m.Run())
	}
	n, _ := strconv.Atoi(os.Args[1])
	o := newObject(n)
	urls := os.Args[5:]
	r := fetch.Request{URLs: urls, Peers: len(urls), Length: int64(n), Hashes: o.hashes, Dest: os.Args[3]}
	if os.Args[2] != "" {
		r.Blocks, _ = base64.StdEncoding.DecodeString(os.Args[2])
	}
	if os.Args[4] != "" {
		r.Bases = []fetch.Base{{Path: os.Args[4]}}
	}
	_, err := fetch.New(fetch.Options{}).File(context.Background(), r)
	fmt.Println("not killed:", err)
	os.Exit(1)
}

// A download that is killed is gone on with: nearly nothing comes twice with a
// block list, and what was synced does not without.
func TestKill(t *testing.T) {
	const size = 200 * mib
	o := newObject(size)
	for _, c := range []struct {
		name  string
		at    int // bytes sent before the kill
		list  bool
		twice int64 // bytes that may come twice
	}{
		{"blocks, early", 3*mib + 5, true, 2 * mib},
		{"blocks, late", 150*mib + 5, true, 2 * mib},
		{"no blocks, before the first checkpoint", 3 * mib, false, 2 * mib},
		{"no blocks, later", 150 * mib, false, 2 * mib},
	} {
		t.Run(c.name, func(t *testing.T) {
			sent := make(chan struct{})
			slow := newMirror(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", strconv.Itoa(size))
				w.Write(o.data[:c.at])
				http.NewResponseController(w).Flush()
				close(sent)
				<-r.Context().Done()
			})
			fine := newMirror(t, good(o))
			r := request(t, o, fine.url)
			list := ""
			if c.list {
				r.Blocks = o.blocks
				list = base64.StdEncoding.EncodeToString(o.blocks)
			}
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(exe, strconv.Itoa(size), list, r.Dest, "", slow.url)
			cmd.Env = append(os.Environ(), "PATCHKEEP_TEST_ROLE=download")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			<-sent
			waitForSize(t, r.Dest+".part", int64(c.at)/mib*mib-2*mib)
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			cmd.Wait()

			res, err := fetch.New(quick).File(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			want(t, r, o)
			if twice := res.Bytes + int64(c.at) - size; twice > c.twice+mib {
				t.Errorf("%d bytes came twice: %+v", twice, res)
			}
		})
	}
}

// waitForSize waits until a file has grown.
func waitForSize(t *testing.T, name string, size int64) {
	t.Helper()
	for range 2000 {
		if info, err := os.Stat(name); err == nil && info.Size() >= size {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s did not reach %d bytes", name, size)
}
