package install

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/windows"
)

var (
	inherited = []string{
		"SystemRoot", "SystemDrive", "windir", "ComSpec", "PATHEXT", "ProgramData", "ProgramFiles", "ProgramFiles(x86)",
		"ProgramW6432", "CommonProgramFiles", "CommonProgramFiles(x86)", "USERPROFILE", "APPDATA", "LOCALAPPDATA",
		"PROCESSOR_ARCHITECTURE", "NUMBER_OF_PROCESSORS", "TZ",
	}
	tempNames       = []string{"TEMP", "TMP"}
	programSuffixes = []string{"", ".exe"}
)

var searchPath = func() []string {
	system, err := windows.GetSystemDirectory()
	if err != nil {
		system = `C:\Windows\System32`
	}
	return []string{system, filepath.Dir(system), filepath.Join(system, "Wbem"), filepath.Join(system, "WindowsPowerShell", "v1.0")}
}

func isProgram(info os.FileInfo) bool { return filepath.Ext(info.Name()) != "" }

func homeDir() string { return "" }

// group is a program with all it starts: a job object.
type group struct {
	cmd *exec.Cmd
	job windows.Handle
}

func newGroup(cmd *exec.Cmd) *group {
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP, HideWindow: true}
	return &group{cmd: cmd}
}

// start starts the program and puts it into a job of its own. What it starts
// before that escapes the job; the program itself never does.
func (g *group) start() error {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return err
	}
	g.job = job
	if err := g.cmd.Start(); err != nil {
		return err
	}
	const rights = windows.PROCESS_SET_QUOTA | windows.PROCESS_TERMINATE
	h, err := windows.OpenProcess(rights, false, uint32(g.cmd.Process.Pid))
	if err == nil {
		err = windows.AssignProcessToJobObject(job, h)
		_ = windows.CloseHandle(h)
	}
	if err != nil {
		_ = g.cmd.Process.Kill()
		_ = g.cmd.Wait()
		return err
	}
	return nil
}

func (g *group) terminate() error { return windows.TerminateJobObject(g.job, 1) }

func (g *group) kill() { _ = g.terminate() } // gone already is fine

func (g *group) close() {
	if g.job != 0 {
		_ = windows.CloseHandle(g.job)
	}
}

// inherit passes an open file on to the program, and to what that starts with
// its handles.
func inherit(cmd *exec.Cmd, f *os.File) error {
	h := syscall.Handle(f.Fd())
	if err := windows.SetHandleInformation(windows.Handle(h), windows.HANDLE_FLAG_INHERIT, windows.HANDLE_FLAG_INHERIT); err != nil {
		return err
	}
	cmd.SysProcAttr.AdditionalInheritedHandles = append(cmd.SysProcAttr.AdditionalInheritedHandles, h)
	return nil
}
