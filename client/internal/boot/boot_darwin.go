package boot

import "golang.org/x/sys/unix"

func id() (string, error) { return unix.Sysctl("kern.bootsessionuuid") }

func same(a, b string) bool { return a == b }
