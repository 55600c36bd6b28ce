package install

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/repo/patch"
)

// runRecipe runs a recipe and keeps what it said in a log file. A log that the
// program has written itself says more, and is named instead.
func (in *Installer) runRecipe(ctx context.Context, job Job, step string, r *patch.Recipe) (Outcome, error) {
	said := &tail{limit: in.output()}
	base, err := in.logBase(job, step)
	if err != nil {
		return Outcome{}, err
	}
	theirs := base + ".program.log"
	out, argv, err := in.run(ctx, job, r, theirs, said, said)
	if err != nil {
		return Outcome{}, err
	}
	out.Output = said.String()
	warn := func(err error) { zerolog.Ctx(ctx).Warn().Err(err).Msg("keep the installer's output") }
	text, err := ownLog(theirs, in.output())
	if err != nil {
		warn(err)
	}
	if text != "" {
		_, _ = said.Write([]byte("\n" + text)) // it never fails
		out.Output = strings.TrimPrefix(said.String(), "\n")
	}
	if out.Log, err = in.writeLog(base+".log", argv, out); err != nil {
		warn(err)
	}
	if text != "" {
		out.Log = theirs
	}
	return out, nil
}

// capture runs a recipe for what it prints on stdout, of which the first
// 4 KiB count.
func (in *Installer) capture(ctx context.Context, job Job, r *patch.Recipe) (Outcome, string, error) {
	stdout := &head{limit: 4 << 10}
	out, _, err := in.run(ctx, job, r, os.DevNull, stdout, &tail{limit: in.output()})
	return out, string(stdout.b), err
}

