//go:build unix

package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"
)

func isAdmin() bool { return os.Geteuid() == 0 }

func afterInstall() error { return nil }

// asService runs what may be started by a service manager. Here that is a
// process like any other.
func asService(cmd *cobra.Command, run func(context.Context) error) error { return run(cmd.Context()) }
