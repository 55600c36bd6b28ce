//go:build unix

package install_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// tools skips a test whose programs are not on this machine; where everything
// is tested, they must be.
func tools(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("rpm --root wants root")
	}
}

func command(t *testing.T, env []string, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", argv, err, out)
	}
	return string(out)
}

// makeRPM builds a real rpm package.
func makeRPM(t *testing.T, name, epoch, version, post string) string {
	t.Helper()
	dir := t.TempDir()
	spec := filepath.Join(dir, "x.spec")
	text := "Name: " + name + "\nVersion: " + version + "\nRelease: 1\nSummary: a test\nLicense: MIT\nBuildArch: noarch\n"
	if epoch != "" {
		text += "Epoch: " + epoch + "\n"
	}
	text += "%description\na test\n%install\nmkdir -p %{buildroot}/usr/share/" + name + "\necho " + version + " >%{buildroot}/usr/share/" + name + "/version\n" +
		"%files\n/usr/share/" + name + "/version\n"
	if post != "" {
		text += "%post -p <lua>\n" + post + "\n"
	}
	mustDo(t, os.WriteFile(spec, []byte(text), 0o600))
	command(t, nil, "rpmbuild", "-bb", "--quiet", "--define", "_topdir "+dir, spec)
	return filepath.Join(dir, "RPMS/noarch", name+"-"+version+"-1.noarch.rpm")
}

func TestRPMPackage(t *testing.T) {
	tools(t, "rpm", "rpmbuild")
	b := newBench(t)
	b.System = filepath.Join(b.dir, "system")
	mustDo(t, os.MkdirAll(b.System, 0o755))
	var known install.Known
	for _, v := range []string{"1.0", "1.10", "1.9"} { // and back again
		job := b.job(t, patch.KindRPM, v, "hello-pk-"+v+"-1.noarch.rpm", []byte(read(t, makeRPM(t, "hello-pk", "2", v, ""))))
		if got, err := b.Detect(t.Context(), job.Patch, known); got != known.Version || err != nil {
			t.Errorf("Detect before = %q, %v; want %q", got, err, known.Version)
		}
		k, err := b.Inspect(t.Context(), job)
		if err != nil || k != (install.Known{Version: v, Package: "hello-pk", PackageVersion: "2:" + v + "-1"}) {
			t.Fatalf("Inspect = %+v, %v", k, err)
		}
		known = k
		for range 2 { // the same version again mends it
			if out := run(t, b, job); out.Result != patch.Success {
				t.Fatalf("outcome %+v", out)
			}
		}
		if got := read(t, b.System, "usr/share/hello-pk/version"); got != v+"\n" {
			t.Errorf("installed version %q", got)
		}
		if got, err := b.Detect(t.Context(), job.Patch, known); got != v || err != nil {
			t.Errorf("Detect = %q, %v; want %s", got, err, v)
		}
	}
	p := &patch.Patch{Product: "hello", Kind: patch.KindRPM}
	if got, err := b.Detect(t.Context(), p, install.Known{Package: install.GuessPackage(patch.KindRPM, "hello-pk-1.9-1.noarch.rpm", "hello")}); got != "1.9-1" || err != nil {
		t.Errorf("Detect by the file's name = %q, %v", got, err)
	}
	if got, err := b.Detect(t.Context(), p, install.Known{}); got != "" || err != nil {
		t.Errorf("Detect what is not there = %q, %v", got, err)
	}
	job := b.job(t, patch.KindRPM, "2", "x.rpm", []byte("no package"))
	if _, err := b.Inspect(t.Context(), job); err == nil {
		t.Error("Inspect of rubbish: no error")
	}
	if out := run(t, b, job); out.Result != patch.Failure {
		t.Errorf("rubbish: %+v", out)
	}
}

// While another program holds rpm's lock, the patch waits.
func TestBusyRPM(t *testing.T) {
	b := newBench(t)
	b.fakeProgram(t, "rpm", "echo 'error: can'\\''t create transaction lock on /var/lib/rpm/.rpm.lock (Resource temporarily unavailable)' >&2; exit 1")
	job := b.job(t, patch.KindRPM, "1", "x.rpm", []byte("rpm"))
	if out := run(t, b, job); out.Result != patch.Retry || !strings.Contains(out.Why, "using rpm") {
		t.Errorf("outcome %+v, want retry", out)
	}
}

func TestRPMSignature(t *testing.T) {
	tools(t, "rpm", "rpmbuild", "rpmsign", "gpg")
	home := filepath.Join(t.TempDir(), "gpg")
	mustDo(t, os.Mkdir(home, 0o700))
	env := []string{"GNUPGHOME=" + home}
	t.Cleanup(func() { _ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run() })
	fingerprints := map[string]string{}
	for _, who := range []string{"vendor", "other", "stranger"} {
		command(t, env, "gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", "--quick-gen-key", who, "rsa2048", "sign", "never")
		for line := range strings.SplitSeq(command(t, env, "gpg", "--list-keys", "--with-colons", who), "\n") {
			if f := strings.Split(line, ":"); f[0] == "fpr" {
				fingerprints[who] = f[9]
			}
		}
	}
	b := newBench(t)
	b.System = filepath.Join(b.dir, "system")
	mustDo(t, os.MkdirAll(b.System, 0o755))
	for _, who := range []string{"vendor", "other"} { // those the administrator has imported
		key := filepath.Join(b.System, who+".asc")
		mustDo(t, os.WriteFile(key, []byte(command(t, env, "gpg", "--armor", "--export", who)), 0o644))
		command(t, nil, "rpmkeys", "--root", b.System, "--import", key)
	}
	file := makeRPM(t, "hello-pk", "", "1.0", "")
	unsigned := []byte(read(t, file))
	signed := map[string][]byte{"nobody": unsigned}
	for who := range fingerprints {
		mustDo(t, os.WriteFile(file, unsigned, 0o600))
		command(t, env, "rpmsign", "--addsign", "--define", "_gpg_name "+who, "--define", "__gpg "+programPath(t, "gpg"), file)
		signed[who] = []byte(read(t, file))
	}
	broken := append([]byte(nil), signed["vendor"]...)
	broken[len(broken)-1] ^= 1
	signed["vendor, then changed"] = broken

	for who, want := range map[string]string{
		"vendor": "", "other": "is wanted", "stranger": "rpm --import", "nobody": "is not signed", "vendor, then changed": "rpm says no",
	} {
		job := b.job(t, patch.KindRPM, "1.0", "hello.rpm", signed[who], func(p *patch.Patch) {
			p.OSSignature = &patch.OSSignature{Scheme: patch.RPMSignature, Signers: []string{strings.Repeat("0", 40), fingerprints["vendor"]}}
		})
		out, err := b.Run(t.Context(), job)
		switch {
		case want == "" && (err != nil || out.Result != patch.Success):
			t.Errorf("signed by %s: %+v, %v", who, out, err)
		case want != "" && (!errors.Is(err, install.ErrSignature) || !strings.Contains(err.Error(), want)):
			t.Errorf("signed by %s: %+v, %v; want %q", who, out, err, want)
		}
		_, err = os.Stat(filepath.Join(b.System, "usr/share/hello-pk/version"))
		if (err == nil) != (want == "") {
			t.Errorf("signed by %s: installed: %v", who, err)
		}
		mustDo(t, os.RemoveAll(filepath.Join(b.System, "usr")))
	}
}

func programPath(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	mustDo(t, err)
	return path
}