// run runs a recipe's program. A program that could not be started is an
// error; one that ran too long has Exit -1.
func (in *Installer) run(ctx context.Context, job Job, r *patch.Recipe, log string, stdout, stderr io.Writer) (out Outcome, argv []string, err error) {
	argv = r.Expand(in.values(job, log))
	if argv[0] == ownScript {
		if argv, err = script(job); err != nil {
			return Outcome{}, nil, err
		}
	}
	program, err := lookPath(argv[0])
	if err != nil {
		return Outcome{}, nil, err
	}
	if err := PrivateDir(in.Dir); err != nil {
		return Outcome{}, nil, err
	}
	in.sweep()
	tmp, err := os.MkdirTemp(in.Dir, tempPrefix)
	if err != nil {
		return Outcome{}, nil, err
	}
	defer func() {
		// What is to happen at the next boot may want files from there.
		if out.Result != patch.Reboot && out.Result != patch.RebootStarted {
			os.RemoveAll(tmp)
		}
	}()

	limit := in.timeout(r)
	timed, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(timed, program, argv[1:]...)
	cmd.Args[0] = argv[0]
	cmd.Dir = tmp
	mark := markName + "=" + rand.Text()
	cmd.Env = append(in.environ(job, tmp), mark)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	// What the program left behind may hold its output open; it is not waited for.
	cmd.WaitDelay = in.grace()
	group := newGroup(cmd)
	defer group.close()
	if job.Lock != nil {
		if err := inherit(cmd, job.Lock); err != nil {
			return Outcome{}, nil, fmt.Errorf("pass on the lock: %w", err)
		}
	}
	if job.File != nil && program == job.Path {
		byHandle(cmd, job.File)
	}
	cmd.Cancel = group.terminate

	start := time.Now()
	zerolog.Ctx(ctx).Debug().Strs("argv", argv).Dur("timeout", limit).Msg("run")
	if err := group.start(); err != nil {
		return Outcome{}, nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	err = cmd.Wait()
	out = Outcome{Took: time.Since(start).Round(time.Millisecond), Exit: cmd.ProcessState.ExitCode()}
	if timed.Err() != nil {
		group.kill() // whoever did not listen to SIGTERM
		killMarked(mark)
		if !cmd.ProcessState.Success() {
			out.Result, out.Exit = patch.Failure, -1
			out.Why = fmt.Sprintf("%s was still running after %s and was stopped", argv[0], limit)
			if ctx.Err() != nil {
				out.Why = fmt.Sprintf("%s was stopped: %v", argv[0], context.Cause(ctx))
			}
			return out, argv, nil
		}
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) && timed.Err() == nil {
		return Outcome{}, nil, fmt.Errorf("run %s: %w", argv[0], err)
	}
	out.Result = patch.Failure
	if out.Exit >= 0 { // else: killed by a signal
		out.Result = r.OutcomeOf(out.Exit)
	}
	if out.Result != patch.Success {
		out.Why = ended(argv[0], cmd.ProcessState)
	}
	return out, argv, nil
}

const (
	tempPrefix = "tmp-"
	tempLife   = 7 * 24 * time.Hour

	// markName is in the environment of all that an installer starts, wherever
	// that goes, with a value of its own for each run.
	markName = "PATCHKEEP_RUN"
)

// sweep removes directories for temporary files that were left by runs that
// were cut off, or kept for a reboot.
func (in *Installer) sweep() {
	entries, err := os.ReadDir(in.Dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && e.IsDir() && strings.HasPrefix(e.Name(), tempPrefix) && time.Since(info.ModTime()) > tempLife {
			os.RemoveAll(in.path(e.Name()))
		}
	}
}

// ownScript stands for running the file itself. No recipe can name it: a program
// is an absolute path, a name without a slash, or {file}.
const ownScript = "/{script}"

// script is how a script is run: by its #! line on Unix, by PowerShell if it
// is a .ps1 on Windows. On Linux $0 is not its path, see byHandle.
func script(job Job) ([]string, error) {
	if runtime.GOOS == "windows" {
		if !strings.EqualFold(filepath.Ext(job.Path), ".ps1") {
			return nil, fmt.Errorf("script %s is not a .ps1 (run a .cmd by a recipe of its own, as cmd.exe has rules of its own for names): %w", filepath.Base(job.Path), ErrUnsupported)
		}
		return []string{"powershell", "-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-File", job.Path}, nil
	}
	var magic [2]byte
	if _, err := job.File.ReadAt(magic[:], 0); err != nil || string(magic[:]) != "#!" {
		return nil, fmt.Errorf("script %s does not begin with #!: %w", filepath.Base(job.Path), ErrUnsupported)
	}
	return []string{job.Path}, nil
}

// lookPath finds a program: by its absolute path, or in the fixed PATH.
func lookPath(name string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	if strings.ContainsAny(name, `/\`) {
		return "", fmt.Errorf("%s: a program is named by an absolute path or by its bare name", name)
	}
	for _, dir := range searchPath() {
		for _, suffix := range programSuffixes {
			path := filepath.Join(dir, name+suffix)
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && isProgram(info) {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

// environ is a program's environment: nothing of ours but what the system
// itself needs (inherited, by system).
func (in *Installer) environ(job Job, tmp string) []string {
	env := []string{
		"PATH=" + strings.Join(searchPath(), string(os.PathListSeparator)),
		"LANG=C.UTF-8",
		"LC_ALL=C.UTF-8",
		"DEBIAN_FRONTEND=noninteractive",
		"DEBCONF_NONINTERACTIVE_SEEN=true",
		"PATCHKEEP_PRODUCT=" + job.Patch.Product,
		"PATCHKEEP_VERSION=" + job.Patch.Version,
		"PATCHKEEP_PREVIOUS=" + job.Previous,
		"PATCHKEEP_ROOT=" + in.Root,
		"PATCHKEEP_FILE=" + job.Path,
	}
	for _, name := range tempNames {
		env = append(env, name+"="+tmp)
	}
	if home := homeDir(); home != "" {
		env = append(env, "HOME="+home)
	}
	for _, name := range inherited {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// How much of logs is kept: the newest, beyond the last one only so many, and
// so many bytes in all.
const (
	maxLogs     = 200
	maxLogBytes = 256 << 20
)

// logBase is the beginning of the paths of a step's log files.
func (in *Installer) logBase(job Job, step string) (string, error) {
	dir := in.path("logs")
	if err := PrivateDir(in.Dir); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return filepath.Join(dir, fmt.Sprintf("%s-%s-%s-%s", time.Now().UTC().Format("20060102T150405.000000"), job.Patch.Product, job.Patch.Version, step)), nil
}

func (in *Installer) writeLog(path string, argv []string, out Outcome) (string, error) {
	text := fmt.Sprintf("%q\n%s\n-- %s, exit %d, %s\n", argv, out.Output, out.Result, out.Exit, out.Took)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return "", err
	}
	dir := filepath.Dir(path)
	logs, err := os.ReadDir(dir) // sorted by name, so by time
	if err != nil {
		return "", err
	}
	var bytes int64
	for i, l := range slices.Backward(logs) {
		info, err := l.Info()
		if err != nil {
			continue
		}
		bytes += info.Size()
		if i < len(logs)-2 && (bytes > maxLogBytes || len(logs)-i > maxLogs) {
			if err := os.Remove(filepath.Join(dir, l.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", err
			}
		}
	}
	return path, nil
}

// tail keeps the last limit bytes written to it.
type tail struct {
	b     []byte
	limit int
	total int64
}

func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	t.total += int64(n)
	if n > t.limit {
		p = p[n-t.limit:]
	}
	if over := len(t.b) + len(p) - t.limit; over > 0 {
		t.b = slices.Delete(t.b, 0, over)
	}
	t.b = append(t.b, p...)
	return n, nil
}

func (t *tail) String() string {
	s := strings.ToValidUTF8(string(t.b), "\uFFFD")
	if left := t.total - int64(len(t.b)); left > 0 {
		return fmt.Sprintf("[%d bytes left out]\n%s", left, s)
	}
	return s
}

// head keeps the first limit bytes written to it.
type head struct {
	b     []byte
	limit int
}

func (h *head) Write(p []byte) (int, error) {
	h.b = append(h.b, p[:min(len(p), h.limit-len(h.b))]...)
	return len(p), nil
}
