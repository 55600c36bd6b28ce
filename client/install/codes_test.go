//go:build unix

package install_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// fakeProgram puts a shell script onto the path that programs are searched in.
func (b *bench) fakeProgram(t *testing.T, name, script string) {
	t.Helper()
	dir := filepath.Join(b.dir, "bin")
	if err := os.Mkdir(dir, 0o755); err == nil {
		t.Cleanup(install.Search(dir))
	}
	mustDo(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755))
}

// utf16File writes a text as Windows Installer writes its log.
func utf16File(t *testing.T, path, text string) {
	t.Helper()
	raw := []byte{0xFF, 0xFE}
	for _, u := range utf16.Encode([]rune(strings.ReplaceAll(text, "\n", "\r\n"))) {
		raw = append(raw, byte(u), byte(u>>8))
	}
	mustDo(t, os.WriteFile(path, raw, 0o600))
}

func TestMSI(t *testing.T) {
	b := newBench(t)
	log := filepath.Join(b.dir, "log")
	utf16File(t, log, "=== Verbose logging started ===\nAction start: InstallFiles\nProduct: Größe ☂ 💾 -- Installation failed.\n")
	b.fakeProgram(t, "msiexec", `echo "$@"; cp `+log+` "$6"`)
	for file, verb := range map[string]string{"a b.msi": "/i", "Fix.MSP": "/p"} {
		job := b.job(t, patch.KindMSI, "1.1", file, []byte("msi"))
		out := run(t, b, job)
		if out.Result != patch.Success || out.Why != "" {
			t.Errorf("%s: outcome %+v", file, out)
		}
		if want := verb + " " + job.Path + " /qn /norestart /L*v " + out.Log + "\n"; !strings.HasPrefix(out.Output, want) {
			t.Errorf("%s: output %q, want %q first", file, out.Output, want)
		}
		if !strings.HasSuffix(out.Output, "\nProduct: Größe ☂ 💾 -- Installation failed.\n") {
			t.Errorf("%s: the log is not to be read in %q", file, out.Output)
		}
		if filepath.Dir(out.Log) != filepath.Join(b.Dir, "logs") || read(t, out.Log) != read(t, log) {
			t.Errorf("%s: log %s", file, out.Log)
		}
	}
}

// What each of msiexec's codes comes to, and that people get words for it.
func TestMSICodes(t *testing.T) {
	want := map[int]patch.Outcome{
		0: patch.Success, 3010: patch.Reboot, 1641: patch.RebootStarted, 1618: patch.Retry, 1601: patch.Retry,
		1605: patch.NotApplicable, 1613: patch.NotApplicable, 1623: patch.NotApplicable, 1633: patch.NotApplicable, 1637: patch.NotApplicable,
		1638: patch.NotApplicable, 1642: patch.NotApplicable, 1654: patch.NotApplicable,
		1602: patch.Failure, 1603: patch.Failure, 1604: patch.Failure, 1606: patch.Failure, 1610: patch.Failure, 1612: patch.Failure, 1614: patch.Failure,
		1619: patch.Failure, 1620: patch.Failure, 1622: patch.Failure, 1624: patch.Failure, 1625: patch.Failure, 1631: patch.Failure, 1632: patch.Failure,
		1635: patch.Failure, 1636: patch.Failure, 1639: patch.Failure, 1640: patch.Failure, 1643: patch.Failure, 1644: patch.Failure, 1648: patch.Failure,
		1: patch.Failure, 1600: patch.Failure, 3011: patch.Failure,
	}
	plain := map[int]bool{0: true, 1: true, 1600: true, 3011: true} // those have no words
	for code, outcome := range want {
		got, words := install.Meaning(&patch.Patch{Kind: patch.KindMSI}, code)
		if got != outcome || (words == "") != plain[code] {
			t.Errorf("msiexec %d = %s, %q; want %s", code, got, words, outcome)
		}
		if strings.Contains(words, "%") || strings.HasSuffix(words, ".") {
			t.Errorf("msiexec %d: %q is not how words for people look", code, words)
		}
	}
	for _, tt := range []struct {
		kind  patch.Kind
		exit  map[string]patch.Outcome
		code  int
		want  patch.Outcome
		words string // part of them; "" if there are none
	}{
		{patch.KindMSI, map[string]patch.Outcome{"1603": patch.Retry}, 1603, patch.Retry, "Return value 3"},
		{patch.KindMSI, map[string]patch.Outcome{"1603": patch.Retry}, 3010, patch.Reboot, "rebooted"}, // the rest stays
		{patch.KindEXE, nil, 3010, patch.Reboot, "rebooted"},
		{patch.KindEXE, nil, 1641, patch.RebootStarted, "reboot"},
		{patch.KindEXE, nil, 1618, patch.Retry, "in progress"},
		{patch.KindEXE, nil, 1603, patch.Failure, "fatal"},
		{patch.KindEXE, nil, 0x80070642, patch.Failure, "cancelled"},
		{patch.KindEXE, map[string]patch.Outcome{"-2147023294": patch.Retry}, 0x80070642, patch.Retry, "cancelled"},
		{patch.KindEXE, map[string]patch.Outcome{"3010": patch.Success}, 3010, patch.Success, ""},
		{patch.KindCommand, nil, 3010, patch.Failure, ""},
		{patch.KindDeb, nil, 3010, patch.Failure, ""},
	} {
		p := &patch.Patch{Kind: tt.kind, Install: &patch.Recipe{Argv: []string{"x"}, Exit: tt.exit}}
		if got, words := install.Meaning(p, tt.code); got != tt.want || !strings.Contains(words, tt.words) || tt.words == "" && words != "" {
			t.Errorf("%s %d = %s, %q; want %s, %q", tt.kind, tt.code, got, words, tt.want, tt.words)
		}
	}
}

