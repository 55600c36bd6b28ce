package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
)

var errStale = errors.New("metadata is stale")

// program builds a command tree like those of the binaries; `do` fails with err.
func program(err error) *cobra.Command {
	root := &cobra.Command{Use: "prog"}
	group := &cobra.Command{Use: "patch"}
	do := &cobra.Command{
		Use: "add FILE", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			zerolog.Ctx(cmd.Context()).Info().Str("file", args[0]).Msg("adding")
			if err != nil {
				return err
			}
			repo, _ := cmd.Flags().GetString("repo")
			keys, _ := cmd.Flags().GetStringArray("keys")
			return cli.Print(cmd, map[string]any{"repo": repo, "keys": keys}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "repo %s keys %q\n", repo, keys)
				return err
			})
		},
	}
	do.Flags().String("repo", "", "the repository")
	do.Flags().StringArray("keys", nil, "keys")
	do.Flags().Int("count", 0, "a number")
	if e := do.MarkFlagRequired("repo"); e != nil {
		panic(e)
	}
	cli.BindEnv(do, "repo", "CLI_TEST_REPO")
	cli.BindEnv(do, "keys", "CLI_TEST_KEYS")
	cli.BindEnv(do, "count", "CLI_TEST_COUNT")
	group.AddCommand(do)
	root.AddCommand(group, &cobra.Command{Use: "plain", Args: cobra.NoArgs, Run: func(*cobra.Command, []string) {}})
	return root
}

func run(t *testing.T, root *cobra.Command, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&errOut)
	code = cli.Execute(t.Context(), root, cli.Config{Args: args, Rules: []cli.Rule{{errStale, cli.Expired}}})
	return code, out.String(), errOut.String()
}

func TestExitCodes(t *testing.T) {
	rules := []cli.Rule{{errStale, cli.Expired}, {fs.ErrExist, cli.Conflict}}
	for _, c := range []struct {
		err  error
		code int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{fmt.Errorf("a: %w", errStale), 11},
		{errors.Join(errors.New("x"), fs.ErrExist), 12},
		{fmt.Errorf("a: %w", cli.Exit(errStale, cli.Partial)), 3},
		{cli.WithHint(errStale, "renew it"), 11},
		{cli.Usagef("no"), 64},
		{fmt.Errorf("a: %w", context.Canceled), 130},
		{errors.Join(errStale, context.Canceled), 130},
		{context.DeadlineExceeded, 1},
	} {
		if got := cli.ExitCode(c.err, rules...); got != c.code {
			t.Errorf("ExitCode(%v) = %d, want %d", c.err, got, c.code)
		}
	}
	if cli.Exit(nil, 3) != nil || cli.WithHint(nil, "x") != nil {
		t.Error("no error became one")
	}
}

func TestMistakesOfUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		says []string
	}{
		{[]string{"nonsense"}, []string{"prog: unknown command", "hint: run 'prog --help'"}},
		{[]string{"patch", "ad"}, []string{`unknown command "ad" for "prog patch"`, "did you mean add?", "hint: run 'prog patch --help'"}},
		{[]string{"patch", "add"}, []string{"arg", "hint: run 'prog patch add --help'"}},
		{[]string{"patch", "add", "f"}, []string{"required", `"repo"`}},
		{[]string{"patch", "add", "f", "--repo", "r", "--nope"}, []string{"unknown flag: --nope"}},
		{[]string{"patch", "add", "f", "--repo", "r", "--count", "x"}, []string{"count"}},
		{[]string{"patch", "add", "f", "--repo", "r", "--log-level", "loud"}, []string{"log level", "debug"}},
		{[]string{"patch", "add", "f", "--repo", "r", "--log-format", "xml"}, []string{"log format", "console"}},
		{[]string{"plain", "extra"}, []string{"extra"}},
	} {
		code, out, errOut := run(t, program(nil), c.args...)
		if code != cli.Usage || out != "" {
			t.Errorf("%q: code %d, stdout %q", c.args, code, out)
		}
		for _, s := range c.says {
			if !strings.Contains(errOut, s) {
				t.Errorf("%q: %q does not say %q", c.args, errOut, s)
			}
		}
		if n := strings.Count(errOut, "\n"); n > 2 {
			t.Errorf("%q: %d lines: %q", c.args, n, errOut)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}, {"patch"}, {"patch", "--help"}, {"help", "patch"}, {"--version"}, {"completion", "bash"}, {"plain"}} {
		code, out, errOut := run(t, program(nil), args...)
		if code != 0 || errOut != "" || (out == "" && len(args) > 0 && args[0] != "plain") {
			t.Errorf("%q: code %d, stdout %q, stderr %q", args, code, out, errOut)
		}
	}
	_, out, _ := run(t, program(nil), "--version")
	if want := "prog " + cli.Version().String() + "\n"; out != want || !strings.Contains(out, runtime.Version()) {
		t.Errorf("version %q, want %q", out, want)
	}
	_, out, _ = run(t, program(nil), "patch", "add", "--help")
	if !strings.Contains(out, "$CLI_TEST_REPO") {
		t.Errorf("help does not name the variable: %s", out)
	}
}

