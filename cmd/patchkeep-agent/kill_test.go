//go:build unix

package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/fetch/faulty/unread"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
)

const (
	kills    = 200             // of agents, at least
	machines = 2               // side by side
	fileSize = 5 << 20         // just above what has a block list
	lineRate = 32 << 20        // bytes a second, of the server
	patience = 5 * time.Minute // a machine that is not busy with other things takes a fifth of it
)

// meter is a server's line: it is slow, and counts what of patches goes over it.
type meter struct {
	asked atomic.Bool  // since it was set to false
	bytes atomic.Int64 // that were sent
	busy  atomic.Int64 // requests that are being answered
}

func (m *meter) total() int64 { return m.bytes.Load() }

func (m *meter) handle(w http.ResponseWriter, r *http.Request, h http.Handler) {
	m.asked.Store(true)
	m.busy.Add(1)
	defer m.busy.Add(-1)
	if strings.Contains(r.URL.Path, "/patches/") && !strings.HasSuffix(r.URL.Path, layout.BlocksPath("")) {
		w = &slow{w, &m.bytes}
	}
	h.ServeHTTP(w, r)
}

// slow writes at lineRate.
type slow struct {
	http.ResponseWriter
	count *atomic.Int64
}

func (s *slow) Write(p []byte) (int, error) {
	const piece = 64 << 10
	done := 0
	for done < len(p) {
		n, err := s.ResponseWriter.Write(p[done:min(len(p), done+piece)])
		done += n
		s.count.Add(int64(n))
		if err != nil {
			return done, err
		}
		_ = http.NewResponseController(s.ResponseWriter).Flush()
		time.Sleep(time.Duration(n) * time.Second / lineRate)
	}
	return done, nil
}

// The agent is killed at 200 random moments of downloading and installing an
// archive, a script, and a Debian package. Each next run goes on: in the end all
// is installed, each once; never half; and little was fetched twice.
func TestKill9(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("PATCHKEEP_TEST_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("PATCHKEEP_TEST_SEED=%d", seed)
	// A program of its own: with the race detector in it, each start would take
	// longer than its life.
	program := filepath.Join(t.TempDir(), "patchkeep-agent")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build patchkeep-agent: %v\n%s", err, out)
	}
	until := time.Now().Add(patience)
	for machine := range uint64(machines) {
		t.Run(fmt.Sprint(machine), func(t *testing.T) {
			t.Parallel()
			k := newKiller(t, program, rand.New(rand.NewPCG(seed, machine)))
			rounds := 0 // of an archive, a script and a package each
			for ; k.killed < kills/machines && !t.Failed() && time.Now().Before(until); rounds++ {
				k.round(rounds + 1)
			}
			twice := k.meter.total() - k.unread - k.size
			t.Logf("%d rounds, %d kills, %.1f MiB in files, %.2f blocks of them twice for each kill",
				rounds, k.killed, float64(k.size)/(1<<20), float64(twice)/float64(layout.BlockSize)/float64(k.killed))
			if k.killed < kills/machines && !t.Failed() {
				t.Errorf("%d kills within %s, %d are wanted", k.killed, patience, kills/machines)
			}
			// Two blocks, and what a program's own buffers may hold.
			const most = 2*layout.BlockSize + 64<<10
			if unread.Known && twice > int64(k.killed)*most {
				t.Errorf("%d bytes were fetched twice, with %d kills", twice, k.killed)
			}
		})
	}
}

func newKiller(t *testing.T, program string, rnd *rand.Rand) *killer {
	t.Helper()
	s := newSite(t)
	m := &meter{}
	s.handle = m.handle
	s.publish()
	s.enroll()
	out := t.TempDir()
	k := &killer{
		site: s, meter: m, rnd: rnd, program: program, whole: map[string]bool{},
		runs: filepath.Join(out, "runs"), now: filepath.Join(out, "now"), system: filepath.Join(out, "system"),
		installed: filepath.Join(s.root, "data/current/bin/data"),
	}
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Log("there is no dpkg here")
		return k
	}
	k.deb = true
	k.installed = filepath.Join(k.system, k.installed)
	return k
}

type killer struct {
	*site
	meter             *meter
	rnd               *rand.Rand
	program           string // patchkeep-agent
	runs, now, system string
	installed         string // file of the archive
	deb               bool

	killed int
	unread int64           // bytes that were sent to agents which did not live to read them
	size   int64           // of all files, without what comes twice
	whole  map[string]bool // SHA-256 of what current/bin/hello may be
}

// round publishes a version of each product, and kills the agent until it gets
// to the end.
func (k *killer) round(n int) {
	k.Helper()
	version := fmt.Sprintf("1.%d", n)
	content := k.random(fileSize)
	k.plan.Entries = k.plan.Entries[:0]
	k.publishArchive(version, content)
	k.publishScript(version)
	want := version + "\n"
	if k.deb {
		k.publishDeb(version)
	}
	k.publish()
	var said string
	for killsHere := 0; ; {
		var code int
		var killed bool
		code, killed, said = k.life(killsHere)
		k.neverHalf()
		if killed {
			k.killed++
			killsHere++
			continue
		}
		switch code {
		case 0:
		case 12: // an installer outlived the agent
			time.Sleep(10 * time.Millisecond)
			continue
		case 1, 3:
			// What was cut off was rolled back, and put in by the same run or the next.
			if killsHere > 0 && strings.Contains(said, "cut off") {
				continue
			}
			fallthrough
		default:
			k.Fatalf("round %d: exit code %d\n%s", n, code, said)
		}
		break
	}
	if got := lines(k.runs, version); got != 1 {
		k.Errorf("the script of %s ran %d times", version, got)
	}
	if got := read(k.now); got != want {
		k.Errorf("the script left %q, want %q", got, want)
	}
	if got := sha256.Sum256([]byte(read(k.installed))); got != sha256.Sum256(content) {
		k.Errorf("the archive of %s is not what was published\n%s", version, said)
	}
	if k.deb {
		if got := lines(filepath.Join(k.system, "runs"), version); got != 1 {
			k.Errorf("the package of %s was configured %d times", version, got)
		}
	}
	k.want(0, k.args("apply"), "Nothing to do")
	k.want(0, k.args("check"), "installed  hello "+version, "installed  data "+version)
}

