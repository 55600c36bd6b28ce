package signing_test

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/signing"
)

func TestPasswordFromEnvironment(t *testing.T) {
	t.Setenv(signing.PasswordEnv, password)
	ask := signing.Passwords(-1)
	for range 2 {
		pw, err := ask(t.Context(), "key", true)
		if err != nil || string(pw) != password {
			t.Fatalf("%q, %v", pw, err)
		}
		clear(pw) // the caller's to clear
	}
}

func TestPasswordFromDescriptor(t *testing.T) {
	t.Setenv(signing.PasswordEnv, "not this one")
	for in, want := range map[string]string{
		"pass word\nrest":                "pass word",
		"windows\r\n":                    "windows",
		"no end of line":                 "no end of line",
		strings.Repeat("x", 1024) + "\n": strings.Repeat("x", 1024),
		"\n":                             "",
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.WriteString(w, in); _ = w.Close() }()
		ask := signing.Passwords(int(r.Fd()))
		for range 2 {
			if pw, err := ask(t.Context(), "key", false); err != nil || string(pw) != want {
				t.Errorf("%q: %q, %v", in, pw, err)
			}
		}
	}
	for _, in := range []string{"", strings.Repeat("x", 1025)} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.WriteString(w, in); _ = w.Close() }()
		if pw, err := signing.Passwords(int(r.Fd()))(t.Context(), "key", false); err == nil {
			t.Errorf("%d bytes were taken as %q", len(in), pw)
		}
	}
}

func TestPasswordDescriptorIsCancelled(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = signing.FDPassword(int(r.Fd()))(ctx, "key", false)
	wantErr(t, err, context.Canceled, "descriptor")
}
