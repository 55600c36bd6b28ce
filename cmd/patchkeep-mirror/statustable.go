package main

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/mirror"
	"github.com/patchkeep/patchkeep/mirror/fill"
	"github.com/patchkeep/patchkeep/repo/layout"
)

const (
	maxRows    = 20 // of a table
	maxRoles   = 10
	barWidth   = 20
	clockDrift = time.Minute // between the mirror and us that is no news
)

// clean keeps a mirror's answer from playing with the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// printStatus writes a status for people: first what is wrong, then what there
// is, then the tables. now is by our clock; times are told by the mirror's.
func printStatus(w io.Writer, st *mirror.Status, now time.Time) error {
	p := &statusPage{st: st, now: st.Now, t: cli.Table(w)}
	drift := now.Sub(st.Now)
	if st.Now.IsZero() { // an older mirror
		p.now, drift = now, 0
	}
	p.state()
	if drift.Abs() > clockDrift {
		p.row("Warning", "the mirror's clock and this machine's are %s apart", span(drift.Abs()))
	}
	p.summary()
	p.fills()
	p.prefill()
	p.roles()
	p.upstreams()
	p.siblings()
	return p.t.Flush()
}

// statusPage writes the parts of the page.
type statusPage struct {
	st  *mirror.Status
	now time.Time
	t   *tabwriter.Writer
}

func (p *statusPage) row(name, format string, args ...any) {
	if name != "" {
		name += ":"
	}
	fmt.Fprintf(p.t, "%s\t%s\n", name, clean(fmt.Sprintf(format, args...)))
}

// head begins a table, whose columns are its own.
func (p *statusPage) head(columns ...string) {
	_ = p.t.Flush() // an error comes again at the end
	fmt.Fprintf(p.t, "\n%s\n", strings.Join(columns, "\t"))
}

func (p *statusPage) cells(cells ...string) {
	for i, c := range cells {
		cells[i] = clean(c)
	}
	fmt.Fprintln(p.t, strings.Join(cells, "\t"))
}

func (p *statusPage) more(n int) {
	if n > 0 {
		_ = p.t.Flush()
		fmt.Fprintf(p.t, "… and %d more: --json lists them\n", n)
	}
}

func (p *statusPage) state() {
	state := "ready"
	switch {
	case p.st.View == nil:
		state = "NOTHING TO SERVE"
	case !p.st.Ready:
		state = "DEGRADED"
	case len(p.st.Warnings) > 0:
		state = "ready, with warnings"
	}
	p.row("State", "%s", state)
	for i, r := range p.st.Reasons {
		p.row(first(i, "Reason"), "%s", r)
	}
	for i, r := range p.st.Warnings[:min(len(p.st.Warnings), maxRows)] {
		p.row(first(i, "Warning"), "%s", r)
	}
	if more := len(p.st.Warnings) - maxRows; more > 0 {
		p.row("", "… and %d more: --json lists them", more)
	}
}

func first(i int, name string) string {
	if i == 0 {
		return name
	}
	return ""
}