type hinted struct{ error }

func (h hinted) Unwrap() error { return h.error }
func (hinted) Hint() string    { return "do\nthis" }

func TestErrorsForPeopleAndScripts(t *testing.T) {
	err := fmt.Errorf("add patch: %w", hinted{errors.Join(errStale, errors.New("evil \x1b[2Jbytes"))})
	code, out, errOut := run(t, program(err), "patch", "add", "f", "--repo", "r")
	want := "prog: add patch: metadata is stale; evil \uFFFD[2Jbytes\nhint: do; this\n"
	if code != cli.Expired || out != "" || errOut != want {
		t.Errorf("code %d, stdout %q, stderr %q, want %q", code, out, errOut, want)
	}
	for _, args := range [][]string{{"patch", "add", "f", "--repo", "r", "--json"}, {"--json", "patch", "ad"}, {"--json", "nope"}, {"--nope", "--json"}} {
		code, out, errOut = run(t, program(err), args...)
		var got struct {
			Error, Hint string
			Code        int
		}
		if e := json.Unmarshal([]byte(errOut), &got); e != nil || got.Code != code || code == 0 || got.Error == "" || got.Hint == "" || out != "" {
			t.Errorf("%q: code %d, stdout %q, stderr %q: %+v, %v", args, code, out, errOut, got, e)
		}
	}
}

func TestFlagOverEnvironment(t *testing.T) {
	t.Setenv("CLI_TEST_REPO", "from-env")
	t.Setenv("CLI_TEST_KEYS", "a,b")
	t.Setenv("CLI_TEST_COUNT", "")
	code, out, errOut := run(t, program(nil), "patch", "add", "f")
	if want := "repo from-env keys [\"a\" \"b\"]\n"; code != 0 || out != want {
		t.Errorf("code %d, %q, want %q (%s)", code, out, want, errOut)
	}
	code, out, errOut = run(t, program(nil), "patch", "add", "f", "--repo", "flag", "--keys", "c", "--json")
	var got struct {
		Repo string
		Keys []string
	}
	if e := json.Unmarshal([]byte(out), &got); e != nil || code != 0 || got.Repo != "flag" || len(got.Keys) != 1 || got.Keys[0] != "c" {
		t.Errorf("code %d, %q: %v (%s)", code, out, e, errOut)
	}
	t.Setenv("CLI_TEST_COUNT", "many")
	code, _, errOut = run(t, program(nil), "patch", "add", "f")
	if code != cli.Usage || !strings.Contains(errOut, "CLI_TEST_COUNT") {
		t.Errorf("code %d, %q", code, errOut)
	}
}

