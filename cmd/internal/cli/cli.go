// Package cli is what the commands share: exit codes, signals, errors for
// people and for scripts, --json, logging, progress, version.
//
// Rules of output. Results go to stdout, everything else to stderr. With --json
// the result is one JSON document on stdout, and an error one JSON object on
// stderr. Progress is shown on a terminal only. An error says what happened in a
// line, and what to do next in a second one if there is something to do.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Config of one program.
type Config struct {
	// Args of the command line, without the program's name; nil takes the process's.
	Args []string
	// Rules give the program's own errors their exit codes.
	Rules []Rule
	// LogLevel is the default of --log-level; empty is "warn".
	LogLevel string
	// Hint gives advice on an error that has none of its own; may be nil.
	Hint func(error) string
}

// Main executes root with the process's arguments until it is done or the
// process is told to stop, and ends the process with its exit code.
func Main(root *cobra.Command, cfg Config) {
	os.Exit(Execute(context.Background(), root, cfg))
}

// Execute prepares root and all its commands (see [Prepare]), runs the one that
// the arguments name, prints its error and returns the exit code.
//
// An interrupt, or SIGTERM, cancels the command's context; a second one kills
// the process at once. Errors from before a command's RunE are mistakes of
// usage: wrong flags, arguments, or a PreRunE that refuses.
func Execute(ctx context.Context, root *cobra.Command, cfg Config) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // from now on a signal does what it always does

	if cfg.Args == nil {
		cfg.Args = os.Args[1:]
	}
	root.SetArgs(cfg.Args)
	run := Prepare(root, cfg)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		err = run.usage // found by the help function, which returns nothing
	}
	if err == nil {
		return OK
	}
	if !run.started && ExitCode(err, cfg.Rules...) == Failure {
		err = &UsageError{Err: err}
	}
	code := ExitCode(err, cfg.Rules...)
	if ctx.Err() != nil { // whatever broke, broke because of that
		code = Cancelled
	}
	printError(cmd, err, code, cfg)
	return code
}

// Run is what happened while a prepared command ran.
type Run struct {
	started bool  // a RunE was reached
	usage   error // an unknown subcommand
}

// Prepare gives root --version and the persistent flags --json, --quiet,
// --log-level and --log-format, and has every command of the tree apply the
// environment to its flags (see [BindEnv]) and carry a logger in its context.
// It is part of [Execute].
func Prepare(root *cobra.Command, cfg Config) *Run {
	run := &Run{}
	root.SilenceErrors, root.SilenceUsage = true, true
	root.Version = Version().String()
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	flags := root.PersistentFlags()
	flags.Bool("json", false, "print the result, or the error, as JSON")
	flags.BoolP("quiet", "q", false, "show no progress")
	addLogFlags(flags, cfg.LogLevel)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()

	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		asked, _ := cmd.Flags().GetBool("help")
		// cobra shows help, and calls it success, for `group misspelt`.
		if rest := cmd.Flags().Args(); !asked && !cmd.Runnable() && len(rest) > 0 {
			run.usage = unknownCommand(cmd, rest[0])
			return
		}
		help(cmd, args)
	})
	run.wrap(root)
	return run
}

// wrap prepares the command and those below it.
func (run *Run) wrap(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		run.wrap(sub)
	}
	if !cmd.Runnable() {
		return
	}
	before, beforeE := cmd.PreRun, cmd.PreRunE
	cmd.PreRun, cmd.PreRunE = nil, func(cmd *cobra.Command, args []string) error {
		if err := applyEnv(cmd); err != nil {
			return err
		}
		if err := setupLog(cmd); err != nil {
			return err
		}
		switch {
		case beforeE != nil:
			return beforeE(cmd, args)
		case before != nil:
			before(cmd, args)
		}
		return nil
	}
	main, mainE := cmd.Run, cmd.RunE
	cmd.Run, cmd.RunE = nil, func(cmd *cobra.Command, args []string) error {
		run.started = true
		if mainE != nil {
			return mainE(cmd, args)
		}
		main(cmd, args)
		return nil
	}
}

func unknownCommand(cmd *cobra.Command, name string) error {
	err := fmt.Errorf("unknown command %q for %q", name, cmd.CommandPath())
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		err = fmt.Errorf("%w; did you mean %s?", err, strings.Join(near, " or "))
	}
	return err
}

// envAnnotation marks a flag with the variable it falls back to.
const envAnnotation = "patchkeep_env"

// BindEnv lets a flag of cmd take its value from an environment variable when
// it is not on the command line; an empty variable counts as unset. A flag that
// may be repeated takes a list separated by commas. The flag's help names the
// variable. It panics on a flag that cmd does not have.
func BindEnv(cmd *cobra.Command, flag, variable string) {
	f := cmd.Flags().Lookup(flag)
	if f == nil {
		f = cmd.PersistentFlags().Lookup(flag)
	}
	if f == nil {
		panic("no flag " + flag + " in " + cmd.CommandPath())
	}
	if f.Annotations == nil {
		f.Annotations = map[string][]string{}
	}
	f.Annotations[envAnnotation] = []string{variable}
	f.Usage += " [$" + variable + "]"
}

// applyEnv runs before cobra asks for required flags, so the environment
// satisfies them.
func applyEnv(cmd *cobra.Command) error {
	var failed error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		bound := f.Annotations[envAnnotation]
		if f.Changed || len(bound) == 0 {
			return
		}
		value := os.Getenv(bound[0])
		if value == "" {
			return
		}
		var err error
		if list, ok := f.Value.(pflag.SliceValue); ok {
			err = list.Replace(slices.DeleteFunc(strings.Split(value, ","), func(s string) bool { return s == "" }))
			f.Changed = true
		} else {
			err = cmd.Flags().Set(f.Name, value)
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("environment variable %s: %w", bound[0], err))
		}
	})
	return failed
}

// printError tells a person in one or two lines, or a script in one object:
//
//	{"error":"…","hint":"…","code":12}
func printError(cmd *cobra.Command, err error, code int, cfg Config) {
	text := oneLine(err.Error())
	hint := hintOf(err)
	if hint == "" && cfg.Hint != nil {
		hint = cfg.Hint(err)
	}
	_, usage := errors.AsType[*UsageError](err) // its flags may not have been read
	if usage && hint == "" {
		hint = fmt.Sprintf("run '%s --help'", cmd.CommandPath())
	}
	hint = oneLine(hint)
	w := cmd.ErrOrStderr()
	if wantsJSON(cmd) || usage && slices.Contains(cfg.Args, "--json") {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(struct {
			Error string `json:"error"`
			Hint  string `json:"hint,omitempty"`
			Code  int    `json:"code"`
		}{text, hint, code})
		return
	}
	fmt.Fprintf(w, "%s: %s\n", cmd.Root().Name(), text)
	if hint != "" {
		fmt.Fprintf(w, "hint: %s\n", hint)
	}
}

// oneLine keeps a text to its line, and keeps words of a hostile server from
// steering the terminal.
func oneLine(s string) string {
	s = strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ")
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, s)
	const limit = 2000 // bytes
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}

func wantsJSON(cmd *cobra.Command) bool {
	on, _ := cmd.Flags().GetBool("json")
	return on
}

// Print writes a command's result to stdout: v as indented JSON with --json,
// else what human writes.
func Print(cmd *cobra.Command, v any, human func(w io.Writer) error) error {
	var err error
	if w := cmd.OutOrStdout(); wantsJSON(cmd) {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		err = enc.Encode(v)
	} else {
		err = human(w)
	}
	if err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	return nil
}
