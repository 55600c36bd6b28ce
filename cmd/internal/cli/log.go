package cli

import (
	"io"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
)

const logLevels = "trace, debug, info, warn, error, disabled"

func addLogFlags(flags *pflag.FlagSet, level string) {
	if level == "" {
		level = zerolog.WarnLevel.String()
	}
	flags.String("log-level", level, "log to stderr from this level: "+logLevels)
	flags.String("log-format", "auto", "how to log: console, json; auto is console on a terminal")
}

// setupLog puts the logger into the command's context, from where zerolog.Ctx
// gets it.
func setupLog(cmd *cobra.Command) error {
	name, err := cmd.Flags().GetString("log-level")
	if err != nil {
		return err
	}
	level, err := zerolog.ParseLevel(strings.ToLower(name))
	if err != nil || level == zerolog.NoLevel {
		return Usagef("log level %q is not one of %s", name, logLevels)
	}
	format, err := cmd.Flags().GetString("log-format")
	if err != nil {
		return err
	}
	w := cmd.ErrOrStderr()
	switch format {
	case "auto":
		if isTerminal(w) {
			w = console(w, os.Getenv("NO_COLOR") != "")
		}
	case "console":
		w = console(w, os.Getenv("NO_COLOR") != "" || !isTerminal(w))
	case "json":
	default:
		return Usagef("log format %q is not one of auto, console, json", format)
	}
	logger := zerolog.New(w).Level(level).With().Timestamp().Logger()
	cmd.SetContext(logger.WithContext(cmd.Context()))
	return nil
}

func console(w io.Writer, plain bool) io.Writer {
	return zerolog.ConsoleWriter{Out: w, NoColor: plain, TimeFormat: time.TimeOnly}
}

// isTerminal tells whether a person looks at what is written to w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