func TestLog(t *testing.T) {
	args := []string{"patch", "add", "f", "--repo", "r"}
	if _, _, errOut := run(t, program(nil), args...); errOut != "" {
		t.Errorf("logged by default: %q", errOut)
	}
	_, _, errOut := run(t, program(nil), append(args, "--log-level", "info")...)
	var entry map[string]any
	if err := json.Unmarshal([]byte(errOut), &entry); err != nil || entry["message"] != "adding" || entry["file"] != "f" {
		t.Errorf("logged %q, %v", errOut, err)
	}
	_, _, errOut = run(t, program(nil), append(args, "--log-level", "INFO", "--log-format", "console")...)
	if !strings.Contains(errOut, "adding") || strings.ContainsAny(errOut, "{\x1b") {
		t.Errorf("logged %q", errOut)
	}
}

func TestProgressIsQuietWithoutTerminal(t *testing.T) {
	var errOut bytes.Buffer
	cmd := program(nil)
	cmd.SetErr(&errOut)
	bar := cli.Progress(cmd, "upload", 100)
	if n, err := bar.Write(make([]byte, 60)); n != 60 || err != nil {
		t.Error(n, err)
	}
	bar.Add(40)
	bar.Set(100)
	bar.Close()
	if errOut.Len() != 0 {
		t.Errorf("shown: %q", errOut.String())
	}
	var none *cli.Bar
	none.Add(1)
	none.Close()
}

func TestForPeople(t *testing.T) {
	if got := cli.Bytes(1536 << 20); got != "1.5 GiB" {
		t.Error(got)
	}
	for in, want := range map[string]int64{"50GiB": 50 << 30, "10MB": 10_000_000, "4096": 4096} {
		if got, err := cli.ParseBytes(in); err != nil || got != want {
			t.Errorf("%s: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "much", "-1", "99999999EiB"} {
		if got, err := cli.ParseBytes(in); err == nil || cli.ExitCode(err) != cli.Usage {
			t.Errorf("%s: %d, %v", in, got, err)
		}
	}
	var b strings.Builder
	w := cli.Table(&b)
	fmt.Fprint(w, "a\tbb\nccc\td\n")
	if err := w.Flush(); err != nil || b.String() != "a    bb\nccc  d\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
	now := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	if got := cli.Ago(now.Add(-3*time.Hour), now); got != "3 hours ago" {
		t.Error(got)
	}
}

// The test program itself, started anew, is a command that waits to be stopped.
func TestMain(m *testing.M) {
	switch mode := os.Getenv("CLI_TEST_WAIT"); mode {
	case "":
		os.Exit(m.Run())
	default:
		cli.Main(&cobra.Command{Use: "wait", Args: cobra.ArbitraryArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Println("ready")
			<-cmd.Context().Done()
			fmt.Println("stopping")
			if mode == "stubborn" {
				select {}
			}
			return errors.New("read x: use of closed connection")
		}}, cli.Config{Args: []string{}})
	}
}

func TestSignals(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // a process cannot be interrupted there from outside
	}
	start := func(mode string) (*exec.Cmd, io.Reader, *bytes.Buffer) {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "CLI_TEST_WAIT="+mode)
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, out, &errOut
	}
	expect := func(r io.Reader, line string) {
		t.Helper()
		buf := make([]byte, len(line))
		if _, err := io.ReadFull(r, buf); err != nil || string(buf) != line {
			t.Fatalf("got %q, %v; want %q", buf, err, line)
		}
	}
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		cmd, out, errOut := start("polite")
		expect(out, "ready\n")
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		expect(out, "stopping\n")
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != cli.Cancelled {
			t.Errorf("%v: %v, want exit code %d", sig, err, cli.Cancelled)
		}
		if got := errOut.String(); !strings.HasPrefix(got, "wait: read x") {
			t.Errorf("%v: %q", sig, got)
		}
	}

	cmd, out, _ := start("stubborn")
	expect(out, "ready\n")
	_ = cmd.Process.Signal(syscall.SIGTERM)
	expect(out, "stopping\n")
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	// The handler is taken away just after the context ends: send until it is.
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
				t.Errorf("the second signal: %v", err)
			}
			return
		case <-tick.C:
			_ = cmd.Process.Signal(syscall.SIGTERM)
		}
	}
}
