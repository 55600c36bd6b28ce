package cmd_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// maxIdle is what the agent may hold between two looks.
const maxIdle = 25 << 20

// The agent that runs is a quiet guest: between two looks, after it has polled
// and installed, it holds little memory. The real program, over a real mirror.
func TestAgentIdleMemory(t *testing.T) {
	bin := buildPrograms(t)
	dir := t.TempDir()
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, name), args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATCHKEEP_REPO="+filepath.Join(dir, "repo"), "PATCHKEEP_KEYS="+filepath.Join(dir, "keys"), "PATCHKEEP_KEY_PASSWORD=correct horse")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "big.bin"), bytes.Repeat([]byte("0123456789abcdef"), 2<<20), 0o600); err != nil { // 32 MiB
		t.Fatal(err)
	}
	run("patchkeep", "init")
	run("patchkeep", "root", "export", "--output", "root.json")
	run("patchkeep", "patch", "add", "big.bin", "--product", "big", "--version", "1.0")
	run("patchkeep", "rollout", "start", "big@1.0", "--ring", "users")
	srv := httptest.NewServer(http.FileServer(http.Dir(filepath.Join(dir, "repo"))))
	defer srv.Close()
	state, root := filepath.Join(dir, "state"), filepath.Join(dir, "opt")
	run("patchkeep-agent", "enroll", "--state", state, "--server", srv.URL, "--root", "root.json", "--ring", "users", "--install-root", root)

	agent := exec.CommandContext(t.Context(), filepath.Join(bin, "patchkeep-agent"), "run", "--state", state, "--now", "--interval", "1h")
	var out bytes.Buffer
	agent.Stdout, agent.Stderr = &out, &out
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- agent.Wait() }()
	// The same for a second: it has looked, and is idle.
	var rss int64
	patience := time.After(2 * time.Minute)
	installed := filepath.Join(root, "big", "current", "big.bin")
	for calm := 0; calm < 5; {
		select {
		case err := <-ended:
			t.Fatalf("it ended: %v\n%s", err, out.String())
		case <-time.After(200 * time.Millisecond):
		case <-patience:
			_ = agent.Process.Kill()
			<-ended
			t.Fatalf("it does not get to rest\n%s", out.String())
		}
		if _, err := os.Stat(installed); err != nil {
			continue
		}
		now := residentOf(t, agent.Process.Pid)
		if calm++; now > rss+(256<<10) || now < rss-(256<<10) {
			calm = 0
		}
		rss = now
	}
	t.Logf("idle with %.1f MiB", float64(rss)/(1<<20))
	if rss > maxIdle {
		t.Errorf("idle with %d bytes resident, at most %d are allowed", rss, int64(maxIdle))
	}
	if err := agent.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("told to stop, it ended with %v", err)
	}
}

// residentOf is VmRSS of a process, in bytes.
func residentOf(t *testing.T, pid int) int64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kb, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}
