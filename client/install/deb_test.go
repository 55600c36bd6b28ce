//go:build unix

package install_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// makeDeb builds a real Debian package.
func makeDeb(t *testing.T, name, version, postinst string) []byte {
	t.Helper()
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	mustDo(t, os.MkdirAll(filepath.Join(tree, "DEBIAN"), 0o755))
	mustDo(t, os.Chmod(tree, 0o755))
	mustDo(t, os.MkdirAll(filepath.Join(tree, "usr/share", name), 0o755))
	mustDo(t, os.WriteFile(filepath.Join(tree, "usr/share", name, "version"), []byte(version), 0o644))
	control := "Package: " + name + "\nVersion: " + version + "\nArchitecture: all\nMaintainer: Test <test@example.org>\nDescription: a test\n"
	mustDo(t, os.WriteFile(filepath.Join(tree, "DEBIAN/control"), []byte(control), 0o644))
	if postinst != "" {
		mustDo(t, os.WriteFile(filepath.Join(tree, "DEBIAN/postinst"), []byte("#!/bin/sh\n"+postinst), 0o755))
	}
	out := filepath.Join(dir, "out.deb")
	if said, err := exec.Command("dpkg-deb", "--root-owner-group", "--build", tree, out).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v\n%s", err, said)
	}
	return []byte(read(t, out))
}

func TestDebianPackage(t *testing.T) {
	b := newBench(t)
	b.System = filepath.Join(b.dir, "system")
	var known install.Known
	detect := func(p *patch.Patch, want string) {
		t.Helper()
		if got, err := b.Detect(t.Context(), p, known); got != want || err != nil {
			t.Errorf("Detect = %q, %v; want %q", got, err, want)
		}
	}
	// The patch calls itself hello, the package hello-pk, with an epoch that
	// no version of a patch can have.
	for _, v := range []string{"1.0-1", "1.1-1"} {
		job := b.job(t, patch.KindDeb, v, "hello-pk_"+v+"_all.deb", makeDeb(t, "hello-pk", "1:"+v, "echo configured $DEBIAN_FRONTEND"))
		detect(job.Patch, job.Previous+known.Version)
		k, err := b.Inspect(t.Context(), job)
		if err != nil || k != (install.Known{Version: v, Package: "hello-pk", PackageVersion: "1:" + v}) {
			t.Fatalf("Inspect = %+v, %v", k, err)
		}
		known = k
		out := run(t, b, job)
		if out.Result != patch.Success || !strings.Contains(out.Output, "configured noninteractive") {
			t.Fatalf("outcome %+v", out)
		}
		if got := read(t, b.System, "usr/share/hello-pk/version"); got != "1:"+v {
			t.Errorf("installed version %q", got)
		}
		detect(job.Patch, v)
	}
	// Without the record: by the name of the file, and without the epoch.
	known = install.Known{Package: install.GuessPackage(patch.KindDeb, "hello-pk_1.1-1_all.deb", "hello")}
	detect(&patch.Patch{Product: "hello", Kind: patch.KindDeb}, "1.1-1")
	known = install.Known{}
	detect(&patch.Patch{Product: "hello", Kind: patch.KindDeb}, "")
}

func TestBadDebianPackages(t *testing.T) {
	b := newBench(t)
	b.System = filepath.Join(b.dir, "system")
	job := b.job(t, patch.KindDeb, "1", "x.deb", []byte("no package"))
	if _, err := b.Inspect(t.Context(), job); err == nil {
		t.Error("Inspect of rubbish: no error")
	}
	if out := run(t, b, job); out.Result != patch.Failure {
		t.Errorf("rubbish: %+v", out)
	}
	job = b.job(t, patch.KindDeb, "2", "y.deb", makeDeb(t, "hello", "2", "exit 7"))
	if out := run(t, b, job); out.Result != patch.Failure || !strings.Contains(out.Output, "exit status 7") {
		t.Errorf("failing postinst: %+v", out)
	}
	if out := run(t, b, job); !strings.Contains(out.Why, "run dpkg --configure -a") {
		t.Errorf("half installed: %+v, want it to be said", out)
	}
	if got, err := b.Detect(t.Context(), job.Patch, install.Known{}); got != "" || err != nil {
		t.Errorf("Detect after a failed configuration = %q, %v; want not installed", got, err)
	}
}

// While another program holds dpkg's lock, the patch waits.
func TestBusyDpkg(t *testing.T) {
	b := newBench(t)
	b.System = filepath.Join(b.dir, "system")
	job := b.job(t, patch.KindDeb, "1", "x.deb", makeDeb(t, "hello", "1", ""))
	if out := run(t, b, job); out.Result != patch.Success {
		t.Fatalf("outcome %+v", out)
	}
	unlock := holdLock(t, filepath.Join(b.System, "var/lib/dpkg/lock-frontend"))
	defer unlock()
	if out := run(t, b, job); out.Result != patch.Retry {
		t.Errorf("outcome %+v, want retry", out)
	}
}

// dpkg that is killed in the middle leaves a package half installed: it does not
// count as installed, and the next attempt mends it.
func TestKilledDpkg(t *testing.T) {
	b := newBench(t)
	b.System = filepath.Join(b.dir, "system")
	stop := filepath.Join(b.dir, "stop")
	mustDo(t, os.WriteFile(stop, nil, 0o600))
	job := b.job(t, patch.KindDeb, "1", "x.deb", makeDeb(t, "hello", "1", "if test -e "+stop+"; then sleep 600; fi"))
	job.Patch.Install = &patch.Recipe{Timeout: 2}
	out := run(t, b, job)
	if out.Result != patch.Failure || !strings.Contains(out.Why, "still running after 2s") || !strings.Contains(out.Why, "dpkg --audit") {
		t.Errorf("outcome %+v", out)
	}
	if got, err := b.Detect(t.Context(), job.Patch, install.Known{}); got != "" || err != nil {
		t.Errorf("Detect = %q, %v; want not installed", got, err)
	}
	mustDo(t, os.Remove(stop))
	job.Patch.Install.Timeout = 60
	if out := run(t, b, job); out.Result != patch.Success {
		t.Errorf("again: %+v", out)
	}
	if got, err := b.Detect(t.Context(), job.Patch, install.Known{}); got != "1" || err != nil {
		t.Errorf("Detect = %q, %v", got, err)
	}
}
