package install

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

// byHandle runs the very file that is open, whatever another process has put at
// its path meanwhile. The program's name stays its path, but the interpreter of a
// script gets to see /proc/self/fd/N.
func byHandle(cmd *exec.Cmd, f *os.File) {
	if _, err := os.Stat(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); err != nil {
		return // no /proc
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	cmd.Path = fmt.Sprintf("/proc/self/fd/%d", 2+len(cmd.ExtraFiles))
}

// killMarked kills all that have the mark in their environment: what has left the
// process group of an installer whose time is over, by setsid or as a daemon.
func killMarked(mark string) {
	for range 10 { // they may fork meanwhile
		found := false
		paths, _ := filepath.Glob("/proc/[0-9]*/environ") // the pattern is right
		for _, path := range paths {
			env, err := os.ReadFile(path)
			pid, err2 := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil || err2 != nil || !bytes.Contains(env, []byte(mark)) {
				continue // gone already, or another user's
			}
			found = true
			_ = syscall.Kill(pid, syscall.SIGKILL) // gone already is fine
		}
		if !found {
			return
		}
	}
}