func (p *statusPage) summary() {
	st := p.st
	if v := st.View; v != nil {
		p.row("View", "timestamp %d, snapshot %d, root %d; %s, %s",
			v.Timestamp, v.Snapshot, v.Root, count(int64(v.Roles), "role"), count(int64(v.Objects), "object"))
		confirmed := "not confirmed by an upstream since the start"
		if !v.Confirmed.IsZero() {
			confirmed = "confirmed " + p.ago(v.Confirmed)
		}
		if !v.Changed.IsZero() {
			confirmed += ", changed " + p.ago(v.Changed)
		}
		p.row("", "%s", confirmed)
	}
	if len(st.Roles) > 0 {
		p.row("Expires", "%s %s", st.Roles[0].Name, p.ago(st.Roles[0].Expires))
	}
	c := st.Cache
	size := cli.Bytes(c.Bytes) + ", no limit"
	if c.Max > 0 {
		size = fmt.Sprintf("%s %s of %s", bar(c.Bytes, c.Max), percent(c.Bytes, c.Max), cli.Bytes(c.Max))
	}
	text := fmt.Sprintf("%s; %s, %d evicted", size, count(int64(c.Objects), "object"), c.Evicted)
	if c.Pinned > 0 {
		text += fmt.Sprintf(", %s pinned", cli.Bytes(c.Pinned))
	}
	if c.Parts > 0 {
		text += fmt.Sprintf("; %s in %d unfinished", cli.Bytes(c.PartBytes), c.Parts)
	}
	if c.Free > 0 {
		text += fmt.Sprintf("; %s of the disk free", cli.Bytes(c.Free))
	}
	p.row("Cache", "%s", text)
	s := st.Served
	p.row("Served", "%s sent, %s received, %s saved; %d hits, %d joined a fill, %d began one",
		cli.Bytes(s.Sent), cli.Bytes(s.Received), percent(s.Saved, s.Sent), s.Hits, s.Joins, s.Misses)
	f := st.Fills
	p.row("Fills", "%d under way, %d queued, %s waiting; %d done, %d failed", f.Transfer, f.Queued, count(int64(f.Waiting), "request"), f.Done, f.Failed)
	if l := st.Line; l != nil {
		limit := "no limit now"
		switch {
		case l.Paused:
			limit = "paused now"
		case l.Limit > 0:
			limit = rate(float64(l.Limit)) + " now"
		}
		p.row("Line", "%s", limit)
	}
	clients := count(st.Clients.Connections, "connection")
	if a := st.Clients.Access; a != nil && a.Limited+a.Denied+a.Refused > 0 {
		clients += fmt.Sprintf("; since the start %d requests too many, %d not let in, %d connections refused", a.Limited, a.Denied, a.Refused)
	}
	p.row("Clients", "%s", clients)
	if !st.Started.IsZero() {
		p.row("Started", "%s", p.ago(st.Started))
	}
}

// fills lists what is under way, the soonest to end first, then what waits.
func (p *statusPage) fills() {
	list := slices.Clone(p.st.Progress)
	if len(list) == 0 {
		return
	}
	left := func(f fill.Progress) int64 { return f.Length - f.Bytes }
	slices.SortStableFunc(list, func(a, b fill.Progress) int {
		if a.Begun.IsZero() != b.Begun.IsZero() {
			return cmp.Compare(truth(a.Begun.IsZero()), truth(b.Begun.IsZero()))
		}
		return cmp.Compare(left(a), left(b))
	})
	p.head("FILLING", "DONE", "OF", "RATE", "LEFT", "READERS", "FROM")
	for _, f := range list[:min(len(list), maxRows)] {
		speed, eta, from := "-", "-", f.From
		if f.Begun.IsZero() {
			from = "queued"
		}
		if f.Rate > 0 {
			speed = rate(f.Rate)
		}
		if !f.ETA.IsZero() {
			eta = span(f.ETA.Sub(p.now))
		}
		readers := strconv.Itoa(f.Waiting)
		if f.Prefill {
			readers = "prefill"
		}
		p.cells(fileOf(f.Object), percent(f.Bytes, f.Length), cli.Bytes(f.Length), speed, eta, readers, from)
	}
	p.more(len(list) - maxRows)
}

func (p *statusPage) prefill() {
	if len(p.st.Prefill) == 0 {
		return
	}
	p.head("PREFILL OF RING", "CACHED", "PATCHES", "BYTES", "NEXT")
	for _, r := range p.st.Prefill[:min(len(p.st.Prefill), maxRows)] {
		next := "-"
		switch {
		case r.Next != "" && r.NextAt.After(p.now):
			next = r.Next + ", wanted " + p.ago(r.NextAt)
		case r.Next != "":
			next = r.Next + ", wanted now"
		}
		p.cells(r.Ring, percent(r.CachedBytes, r.Bytes), fmt.Sprintf("%d of %d", r.Cached, r.Objects),
			fmt.Sprintf("%s of %s", cli.Bytes(r.CachedBytes), cli.Bytes(r.Bytes)), next)
	}
	p.more(len(p.st.Prefill) - maxRows)
}

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (p *statusPage) roles() {
	if len(p.st.Roles) == 0 {
		return
	}
	p.head("ROLE", "VERSION", "EXPIRES", "AT")
	for _, r := range p.st.Roles[:min(len(p.st.Roles), maxRoles)] {
		p.cells(r.Name, strconv.FormatInt(r.Version, 10), p.ago(r.Expires), stamp(r.Expires))
	}
	p.more(len(p.st.Roles) - maxRoles)
}

