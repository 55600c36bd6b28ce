package client_test

import (
	"os"
	"syscall"
)

// maxRSS is the greatest resident memory of a finished process, in bytes.
func maxRSS(st *os.ProcessState) int64 {
	if u, ok := st.SysUsage().(*syscall.Rusage); ok {
		return u.Maxrss << 10
	}
	return 0
}