// A product's own map goes for its kind's way too.
func TestOwnExitCodes(t *testing.T) {
	b := newBench(t)
	b.fakeProgram(t, "msiexec", "exit 77")
	job := b.job(t, patch.KindMSI, "1.1", "x.msi", nil)
	if out := run(t, b, job); out.Result != patch.Failure || out.Why != "msiexec ended with exit status 77" {
		t.Errorf("outcome %+v", out)
	}
	job.Patch.Install = &patch.Recipe{Exit: map[string]patch.Outcome{"77": patch.Retry}}
	if out := run(t, b, job); out.Result != patch.Retry || out.Why != "msiexec ended with exit status 77" {
		t.Errorf("outcome %+v", out)
	}
}

func TestLogPlaceholder(t *testing.T) {
	b := newBench(t)
	job := b.job(t, patch.KindEXE, "1.1", "setup.exe", []byte("#!/bin/sh\necho said; echo written >\"$1\"; exit 3\n"), recipe("{file}", "{log}"))
	out := run(t, b, job)
	if out.Output != "said\n\nwritten\n" || read(t, out.Log) != "written\n" {
		t.Errorf("outcome %+v", out)
	}
	if ours := read(t, strings.TrimSuffix(out.Log, ".program.log")+".log"); !strings.Contains(ours, "exit 3") {
		t.Errorf("our own log: %s", ours)
	}
}

func TestOldLogsGo(t *testing.T) {
	b := newBench(t)
	logs := filepath.Join(b.Dir, "logs")
	mustDo(t, os.MkdirAll(logs, 0o700))
	for i := range 300 {
		mustDo(t, os.WriteFile(filepath.Join(logs, fmt.Sprintf("20200101T000000.%06d-x-1-install.log", i)), nil, 0o600))
	}
	huge := filepath.Join(logs, "20210101T000000.000000-x-1-install.program.log")
	mustDo(t, os.WriteFile(huge, nil, 0o600))
	mustDo(t, os.Truncate(huge, 1<<30))
	run(t, b, b.job(t, patch.KindCommand, "1.1", "f", nil, recipe("true")))
	left, err := os.ReadDir(logs)
	if err != nil || len(left) != 2 {
		t.Fatalf("%d logs are left, %v; the newest and the one before are to stay", len(left), err)
	}
}

// Above the words that an action failed stands why; far below it the log ends.
func TestMSILogNamesWhatFailed(t *testing.T) {
	b := newBench(t)
	log := filepath.Join(b.dir, "log")
	const why = "MSI (s) (A0:B4): Error 1321. The Installer has insufficient privileges to modify this file: C:\\Größe.dll.\nAction ended 8:00:01: InstallFiles. Return value 3."
	utf16File(t, log, strings.Repeat("before it all\n", 20_000)+why+"\n"+strings.Repeat("Property(S): x = y\n", 20_000)+"Action ended 8:00:02: INSTALL. Return value 3.\n")
	b.fakeProgram(t, "msiexec", `cp `+log+` "$6"; exit 67`)
	out := run(t, b, b.job(t, patch.KindMSI, "1.1", "x.msi", nil))
	if !strings.HasSuffix(out.Output, "\n"+why) || len(out.Output) > 70_000 {
		t.Errorf("%d bytes of output, ending %q", len(out.Output), out.Output[max(0, len(out.Output)-300):])
	}
}
