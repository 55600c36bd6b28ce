package s3server

import (
	"os/exec"
	"syscall"
)

// dieWithParent: a test binary that panics or is killed runs no clean-up.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