func (k *killer) args(command string) []string {
	if k.deb {
		return []string{command, "--root", k.system}
	}
	return []string{command}
}

// life runs the agent until it ends, or is killed: after some bytes, after some
// time, or as it starts; before is how often it was killed in this round.
func (k *killer) life(before int) (code int, killed bool, said string) {
	k.Helper()
	cmd := exec.Command(k.program, append([]string{"--state", k.state}, k.args("apply")...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	k.meter.asked.Store(false)
	bytes, asked := k.meter.total(), time.Time{}
	var afterBytes int64
	afterTime := time.Duration(k.rnd.Int64N(int64(150 * time.Millisecond)))
	switch k.rnd.IntN(10) {
	case 0: // as it starts
		asked = time.Now()
	case 1, 2, 3: // after some time
	default:
		afterBytes = k.rnd.Int64N(8<<20) + int64(before)<<18 // the more often, the later: it is to come to an end
		afterTime = time.Second                              // there may be nothing to fetch any more
	}
	k.must(cmd.Start())
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	for alive := true; alive; {
		select {
		case <-ended:
			alive = false
		case <-time.After(time.Millisecond):
			if asked.IsZero() && k.meter.asked.Load() {
				asked = time.Now()
			}
			if !asked.IsZero() && time.Since(asked) >= afterTime || afterBytes > 0 && k.meter.total()-bytes >= afterBytes {
				k.kill(cmd.Process)
				<-ended
				alive = false
			}
		}
	}
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	return cmd.ProcessState.ExitCode(), ok && status.Signaled(), out.String()
}

// kill ends the agent without a warning. What lies in its sockets then was sent
// and not fetched: it is counted apart.
func (k *killer) kill(p *os.Process) {
	_ = p.Signal(syscall.SIGSTOP)
	lost := unread.Bytes(k, k.srv.Listener.Addr().String())
	sent := k.meter.total()
	_ = p.Kill()
	for range 5000 { // whoever still answers it finds out
		if k.meter.busy.Load() == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	k.unread += lost + k.meter.total() - sent
}

// neverHalf checks that the archive's product is one whole version, or not there.
func (k *killer) neverHalf() {
	k.Helper()
	data, err := os.ReadFile(k.installed)
	if err == nil && !k.whole[fmt.Sprintf("%x", sha256.Sum256(data))] {
		k.Errorf("half of something is installed: %d bytes", len(data))
	}
}

func (k *killer) publishArchive(version string, program []byte) {
	k.Helper()
	k.whole[fmt.Sprintf("%x", sha256.Sum256(program))] = true
	content := archive(k.T, "bin/data", program)
	k.size += int64(len(content))
	k.add("data", version, "data.tar", content)
}

func (k *killer) publishScript(version string) {
	k.Helper()
	script := fmt.Sprintf("#!/bin/sh\nset -e\nprintf '%s\\n' >>%s\nsleep 0.05\nprintf '%s\\n' >%s\nexit 0\n", version, k.runs, version, k.now)
	content := append([]byte(script), k.random(fileSize)...)
	k.size += int64(len(content))
	k.add("hello", version, "hello.sh", content, func(p *patch.Patch) {
		p.Kind = patch.KindScript
		p.Detect = &patch.Recipe{Argv: []string{"cat", k.now}}
	})
}

func (k *killer) publishDeb(version string) {
	k.Helper()
	tree := k.TempDir()
	k.must(os.MkdirAll(filepath.Join(tree, "DEBIAN"), 0o755))
	k.must(os.MkdirAll(filepath.Join(tree, "usr/share/tools"), 0o755))
	control := fmt.Sprintf("Package: tools\nVersion: %s\nArchitecture: all\nMaintainer: Test <test@example.org>\nDescription: tools\n", version)
	k.must(os.WriteFile(filepath.Join(tree, "DEBIAN/control"), []byte(control), 0o644))
	post := fmt.Sprintf("#!/bin/sh\nset -e\nprintf '%s\\n' >>\"$DPKG_ROOT/runs\"\n", version)
	k.must(os.WriteFile(filepath.Join(tree, "DEBIAN/postinst"), []byte(post), 0o755))
	k.must(os.WriteFile(filepath.Join(tree, "usr/share/tools/data"), k.random(fileSize), 0o644))
	deb := filepath.Join(k.TempDir(), "tools_"+version+"_all.deb")
	if out, err := exec.Command("dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, deb).CombinedOutput(); err != nil {
		k.Fatalf("build package: %v\n%s", err, out)
	}
	content, err := os.ReadFile(deb)
	k.must(err)
	k.size += int64(len(content))
	k.add("tools", version, filepath.Base(deb), content)
}

// random bytes, of which no two versions share a block.
func (k *killer) random(n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += 8 {
		v := k.rnd.Uint64()
		for j := range min(8, n-i) {
			b[i+j] = byte(v >> (8 * j))
		}
	}
	return b
}

func lines(file, want string) int {
	n := 0
	for line := range strings.Lines(read(file)) {
		if strings.TrimSpace(line) == want {
			n++
		}
	}
	return n
}
