package signing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"golang.org/x/term"
)

// PasswordEnv is the environment variable that [Passwords] looks at.
const PasswordEnv = "PATCHKEEP_KEY_PASSWORD"

// maxPassword bounds a password in bytes.
const maxPassword = 1024

// attempts is how often a person may mistype.
const attempts = 3

// PasswordFunc gives the password of what, such as `key file "root.key"`; with
// confirm it is a new one, which a person types twice. The result is the
// caller's, who clears it. It may be called again after a wrong password.
type PasswordFunc func(ctx context.Context, what string, confirm bool) ([]byte, error)

// Passwords takes passwords from file descriptor fd if it is not negative, else
// from [PasswordEnv] if that is set, else from the terminal.
func Passwords(fd int) PasswordFunc {
	if fd >= 0 {
		return FDPassword(fd)
	}
	return func(ctx context.Context, what string, confirm bool) ([]byte, error) {
		if pw := os.Getenv(PasswordEnv); pw != "" {
			return []byte(pw), nil
		}
		return TerminalPassword(ctx, what, confirm)
	}
}

// StaticPassword always gives the same password.
func StaticPassword(password string) PasswordFunc {
	return func(context.Context, string, bool) ([]byte, error) { return []byte(password), nil }
}

// FDPassword gives the first line, of at most 1024 bytes, that comes from an
// open file descriptor. It is read once, and not beyond the end of the line.
func FDPassword(fd int) PasswordFunc {
	read := sync.OnceValues(func() ([]byte, error) {
		f := os.NewFile(uintptr(fd), "password-fd")
		if f == nil {
			return nil, fmt.Errorf("%d is not a file descriptor", fd)
		}
		line, err := readLine(f)
		if fd > 2 {
			_ = f.Close()
		}
		return line, err
	})
	return func(ctx context.Context, _ string, _ bool) ([]byte, error) {
		pw, err := interruptible(ctx, read)
		if err != nil {
			return nil, fmt.Errorf("read password from file descriptor %d: %w", fd, err)
		}
		return bytes.Clone(pw), nil
	}
}

// TerminalPassword asks on the terminal, without showing what is typed; a new
// password is asked for twice. Without a terminal it is [ErrPassword].
func TerminalPassword(ctx context.Context, what string, confirm bool) ([]byte, error) {
	in, out, closeTTY, err := openTerminal()
	if err != nil {
		return nil, err
	}
	defer closeTTY()
	if !confirm {
		return prompt(ctx, in, out, "Password for "+what+": ")
	}
	for range attempts {
		pw, err := prompt(ctx, in, out, "New password for "+what+": ")
		if err != nil {
			return nil, err
		}
		if len(pw) == 0 {
			fmt.Fprintln(out, "An empty password protects nothing.")
			continue
		}
		again, err := prompt(ctx, in, out, "The same again: ")
		if err != nil {
			clear(pw)
			return nil, err
		}
		same := bytes.Equal(pw, again)
		clear(again)
		if same {
			return pw, nil
		}
		clear(pw)
		fmt.Fprintln(out, "They differ.")
	}
	return nil, fmt.Errorf("%w: none was chosen for %s", ErrPassword, what)
}

// openTerminal finds the terminal even where stdin and stdout are redirected.
func openTerminal() (in, out *os.File, closeTTY func(), err error) {
	inName, outName := "/dev/tty", "/dev/tty"
	if runtime.GOOS == "windows" {
		inName, outName = "CONIN$", "CONOUT$"
	}
	if in, err = os.OpenFile(inName, os.O_RDWR, 0); err == nil {
		if out, err = os.OpenFile(outName, os.O_RDWR, 0); err == nil {
			return in, out, func() { _ = in.Close(); _ = out.Close() }, nil
		}
		_ = in.Close()
	}
	if term.IsTerminal(int(os.Stdin.Fd())) {
		return os.Stdin, os.Stderr, func() {}, nil
	}
	return nil, nil, nil, fmt.Errorf("%w: none was given and there is no terminal to ask on; set %s or use --password-fd",
		ErrPassword, PasswordEnv)
}

// prompt reads one line with the echo off.
func prompt(ctx context.Context, in, out *os.File, text string) ([]byte, error) {
	fd := int(in.Fd())
	state, err := term.GetState(fd)
	if err != nil {
		return nil, fmt.Errorf("ask for password: %w", err)
	}
	fmt.Fprint(out, text)
	pw, err := interruptible(ctx, func() ([]byte, error) { return term.ReadPassword(fd) })
	fmt.Fprintln(out)
	if err != nil {
		_ = term.Restore(fd, state) // the reader may still hang with the echo off
		return nil, fmt.Errorf("ask for password: %w", err)
	}
	if len(pw) > maxPassword {
		clear(pw)
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrPassword, maxPassword)
	}
	return pw, nil
}

// interruptible runs a read that knows no context. When ctx ends first, the
// read is left behind; the process is about to end too.
func interruptible(ctx context.Context, read func() ([]byte, error)) ([]byte, error) {
	type result struct {
		pw  []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		pw, err := read()
		done <- result{pw, err}
	}()
	select {
	case r := <-done:
		return r.pw, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// readLine reads byte by byte, so that what follows the line stays unread.
func readLine(f *os.File) ([]byte, error) {
	line := make([]byte, 0, maxPassword)
	var one [1]byte
	for {
		n, err := f.Read(one[:])
		if n == 1 && one[0] == '\n' || n == 0 && errors.Is(err, io.EOF) && len(line) > 0 {
			return bytes.TrimSuffix(line, []byte("\r")), nil
		}
		if n == 0 && err != nil {
			return nil, err
		}
		if n == 0 {
			continue
		}
		if len(line) == maxPassword {
			clear(line)
			return nil, errors.New("the line is too long")
		}
		line = append(line, one[0])
	}
}
