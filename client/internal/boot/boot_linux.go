package boot

import (
	"os"
	"strings"
)

func id() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data)), err
}

func same(a, b string) bool { return a == b }
