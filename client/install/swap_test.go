//go:build unix

package install_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// between lets another process of the same user act between the check of the
// file and the start of its installer.
func between(t *testing.T, act func()) {
	t.Helper()
	var once sync.Once
	t.Cleanup(install.AfterCheck(func() { once.Do(act) }))
}

const (
	goodScript = "#!/bin/sh\necho good\n"
	evilScript = "#!/bin/sh\necho evil\n"
)

// Whoever puts another file in the place of the checked one, be it in the last
// moment, does not get it run.
func TestSwappedInTheLastMoment(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux runs a program by its handle")
	}
	for name, swap := range map[string]func(t *testing.T, path string){
		"renamed over": func(t *testing.T, path string) {
			mustDo(t, os.WriteFile(path+".evil", []byte(evilScript), 0o700))
			mustDo(t, os.Rename(path+".evil", path))
		},
		"a link": func(t *testing.T, path string) {
			mustDo(t, os.WriteFile(path+".evil", []byte(evilScript), 0o700))
			mustDo(t, os.Remove(path))
			mustDo(t, os.Symlink(path+".evil", path))
		},
		"another directory": func(t *testing.T, path string) {
			mustDo(t, os.Rename(filepath.Dir(path), filepath.Dir(path)+".away"))
			mustDo(t, os.Mkdir(filepath.Dir(path), 0o700))
			mustDo(t, os.WriteFile(path, []byte(evilScript), 0o700))
		},
	} {
		for _, kind := range []patch.Kind{patch.KindScript, patch.KindEXE} {
			b := newBench(t)
			job := b.job(t, kind, "1.1", "setup.sh", []byte(goodScript))
			if kind == patch.KindEXE {
				job.Patch.Install = &patch.Recipe{Argv: []string{"{file}"}}
			}
			between(t, func() { swap(t, job.Path) })
			out := run(t, b, job)
			if out.Output != "good\n" {
				t.Errorf("%s, %s: %q was run", kind, name, out.Output)
			}
			if out.Result != patch.Failure || !strings.Contains(out.Why, "another file was put at") {
				t.Errorf("%s, %s: outcome %+v, want it to be noticed", kind, name, out)
			}
		}
	}
}

// Who writes into the file in the last moment, and sets its time back, has to
// wait where there are leases, and is noticed in any case.
func TestWrittenInTheLastMoment(t *testing.T) {
	for _, kind := range []patch.Kind{patch.KindScript, patch.KindFile, patch.KindArchive} {
		b := newBench(t)
		content := []byte(goodScript)
		if kind == patch.KindArchive {
			content = pack(t, "x.tar", []entry{{name: "f", body: "good"}})
		}
		job := b.job(t, kind, "1.1", "setup.sh", content)
		wrote := make(chan error, 1)
		between(t, func() {
			begun := make(chan struct{})
			go func() {
				info, err := os.Stat(job.Path)
				close(begun)
				wrote <- errors.Join(err, os.WriteFile(job.Path, []byte(evilScript), 0o600), os.Chtimes(job.Path, info.ModTime(), info.ModTime()))
			}()
			<-begun
			// Without leases it is through in no time; with them it waits for us.
			select {
			case err := <-wrote:
				wrote <- err
			case <-time.After(500 * time.Millisecond):
			}
		})
		out, err := b.Run(t.Context(), job)
		if strings.Contains(out.Output, "evil") {
			t.Errorf("%s: the other file was run: %+v", kind, out)
		}
		if err == nil && out.Result == patch.Success || err != nil && !errors.Is(err, install.ErrChanged) {
			t.Errorf("%s: Run = %+v, %v; want it to be noticed", kind, out, err)
		}
		if got, err := b.Detect(t.Context(), job.Patch, install.Known{}); kind != patch.KindScript && (got != "" || err != nil) {
			t.Errorf("%s: %q is installed, %v", kind, got, err)
		}
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
	}
}

// Who has the file open for writing already could write at any moment.
func TestOpenForWriting(t *testing.T) {
	b := newBench(t)
	job := b.job(t, patch.KindScript, "1.1", "setup.sh", []byte(goodScript))
	f, err := os.OpenFile(job.Path, os.O_RDWR, 0)
	mustDo(t, err)
	defer f.Close()
	if _, err := b.Run(t.Context(), job); !errors.Is(err, install.ErrChanged) && runtime.GOOS == "linux" {
		t.Errorf("Run = %v, want ErrChanged", err)
	}
}

// A write whose traces were wiped from the time of the last write.
func TestTimesSetBack(t *testing.T) {
	b := newBench(t)
	job := b.job(t, patch.KindDeb, "1.1", "x.deb", makeDeb(t, "hello", "1.1", ""))
	b.System = filepath.Join(b.dir, "system")
	info, err := os.Stat(job.Path)
	mustDo(t, err)
	evil := filepath.Join(b.dir, "evil.deb")
	mustDo(t, os.WriteFile(evil, makeDeb(t, "hello", "6.66", ""), 0o600))
	between(t, func() {
		// It is put in place for dpkg, and taken away again before anybody looks.
		mustDo(t, os.Rename(job.Path, job.Path+".good"))
		mustDo(t, os.Rename(evil, job.Path))
		mustDo(t, os.Rename(job.Path, evil))
		mustDo(t, os.Rename(job.Path+".good", job.Path))
		mustDo(t, os.Chtimes(job.Path, info.ModTime(), info.ModTime()))
	})
	if out := run(t, b, job); out.Result != patch.Failure || !strings.Contains(out.Why, "another process changed") {
		t.Errorf("outcome %+v, want it to be noticed", out)
	}
}
