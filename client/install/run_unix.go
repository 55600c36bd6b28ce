//go:build unix

package install

import (
	"errors"
	"os"
	"os/exec"
	"os/user"
	"syscall"
)

var (
	inherited       = []string{"TZ"}
	tempNames       = []string{"TMPDIR"}
	programSuffixes = []string{""}
)

var searchPath = func() []string {
	return []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}
}

func isProgram(info os.FileInfo) bool { return info.Mode()&0o111 != 0 }

func homeDir() string {
	if u, err := user.Current(); err == nil && u.HomeDir != "" {
		return u.HomeDir
	}
	return "/"
}

// group is a program with all it starts: a process group.
type group struct{ cmd *exec.Cmd }

func newGroup(cmd *exec.Cmd) *group {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return &group{cmd}
}

func (g *group) start() error { return g.cmd.Start() }

func (g *group) terminate() error {
	err := syscall.Kill(-g.cmd.Process.Pid, syscall.SIGTERM)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

func (g *group) kill() { _ = syscall.Kill(-g.cmd.Process.Pid, syscall.SIGKILL) } // gone already is fine

func (g *group) close() {}

// inherit passes an open file on to the program and to what that starts.
func inherit(cmd *exec.Cmd, f *os.File) error {
	cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	return nil
}
