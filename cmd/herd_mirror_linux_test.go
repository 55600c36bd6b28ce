package cmd_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// mirrorProcess is a patchkeep-mirror serve that runs.
type mirrorProcess struct {
	url, admin string
	addr       string // host:port of url
	pid        int
	cmd        *exec.Cmd
	log        *lockedBuffer
	ended      chan struct{}
	err        error // of the process, once ended is closed
}

// serveMirror starts the program and waits until it is ready. It is killed when
// the test ends, if it still runs then.
func serveMirror(t testing.TB, bin string, args ...string) *mirrorProcess {
	t.Helper()
	m := &mirrorProcess{log: &lockedBuffer{}, ended: make(chan struct{})}
	m.cmd = exec.CommandContext(context.Background(), filepath.Join(bin, "patchkeep-mirror"),
		append([]string{"serve", "--json", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"}, args...)...)
	m.cmd.Stderr = m.log
	stdout, err := m.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.pid = m.cmd.Process.Pid
	var said struct{ URL, Admin string }
	err = json.NewDecoder(stdout).Decode(&said)
	go func() {
		io.Copy(io.Discard, stdout)
		m.err = m.cmd.Wait()
		close(m.ended)
	}()
	t.Cleanup(func() { m.end(syscall.SIGKILL) })
	if err != nil {
		m.end(syscall.SIGKILL)
		t.Fatalf("mirror does not say where it listens: %v\n%s", err, m.log)
	}
	m.url, m.admin = said.URL, said.Admin
	m.addr = strings.TrimPrefix(m.url, "http://")
	for range 600 {
		if resp, err := http.Get(m.admin + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return m
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("mirror does not become ready:\n%s", m.log)
	return nil
}

// end sends a signal and waits for the end of the process. A second time it
// does nothing.
func (m *mirrorProcess) end(sig syscall.Signal) {
	m.cmd.Process.Signal(sig)
	<-m.ended
}

// metrics are the samples of /metrics without labels, by name.
func (m *mirrorProcess) metrics(t testing.TB) map[string]float64 {
	t.Helper()
	resp, err := http.Get(m.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	out := map[string]float64{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			out[name] = v
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// memory is what a process holds, in bytes: now, without pages of files; and
// at most so far, with them.
func memory(t testing.TB, pid int) (anon, peak int64) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	field := func(name string) int64 {
		_, rest, _ := bytes.Cut(data, []byte("\n"+name+":"))
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		n, err := strconv.ParseInt(string(bytes.TrimSpace(bytes.TrimSuffix(line, []byte(" kB")))), 10, 64)
		if err != nil {
			t.Fatalf("%s of process %d: %v", name, pid, err)
		}
		return n << 10
	}
	return field("RssAnon"), field("VmHWM")
}

// openFiles is how many a process has.
func openFiles(t testing.TB, pid int) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// lockedBuffer is what several goroutines write to.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String is the end of it.
func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.buf.String()
	return s[max(0, len(s)-8<<10):]
}
