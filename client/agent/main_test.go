//go:build unix

package agent_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"testing"

	"github.com/patchkeep/patchkeep/client/agent"
)

// TestMain lets the test binary be an agent that kills itself at a step.
func TestMain(m *testing.M) {
	if dir := os.Getenv("TEST_AGENT_DIR"); dir != "" {
		os.Exit(crashingAgent(dir))
	}
	os.Exit(m.Run())
}

func crashingAgent(dir string) int {
	at := os.Getenv("TEST_AGENT_DIE_AT") // the name of a step, or its number
	n := 0
	agent.OnStep(func(point string) {
		if n++; strconv.Itoa(n) == at || point == at {
			fmt.Println(point)
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
	a, err := agent.Open(agent.Options{Dir: dir})
	if err == nil {
		_, err = a.Apply(context.Background(), agent.ApplyOptions{})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
