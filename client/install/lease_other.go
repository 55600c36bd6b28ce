//go:build !linux

package install

import "os"

// lease is not to be had here. On Windows the handle itself keeps writers off.
func lease(*os.File) (held bool, err error) { return false, nil }

func leased(*os.File) bool { return true }

func unlease(*os.File) {}
