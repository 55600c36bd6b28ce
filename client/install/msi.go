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
	return logText(io.NewSectionReader(f, 0, info.Size()), limit)
}

// logText decodes the end of a text in UTF-16 with a byte order mark, as Windows
// Installer writes it, or else in UTF-8 or what was a code page.
func logText(r *io.SectionReader, limit int) (string, error) {
	var mark [2]byte
	if _, err := r.ReadAt(mark[:], 0); err != nil && !errors.Is(err, io.EOF) {
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
