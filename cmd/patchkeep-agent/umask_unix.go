//go:build unix

package main

import "syscall"

// setUmask gives installers the umask that they expect, whoever has started the
// agent. Its own files have modes of their own.
func setUmask() { syscall.Umask(0o022) }
