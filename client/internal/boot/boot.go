// Package boot tells one run of the operating system from another.
package boot

// ID names the present one. It is not empty unless there is an error.
func ID() (string, error) { return id() }

// Same reports whether two IDs name the same run.
func Same(a, b string) bool { return a != "" && same(a, b) }