func (p *statusPage) upstreams() {
	if len(p.st.Upstreams) == 0 {
		return
	}
	p.head("UPSTREAM", "STATE", "ANSWERED", "TRANSFERS", "BYTES", "ERRORS")
	for _, u := range p.st.Upstreams[:min(len(p.st.Upstreams), maxRows)] {
		answered := "never"
		if !u.Answered.IsZero() {
			answered = p.ago(u.Answered)
		}
		p.cells(u.Name, p.source(u.State, u.SourceStats), answered, strconv.FormatInt(u.Transfers, 10), cli.Bytes(u.Bytes), strconv.FormatInt(u.Errors, 10))
	}
	p.more(len(p.st.Upstreams) - maxRows)
	for _, u := range p.st.Upstreams[:min(len(p.st.Upstreams), maxRows)] {
		p.lastError(u.Name, u.MetadataError, time.Time{})
		p.lastError(u.Name, u.LastError, u.FailedAt)
	}
}

func (p *statusPage) siblings() {
	if len(p.st.Siblings) == 0 {
		return
	}
	p.head("SIBLING", "STATE", "TRANSFERS", "BYTES", "ERRORS")
	for _, s := range p.st.Siblings[:min(len(p.st.Siblings), maxRows)] {
		p.cells(s.Name, p.source(s.State, s.SourceStats), strconv.FormatInt(s.Transfers, 10), cli.Bytes(s.Bytes), strconv.FormatInt(s.Errors, 10))
	}
	p.more(len(p.st.Siblings) - maxRows)
	for _, s := range p.st.Siblings[:min(len(p.st.Siblings), maxRows)] {
		p.lastError(s.Name, s.LastError, s.FailedAt)
	}
}

func (p *statusPage) source(state mirror.SourceState, s fill.SourceStats) string {
	if state == mirror.StateResting {
		return fmt.Sprintf("%s for %s", state, span(s.RestsTill.Sub(p.now)))
	}
	return string(state)
}

// lastError is a line below the table.
func (p *statusPage) lastError(name, text string, at time.Time) {
	if text == "" {
		return
	}
	if !at.IsZero() {
		text = p.ago(at) + ": " + text
	}
	_ = p.t.Flush()
	fmt.Fprintf(p.t, "  %s: %s\n", clean(name), clean(text))
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

func (p *statusPage) ago(t time.Time) string {
	if d := t.Sub(p.now); d > 0 {
		return "in " + span(d)
	}
	return span(p.now.Sub(t)) + " ago"
}

// span writes a duration in its two largest units: "3d 4h", "12m 5s", "0s".
func span(d time.Duration) string {
	s := int64(max(d, 0) / time.Second)
	for _, u := range []struct {
		name, next  string
		size, small int64
	}{{"d", "h", 86400, 3600}, {"h", "m", 3600, 60}, {"m", "s", 60, 1}} {
		if s >= u.size {
			if rest := s % u.size / u.small; rest > 0 {
				return fmt.Sprintf("%d%s %d%s", s/u.size, u.name, rest, u.next)
			}
			return fmt.Sprintf("%d%s", s/u.size, u.name)
		}
	}
	return fmt.Sprintf("%ds", s)
}

func count(n int64, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// fileOf is the target path of an object, whose name in the store has the hash
// in it.
func fileOf(object string) string {
	dir, file := path.Split(object)
	if sum, name, ok := strings.Cut(file, "."); ok && layout.IsSHA256(sum) {
		file = name
	}
	return strings.TrimPrefix(dir+file, layout.TargetsDir+"/")
}

func share(n, of int64) float64 {
	if of <= 0 {
		return 0
	}
	return min(max(float64(n)/float64(of), 0), 1)
}

// percent never says 100 of what is not whole.
func percent(n, of int64) string { return fmt.Sprintf("%.0f %%", math.Floor(100*share(n, of))) }

func bar(n, of int64) string {
	full := int(math.Round(barWidth * share(n, of)))
	return "[" + strings.Repeat("#", full) + strings.Repeat("-", barWidth-full) + "]"
}

func rate(bytes float64) string {
	return cli.Bytes(int64(min(max(bytes, 0), 1<<62))) + "/s"
}
