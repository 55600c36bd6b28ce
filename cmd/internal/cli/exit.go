package cli

import (
	"context"
	"errors"
	"fmt"
)

// Exit codes, the same for every program.
const (
	OK         = 0
	Failure    = 1
	Partial    = 3  // some of it was done
	NotTrusted = 10 // a signature, hash, version or approval is not as it must be
	Expired    = 11 // metadata is past its time
	Conflict   = 12 // somebody else, or an earlier version, has the place
	Offline    = 13 // nobody could be reached
	Usage      = 64 // the command line is wrong
	Cancelled  = 130
)

// Rule gives every error that wraps Target the exit code Code.
type Rule struct {
	Target error
	Code   int
}

// ExitCode is the one place where an error becomes an exit code: that of
// [Exit], usage, cancellation, then the first rule that matches, else Failure.
func ExitCode(err error, rules ...Rule) int {
	if err == nil {
		return OK
	}
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.code
	}
	if _, ok := errors.AsType[*UsageError](err); ok {
		return Usage
	}
	if errors.Is(err, context.Canceled) {
		return Cancelled
	}
	for _, r := range rules {
		if errors.Is(err, r.Target) {
			return r.Code
		}
	}
	return Failure
}

// Exit gives err an exit code of its own; nil stays nil.
func Exit(err error, code int) error {
	if err == nil {
		return nil
	}
	return &exitError{err, code}
}

type exitError struct {
	error
	code int
}

func (e *exitError) Unwrap() error { return e.error }

// UsageError says that the command line is wrong.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }

// Unwrap gives what was found wrong.
func (e *UsageError) Unwrap() error { return e.Err }

// Usagef makes a [UsageError].
func Usagef(format string, args ...any) error {
	return &UsageError{Err: fmt.Errorf(format, args...)}
}

// WithHint adds to err what to do next, which is printed as a line of its own;
// nil stays nil. Any error with a method Hint() string has one.
func WithHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hintError{err, fmt.Sprintf(format, args...)}
}

type hintError struct {
	error
	hint string
}

func (e *hintError) Unwrap() error { return e.error }
func (e *hintError) Hint() string  { return e.hint }

// hintOf finds the outermost hint.
func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}
