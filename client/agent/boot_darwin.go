package agent

import "golang.org/x/sys/unix"

func sysctlBootID() (string, error) { return unix.Sysctl("kern.bootsessionuuid") }
