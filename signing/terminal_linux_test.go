package signing_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/patchkeep/patchkeep/signing"
)

// The test program itself, started anew on a terminal of its own, asks for a
// password and prints what it got.
func TestMain(m *testing.M) {
	if mode := os.Getenv("SIGNING_TEST_ASK"); mode != "" {
		pw, err := signing.Passwords(-1)(context.Background(), "key", mode == "confirm")
		fmt.Printf("got %q %v\n", pw, err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestPasswordFromTerminal(t *testing.T) {
	for _, c := range []struct {
		name, mode string
		typed      []string // an answer to each prompt
		want       string
	}{
		{"once", "ask", []string{"hush"}, `got "hush" <nil>`},
		{"new", "confirm", []string{"hush", "hush"}, `got "hush" <nil>`},
		{"mistyped", "confirm", []string{"hush", "hash", "hush", "hush"}, `got "hush" <nil>`},
		{"empty", "confirm", []string{"", "", ""}, "password not accepted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, screen := onTerminal(t, c.mode, c.typed)
			if !strings.Contains(out, c.want) {
				t.Errorf("%q, want %q", out, c.want)
			}
			if strings.Contains(screen, "hush") {
				t.Errorf("the screen shows the password: %q", screen)
			}
		})
	}
}

func TestNoTerminal(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SIGNING_TEST_ASK=ask", signing.PasswordEnv+"=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), "set "+signing.PasswordEnv) {
		t.Errorf("%q, %v", out, err)
	}
}

// onTerminal runs the program on a new pseudo-terminal, types an answer to each
// prompt, and gives its stdout and all that the screen showed.
func onTerminal(t *testing.T, mode string, answers []string) (stdout, screen string) {
	t.Helper()
	master, slave := openPTY(t)
	var out strings.Builder
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SIGNING_TEST_ASK="+mode, signing.PasswordEnv+"=")
	cmd.Stdin, cmd.Stdout = slave, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = slave.Close()

	var shown strings.Builder
	in := bufio.NewReader(master)
	for {
		text, err := in.ReadString(':')
		shown.WriteString(text)
		if err != nil { // the last process on the terminal has left
			break
		}
		if strings.HasSuffix(text, ":") && len(answers) > 0 {
			waitForEchoOff(t, master)
			fmt.Fprintln(master, answers[0])
			answers = answers[1:]
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	return out.String(), shown.String()
}

// waitForEchoOff is what a person does by being slow.
func waitForEchoOff(t *testing.T, tty *os.File) {
	t.Helper()
	conn, err := tty.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for range 10_000_000 {
		var state *unix.Termios
		if cErr := conn.Control(func(fd uintptr) { state, err = unix.IoctlGetTermios(int(fd), unix.TCGETS) }); cErr != nil || err != nil {
			t.Fatal(cErr, err)
		}
		if state.Lflag&unix.ECHO == 0 {
			return
		}
	}
	t.Fatal("the echo stays on")
}

func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}
