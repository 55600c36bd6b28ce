package cli

import (
	"io"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
)

// Bytes writes a size for people: "1.5 GiB".
func Bytes(n int64) string {
	if n < 0 {
		return "-" + humanize.IBytes(-uint64(n))
	}
	return humanize.IBytes(uint64(n))
}

// ParseBytes reads a size such as "50GiB", "10MB" or "4096".
func ParseBytes(s string) (int64, error) {
	n, err := humanize.ParseBytes(s)
	if err != nil || n > 1<<62 {
		return 0, Usagef("size %q is not a number of bytes such as 50GiB", s)
	}
	return int64(n), nil
}

// Ago writes a moment for people: "3 hours ago", "2 days from now".
func Ago(t, now time.Time) string { return humanize.RelTime(t, now, "ago", "from now") }

// Table aligns columns; cells are separated by tabs, and the last one of a row
// ends with a line feed. Flush it at the end.
func Table(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 8, 2, ' ', 0) }

// Bar shows how far long work is. The zero value, and a nil one, show nothing.
type Bar struct{ bar *progressbar.ProgressBar }

// Progress starts a bar on stderr for total bytes (negative if unknown). It
// shows nothing unless stderr is a terminal, and nothing with --json or --quiet.
func Progress(cmd *cobra.Command, label string, total int64) *Bar {
	quiet, _ := cmd.Flags().GetBool("quiet")
	w := cmd.ErrOrStderr()
	if quiet || wantsJSON(cmd) || !isTerminal(w) {
		return &Bar{}
	}
	return &Bar{progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetDescription(label),
		progressbar.OptionShowBytes(true),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionFullWidth(),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionSetRenderBlankState(true),
	)}
}

// Write counts p, so that a Bar can be the end of an [io.TeeReader].
func (b *Bar) Write(p []byte) (int, error) {
	b.Add(int64(len(p)))
	return len(p), nil
}

// Add counts n more bytes.
func (b *Bar) Add(n int64) {
	if b != nil && b.bar != nil {
		_ = b.bar.Add64(n)
	}
}

// Set puts the bar to n bytes in all.
func (b *Bar) Set(n int64) {
	if b != nil && b.bar != nil {
		_ = b.bar.Set64(n)
	}
}

// Close takes the bar off the screen, whether the work is done or not.
func (b *Bar) Close() {
	if b != nil && b.bar != nil {
		_ = b.bar.Finish()
		_ = b.bar.Clear()
	}
}
