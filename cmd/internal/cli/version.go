package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
)

// Set by the linker:
//
//	-X github.com/patchkeep/patchkeep/cmd/internal/cli.version=v1.2.3
//	-X github.com/patchkeep/patchkeep/cmd/internal/cli.commit=<hex>
//	-X github.com/patchkeep/patchkeep/cmd/internal/cli.date=<RFC 3339>
var version, commit, date string

// BuildInfo says what this program was built from; what is unknown is empty.
type BuildInfo struct {
	Version string `json:"version"` // "v1.2.3", or "devel"
	Commit  string `json:"commit,omitempty"`
	Date    string `json:"date,omitempty"` // of the commit, RFC 3339
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

// Version tells what the linker was told, and else what Go itself put into the
// binary.
var Version = sync.OnceValue(func() BuildInfo {
	info := BuildInfo{Version: version, Commit: commit, Date: date, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return info.orDevel()
	}
	if info.Version == "" && build.Main.Version != "(devel)" {
		info.Version = build.Main.Version
	}
	for _, s := range build.Settings {
		switch s.Key {
		case "vcs.revision":
			if info.Commit == "" {
				info.Commit = s.Value
			}
		case "vcs.time":
			if info.Date == "" {
				info.Date = s.Value
			}
		}
	}
	return info.orDevel()
})

func (i BuildInfo) orDevel() BuildInfo {
	if i.Version == "" {
		i.Version = "devel"
	}
	return i
}

// String is "v1.2.3 (commit 0123456789ab, 2026-01-02T03:04:05Z, go1.26 linux/amd64)".
func (i BuildInfo) String() string {
	s := i.Version + " ("
	if i.Commit != "" {
		s += "commit " + i.Commit[:min(12, len(i.Commit))] + ", "
	}
	if i.Date != "" {
		s += i.Date + ", "
	}
	return s + fmt.Sprintf("%s %s/%s)", i.Go, i.OS, i.Arch)
}
