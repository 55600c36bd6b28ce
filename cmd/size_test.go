package cmd_test

import (
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// systems that the agent is built for.
var systems = []string{"linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64", "windows/amd64", "windows/arm64"}

// The agent's whole size on any system, in bytes.
const maxAgent = 20 << 20

// The agent is small and links nothing that it does not need, on each system,
// built as the Makefile builds it. Building for all takes minutes at first, so
// that `make cross` does it, with PATCHKEEP_CROSS set, and others build for their
// own system.
func TestAgentOnEachSystem(t *testing.T) {
	for _, system := range systems {
		goos, arch, _ := strings.Cut(system, "/")
		env := append(os.Environ(), "GOOS="+goos, "GOARCH="+arch, "CGO_ENABLED=0")
		list := exec.CommandContext(t.Context(), "go", "list", "-deps", module+"/cmd/patchkeep-agent")
		list.Env = env
		deps, err := list.Output()
		if err != nil {
			t.Fatalf("%s: %v", system, err)
		}
		for dep := range strings.FieldsSeq(string(deps)) {
			if matchesAny(dep, linked["cmd/patchkeep-agent"]) {
				t.Errorf("%s: the agent links %s", system, dep)
			}
		}
		if os.Getenv("PATCHKEEP_CROSS") == "" && system != runtime.GOOS+"/"+runtime.GOARCH {
			continue
		}
		exe := filepath.Join(t.TempDir(), "patchkeep-agent")
		build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", exe, module+"/cmd/patchkeep-agent")
		build.Env = env
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", system, err, out)
		}
		info, err := os.Stat(exe)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %.1f MiB", system, float64(info.Size())/(1<<20))
		if info.Size() > maxAgent {
			t.Errorf("%s: the agent has %d bytes, at most %d are allowed", system, info.Size(), int64(maxAgent))
		}
		if built, err := buildinfo.ReadFile(exe); err != nil || fmt.Sprint(settingOf(built, "GOOS"), "/", settingOf(built, "GOARCH")) != system {
			t.Errorf("%s: built something else: %v", system, err)
		}
	}
}

func settingOf(info *buildinfo.BuildInfo, key string) string {
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}
