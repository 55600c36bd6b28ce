package cmd_test

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// What the Dockerfile builds is built here by its very command, since a machine
// that runs the tests need not run Docker: the programs must need no library
// and no interpreter, as their image has none, and say what they are.
func TestDockerfileBuildsStaticPrograms(t *testing.T) {
	if runtime.GOOS != "linux" {
		return // the images are Linux ones
	}
	out := t.TempDir()
	for _, command := range goBuilds(t, instructions(t)) {
		command = strings.Replace(command, "-o /out/", "-o "+out+"/", 1)
		cmd := exec.CommandContext(t.Context(), "sh", "-euc", command)
		cmd.Dir = ".."
		cmd.Env = append(os.Environ(), "TARGETOS=linux", "TARGETARCH="+runtime.GOARCH,
			"VERSION=v9.8.7-test", "COMMIT=0123456789abcdef", "DATE=2026-01-02T03:04:05Z")
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, output)
		}
	}
	for _, name := range []string{"patchkeep", "patchkeep-mirror", "patchkeep-agent"} {
		path := filepath.Join(out, name)
		checkStatic(t, path)
		version, err := exec.CommandContext(t.Context(), path, "--version").Output()
		want := name + " v9.8.7-test (commit 0123456789ab, 2026-01-02T03:04:05Z, " + runtime.Version()
		if err != nil || !strings.HasPrefix(string(version), want) {
			t.Errorf("%s --version: %q, %v; want %q", name, version, err, want)
		}
	}
}

// Every program that is built has its own image, which starts it as nobody.
func TestDockerfileStages(t *testing.T) {
	stages := map[string][]string{}
	parent := map[string]string{}
	var last string
	for _, in := range instructions(t) {
		if from, ok := strings.CutPrefix(in, "FROM "); ok {
			f := strings.Fields(from)
			f = slices.DeleteFunc(f, func(s string) bool { return strings.HasPrefix(s, "--") })
			if len(f) != 3 || f[1] != "AS" {
				t.Fatalf("%q names no stage", in)
			}
			last = f[2]
			parent[last] = f[0]
		}
		stages[last] = append(stages[last], in)
	}
	for stage, program := range map[string]string{"patchkeep": "patchkeep", "mirror": "patchkeep-mirror", "agent": "patchkeep-agent"} {
		if parent[stage] != "base" {
			t.Errorf("%s is built on %q", stage, parent[stage])
		}
		for _, want := range []string{
			"COPY --from=build /out/" + program + " /usr/local/bin/" + program,
			`ENTRYPOINT ["/usr/local/bin/` + program + `"]`,
		} {
			if !slices.Contains(stages[stage], want) {
				t.Errorf("stage %s lacks %q", stage, want)
			}
		}
	}
	if !slices.Contains(stages["base"], "USER nonroot:nonroot") || !strings.Contains(parent["base"], "distroless/static") {
		t.Errorf("the images stand on %q: %q", parent["base"], stages["base"])
	}
}

// instructions gives the Dockerfile's, each on one line.
func instructions(t *testing.T) []string {
	t.Helper()
	data, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`(?m)^\s*#.*\n`).ReplaceAllString(string(data), "")
	text = regexp.MustCompile(`\\\n\s*`).ReplaceAllString(text, "")
	return slices.DeleteFunc(strings.Split(text, "\n"), func(s string) bool { return s == "" })
}

// goBuilds gives the shell commands that build, without Docker's own options.
func goBuilds(t *testing.T, instructions []string) []string {
	t.Helper()
	var builds []string
	for _, in := range instructions {
		if run, ok := strings.CutPrefix(in, "RUN "); ok && strings.Contains(run, "go build") {
			builds = append(builds, regexp.MustCompile(`^(--\S+\s+)*`).ReplaceAllString(run, ""))
		}
	}
	if len(builds) == 0 {
		t.Fatal("the Dockerfile builds nothing")
	}
	return builds
}

func checkStatic(t *testing.T, path string) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Errorf("%s asks for an interpreter", path)
		}
	}
	if libs, err := f.ImportedLibraries(); err != nil || len(libs) > 0 {
		t.Errorf("%s needs %v, %v", path, libs, err)
	}
}
