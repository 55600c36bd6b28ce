//go:build !linux

package mirror

import "net/http"

// cork is for Linux.
func cork(*http.Request) (uncork func()) { return func() {} }
