package install

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// msiArgv installs an .msi, or puts an .msp on what is there, without a word to
// anybody, without a reboot, and with all that can be said in the log.
func msiArgv(file string) []string {
	verb := "/i"
	if strings.EqualFold(filepath.Ext(file), ".msp") {
		verb = "/p"
	}
	return []string{"msiexec", verb, "{file}", "/qn", "/norestart", "/L*v", "{log}"}
}

// ownLog reads the end of a log that a program has written itself, for people:
// at most limit bytes of UTF-8, from the beginning of a line. It is "" if there
// is none.
func ownLog(path string, limit int) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return "", err
	}
	r := io.NewSectionReader(f, 0, info.Size())
	text, err := logText(r, limit)
	if err != nil {
		return "", err
	}
	why, err := failedAction(r)
	if why != "" {
		text += "\n-- what failed first:\n" + why
	}
	return text, err
}

// The line that ends the log of an action that failed; above it stands why.
const (
	failedMark  = "Return value 3."
	failedBytes = 1500     // of words before it
	maxSearched = 64 << 20 // bytes of a log
)

// failedAction finds what a log of Windows Installer says of the action that
// failed first. It is "" if nothing did.
func failedAction(r *io.SectionReader) (string, error) {
	mark := []byte(failedMark)
	if m, _ := peek(r); m == [2]byte{0xFF, 0xFE} {
		mark = nil
		for _, c := range []byte(failedMark) {
			mark = append(mark, c, 0)
		}
	}
	buf := make([]byte, 256<<10)
	for at := int64(0); at < min(r.Size(), maxSearched); at += int64(len(buf) - len(mark)) {
		n, err := r.ReadAt(buf, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		if i := bytes.Index(buf[:n], mark); i >= 0 {
			return logText(io.NewSectionReader(r, 0, at+int64(i+len(mark))), failedBytes)
		}
	}
	return "", nil
}

// peek returns the first two bytes, where a byte order mark would be.
func peek(r *io.SectionReader) (mark [2]byte, err error) {
	if _, err := r.ReadAt(mark[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return mark, err
	}
	return mark, nil
}

// logText decodes the end of a text in UTF-16 with a byte order mark, as Windows
// Installer writes it, or else in UTF-8 or what was a code page.
func logText(r *io.SectionReader, limit int) (string, error) {
	mark, err := peek(r)
	if err != nil {
		return "", err
	}
	width := int64(1)
	if mark == [2]byte{0xFF, 0xFE} || mark == [2]byte{0xFE, 0xFF} {
		width = 2
	}
	start := max(r.Size()-int64(limit)*width, 0)
	start -= start % width
	raw := make([]byte, min(r.Size()-start, int64(limit)*width))
	n, err := r.ReadAt(raw, start)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	raw = raw[:n]
	if width == 2 {
		raw = fromUTF16(raw, mark[0] == 0xFE)
	}
	text := strings.ToValidUTF8(string(bytes.TrimPrefix(raw, []byte("\xEF\xBB\xBF"))), "\uFFFD")
	text = strings.ReplaceAll(text, "\r\n", "\n")
	cut := start > 0
	if over := len(text) - limit; over > 0 { // UTF-8 can be longer than UTF-16
		text, cut = strings.ToValidUTF8(text[over:], ""), true
	}
	if _, rest, ok := strings.Cut(text, "\n"); cut && ok {
		text = rest
	}
	return text, nil
}

func fromUTF16(raw []byte, bigEndian bool) []byte {
	units := make([]uint16, 0, len(raw)/2)
	for i := 0; i+1 < len(raw); i += 2 {
		u := uint16(raw[i]) | uint16(raw[i+1])<<8
		if bigEndian {
			u = u<<8 | u>>8
		}
		units = append(units, u)
	}
	out := make([]byte, 0, len(raw))
	for _, c := range utf16.Decode(units) {
		if c != '\uFEFF' {
			out = utf8.AppendRune(out, c)
		}
	}
	return out
}
