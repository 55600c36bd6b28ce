//go:build unix

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// TestMain lets the test's own program be the mirror, for what only a process
// of its own can show.
func TestMain(m *testing.M) {
	if os.Getenv("PATCHKEEP_TEST_IS_MIRROR") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// halting serves a repository, and stops in the middle of its target until it
// is let go.
func halting(t *testing.T, dir string) (url string, reached <-chan struct{}, release func()) {
	t.Helper()
	half, open := make(chan struct{}), make(chan struct{})
	var once, opened sync.Once
	files := http.FileServer(http.Dir(dir))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/targets/") || r.Header.Get("Range") != "" {
			files.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		w.Write(content[:len(content)/2])
		w.(http.Flusher).Flush()
		once.Do(func() { close(half) })
		select {
		case <-open:
		case <-r.Context().Done():
			return
		}
		w.Write(content[len(content)/2:])
	}))
	release = func() { opened.Do(func() { close(open) }) }
	t.Cleanup(srv.Close)
	t.Cleanup(release)
	return srv.URL, half, release
}

// begin starts a download, and returns what there is of it and the rest.
func begin(t *testing.T, base string) (first []byte, rest io.ReadCloser) {
	t.Helper()
	resp, err := http.Get(base + "/targets/" + target + ".f")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	first = make([]byte, 1<<20)
	if _, err := io.ReadFull(resp.Body, first); err != nil {
		t.Fatal(err)
	}
	return first, resp.Body
}

// refuses waits until nobody listens any more.
func refuses(r *running) {
	r.until("the end of listening", func() bool {
		conn, err := net.Dial("tcp", strings.TrimPrefix(r.base, "http://"))
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
}

// TestGracefulStopDuringFill: a fill goes on for those who read along with it.
func TestGracefulStopDuringFill(t *testing.T) {
	dir, root := repository(t)
	url, reached, release := halting(t, dir)
	cache := t.TempDir()
	r := run(t, "--upstream", url, "--root", root, "--cache", cache)
	first, rest := begin(t, r.base)
	<-reached
	r.stop()
	refuses(r)
	release()
	body, err := io.ReadAll(rest)
	if err != nil || !bytes.Equal(slices.Concat(first, body), content) {
		t.Errorf("%d bytes, %v", len(first)+len(body), err)
	}
	if code := r.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if _, err := os.Stat(filepath.Join(cache, "cas", "sha256", target[:2], target)); err != nil {
		t.Errorf("what was fetched is not kept: %v", err)
	}
}

// TestSecondSignalCuts: the first one lets transfers end, the second does not;
// what was fetched is kept for the next time.
func TestSecondSignalCuts(t *testing.T) {
	dir, root := repository(t)
	url, reached, _ := halting(t, dir)
	cache := t.TempDir()
	r := run(t, "--upstream", url, "--root", root, "--cache", cache, "--grace", "1h")
	_, rest := begin(t, r.base)
	<-reached
	signal := func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	signal()
	r.says("stopping")
	refuses(r)
	signal()
	<-r.done
	r.says("transfers were cut off")
	if n, err := io.Copy(io.Discard, rest); err == nil {
		t.Errorf("the transfer ended well after %d bytes", n)
	}
	parts, err := filepath.Glob(filepath.Join(cache, "tmp", "*.part"))
	if err != nil || len(parts) != 1 {
		t.Errorf("%v, %v: what was fetched is not kept", parts, err)
	}
}

// TestSystemd: it is told when the mirror is ready, reloads, stops, and lives.
func TestSystemd(t *testing.T) {
	dir, root := repository(t)
	name := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", name)
	t.Setenv("WATCHDOG_USEC", "50000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	r := run(t, "--upstream", dir, "--root", root)
	next := func() string { // but for the watchdog's
		for {
			buf := make([]byte, 1000)
			n, err := conn.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			if s := string(buf[:n]); s != "WATCHDOG=1" {
				return s
			}
		}
	}
	if s := next(); s != "READY=1" {
		t.Errorf("%q at the start", s)
	}
	buf := make([]byte, 100)
	if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "WATCHDOG=1" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	hangup(t)
	if s := next(); !regexp.MustCompile(`^RELOADING=1\nMONOTONIC_USEC=\d+\n$`).MatchString(s) {
		t.Errorf("%q at a reload", s)
	}
	if s := next(); s != "READY=1" {
		t.Errorf("%q after a reload", s)
	}
	go r.end()
	if s := next(); s != "STOPPING=1" {
		t.Errorf("%q at the end", s)
	}
	<-r.done
}

// TestSocketActivation: a process that is handed its sockets serves on them, and
// what it starts does not think that they are its own.
func TestSocketActivation(t *testing.T) {
	dir, root := repository(t)
	handed := func() (*os.File, string) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		return f, "http://" + l.Addr().String()
	}
	for _, names := range []string{"public:admin", "patchkeep-mirror.socket"} {
		one, base := handed()
		two, admin := handed()
		files := []*os.File{one, two}[:strings.Count(names, ":")+1]
		// The shell's process is the mirror's, whose number has to be told.
		cmd := exec.CommandContext(t.Context(), "sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", os.Args[0],
			"serve", "--upstream", dir, "--root", root, "--cache", t.TempDir(), "--min-free", "0", "--listen", "127.0.0.1:1", "--json")
		cmd.ExtraFiles = files
		cmd.Env = append(os.Environ(), "PATCHKEEP_TEST_IS_MIRROR=1", fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES="+names)
		var errs syncBuffer
		cmd.Stderr = &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		one.Close()
		two.Close()
		get := func(url string) int {
			resp, err := http.Get(url) // waits in the socket's queue until it is ready
			if err != nil {
				return 0
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			return resp.StatusCode
		}
		if code := get(base + "/metadata/timestamp.json"); code != 200 {
			t.Errorf("%s: status %d: %s", names, code, &errs)
		}
		onPublic := 200
		if len(files) > 1 {
			onPublic = 404
			if code := get(admin + "/readyz"); code != 200 {
				t.Errorf("%s: admin: status %d", names, code)
			}
		}
		if code := get(base + "/readyz"); code != onPublic {
			t.Errorf("%s: /readyz in public: status %d, want %d", names, code, onPublic)
		}
		http.DefaultClient.CloseIdleConnections()
		if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
			t.Errorf("%s: %v: %s", names, err, &errs)
		}
	}
}
