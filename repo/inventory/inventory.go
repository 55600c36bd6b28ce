// Package inventory reads lists of machines and of what is installed on them,
// as asset databases export them: CSV with a header, or JSON.
package inventory

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/patchkeep/patchkeep/repo/layout"
)

// Bounds on an inventory.
const (
	maxSize = 256 << 20 // bytes
	maxRows = 2_000_000
	maxText = 1 << 10 // bytes of a machine id
)

// ErrBad is wrapped by every error about an inventory that is refused.
var ErrBad = errors.New("bad inventory")

// Row is one product on one machine; a machine has as many rows as products, or
// one without any.
type Row struct {
	Machine  string `json:"machine"`            // id, as the agent's enrolment has it
	Ring     string `json:"ring,omitempty"`     // "": not said
	Product  string `json:"product,omitempty"`  // "": not said
	Version  string `json:"version,omitempty"`  // installed; "": not installed, or not said
	Platform string `json:"platform,omitempty"` // linux-amd64; "": not said
}

// columns are the fields of a row, by the names that a header may give them.
var columns = map[string]func(*Row) *string{
	"machine":    func(r *Row) *string { return &r.Machine },
	"machine_id": func(r *Row) *string { return &r.Machine },
	"id":         func(r *Row) *string { return &r.Machine },
	"ring":       func(r *Row) *string { return &r.Ring },
	"product":    func(r *Row) *string { return &r.Product },
	"version":    func(r *Row) *string { return &r.Version },
	"platform":   func(r *Row) *string { return &r.Platform },
}

// Read reads an inventory: a JSON list of objects, or CSV with a header, commas
// or semicolons. Columns that it does not know are ignored. An error names the
// line, or the element of the list.
func Read(r io.Reader) ([]Row, error) {
	in := bufio.NewReader(io.LimitReader(r, maxSize+1))
	counted := &counter{r: in}
	if bom, err := in.Peek(3); err == nil && bytes.Equal(bom, []byte("\xef\xbb\xbf")) {
		_, _ = in.Discard(len(bom)) // they are there
	}
	var isJSON bool
	for {
		b, err := in.Peek(1)
		if err != nil {
			return nil, fmt.Errorf("%w: it is empty", ErrBad)
		}
		if b[0] != ' ' && b[0] != '\t' && b[0] != '\r' && b[0] != '\n' {
			isJSON = b[0] == '[' || b[0] == '{'
			break
		}
		_, _ = in.Discard(1) // it is there
	}
	var rows []Row
	var err error
	if isJSON {
		rows, err = readJSON(counted)
	} else {
		head, _ := in.Peek(4096) // less is an error that does not matter
		rows, err = readCSV(counted, head)
	}
	if counted.n > maxSize {
		return nil, fmt.Errorf("%w: larger than %d bytes", ErrBad, maxSize)
	}
	return rows, err
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func readCSV(r io.Reader, head []byte) ([]Row, error) {
	line, _, _ := bytes.Cut(head, []byte("\n"))
	in := csv.NewReader(r)
	if bytes.Count(line, []byte(";")) > bytes.Count(line, []byte(",")) {
		in.Comma = ';'
	}
	in.ReuseRecord = true
	in.FieldsPerRecord = -1
	header, err := in.Read()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBad, err)
	}
	set := make([]func(*Row) *string, len(header))
	found := false
	for i, name := range header {
		name = strings.ReplaceAll(strings.ToLower(strings.TrimSpace(name)), "-", "_")
		if set[i] = columns[name]; set[i] == nil {
			continue
		}
		found = found || *set[i](&Row{Machine: "m"}) == "m"
	}
	if !found {
		return nil, fmt.Errorf("%w: line 1: there is no column machine among %q", ErrBad, header)
	}
	c := newChecker()
	for {
		record, err := in.Read()
		if errors.Is(err, io.EOF) {
			return c.rows, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBad, err) // names the line
		}
		var row Row
		for i, value := range record {
			if i < len(set) && set[i] != nil {
				*set[i](&row) = strings.Clone(strings.TrimSpace(value))
			}
		}
		at, _ := in.FieldPos(0)
		if err := c.add(row); err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrBad, at, err)
		}
	}
}

func readJSON(r io.Reader) ([]Row, error) {
	dec := json.NewDecoder(r)
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return nil, fmt.Errorf("%w: it is neither a JSON list nor CSV", ErrBad)
	}
	c := newChecker()
	for n := 1; dec.More(); n++ {
		var row Row
		if err := dec.Decode(&row); err != nil {
			return nil, fmt.Errorf("%w: element %d: %w", ErrBad, n, err)
		}
		if err := c.add(row); err != nil {
			return nil, fmt.Errorf("%w: element %d: %w", ErrBad, n, err)
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("%w: the list does not end: %w", ErrBad, err)
	}
	return c.rows, nil
}

// checker takes rows that are sound, and fit those before them.
type checker struct {
	rows  []Row
	rings map[string]string // by machine
}

func newChecker() *checker { return &checker{rings: make(map[string]string)} }

func (c *checker) add(row Row) error {
	if len(c.rows) == maxRows {
		return fmt.Errorf("more than %d rows", maxRows)
	}
	bad := func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) }
	if row.Machine == "" || len(row.Machine) > maxText || !utf8.ValidString(row.Machine) || strings.ContainsFunc(row.Machine, bad) {
		return fmt.Errorf("%.40q is not the id of a machine", row.Machine)
	}
	for what, name := range map[string]string{"ring": row.Ring, "product": row.Product, "version": row.Version, "platform": row.Platform} {
		if name == "" {
			continue
		}
		if err := layout.CheckName(name); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	if ring, ok := c.rings[row.Machine]; ok && ring != row.Ring {
		return fmt.Errorf("machine %s is in ring %q here and in ring %q before", row.Machine, row.Ring, ring)
	}
	c.rings[row.Machine] = row.Ring
	c.rows = append(c.rows, row)
	return nil
}

// Machines lists the ids of the machines of a ring, sorted, each once. Machines
// of which no ring is said count as of every ring.
func Machines(rows []Row, ring string) []string {
	seen := make(map[string]bool)
	ids := []string{}
	for i := range rows {
		r := &rows[i]
		if (r.Ring == ring || r.Ring == "") && !seen[r.Machine] {
			seen[r.Machine] = true
			ids = append(ids, r.Machine)
		}
	}
	slices.Sort(ids)
	return ids
}
