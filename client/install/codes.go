package install

import (
	"fmt"
	"maps"
	"os"

	"github.com/patchkeep/patchkeep/repo/patch"
)

// code is what an installer's exit code means, to the agent and to people.
type code struct {
	outcome patch.Outcome
	words   string // what it means, and what to do
}

// msiCodes are msiexec's exit codes (Windows Installer, "Error codes"). Those not
// named here are failures. What waiting alone can mend is retry; what no
// repetition on this machine would change is not-applicable; all that a person
// must look at is a failure, which is tried a few times and then reported.
var msiCodes = map[int]code{
	1601: {patch.Retry, "the Windows Installer service cannot be reached"},
	1602: {patch.Failure, "it was cancelled, by somebody at the machine or by another program"},
	1603: {patch.Failure, `a fatal error; the log says which, above "Return value 3"`},
	1604: {patch.Failure, "the installation was suspended and is not complete"},
	1605: {patch.NotApplicable, "the product that it changes is not installed here"},
	1606: {patch.Failure, "a component or feature that it names is not known to Windows Installer"},
	1610: {patch.Failure, "what Windows Installer knows about the product is damaged: repair or remove the product, then try again"},
	1612: {patch.Failure, "the files that the product was first installed from are not there any more: make its source reachable, or remove the old version by its own means"},
	1613: {patch.NotApplicable, "it needs a newer Windows Installer than this machine has"},
	1614: {patch.Failure, "the product is being uninstalled"},
	1618: {patch.Retry, "another installation is in progress"},
	1619: {patch.Failure, "Windows Installer cannot open the package: a scanner may hold it, or it is not a package"},
	1620: {patch.Failure, "the file is not a valid Windows Installer package: publish it again"},
	1622: {patch.Failure, "the log file cannot be written: look at the space and the rights of the agent's directory"},
	1623: {patch.NotApplicable, "it does not support the language of this system"},
	1624: {patch.Failure, "a transform of it cannot be applied"},
	1625: {patch.Failure, "a policy of this system forbids it"},
	1631: {patch.Failure, "the Windows Installer service does not start"},
	1632: {patch.Failure, "the directory for temporary files is full or cannot be written"},
	1633: {patch.NotApplicable, "it is not for this kind of processor"},
	1635: {patch.Failure, "Windows Installer cannot open the .msp file: a scanner may hold it, or it is not one"},
	1636: {patch.Failure, "the file is not a valid .msp: publish it again"},
	1637: {patch.NotApplicable, "it needs a newer Windows Installer than this machine has"},
	1638: {patch.NotApplicable, "another version of the product is installed that this package does not replace: remove that, or publish a recipe that reinstalls (REINSTALL=ALL REINSTALLMODE=vomus)"},
	1639: {patch.Failure, "msiexec does not take these arguments"},
	1640: {patch.Failure, "it cannot be installed in a session of Remote Desktop"},
	1641: {patch.RebootStarted, "the installer has started a reboot"},
	1642: {patch.NotApplicable, "the product that it mends is not here, or in a version that it does not fit"},
	1643: {patch.Failure, "a policy of this system forbids the .msp"},
	1644: {patch.Failure, "a policy of this system forbids a transform of it"},
	1648: {patch.Failure, "no order is known in which it can be put on the .msp files that are there"},
	1654: {patch.NotApplicable, "the app is not made for this version of Windows"},
	3010: {patch.Reboot, "the machine must be rebooted"},
}

// exeCodes are what set-up programs have in common, whoever made them.
var exeCodes = map[int]code{
	1618: msiCodes[1618],
	1641: msiCodes[1641],
	3010: msiCodes[3010],
}

// codesOf are the codes of a kind's installers.
func codesOf(k patch.Kind) map[int]code {
	switch k {
	case patch.KindMSI:
		return msiCodes
	case patch.KindEXE:
		return exeCodes
	}
	return nil
}

// exits are the outcomes of a kind's codes, with what the patch says over them.
func exits(p *patch.Patch) map[string]patch.Outcome {
	out := make(map[string]patch.Outcome)
	for n, c := range codesOf(p.Kind) {
		out[fmt.Sprint(n)] = c.outcome
	}
	if p.Install != nil {
		maps.Copy(out, p.Install.Exit)
	}
	return out
}

// ended says how a program ended that did not simply succeed.
func ended(program string, state *os.ProcessState) string {
	why := fmt.Sprintf("%s ended with %s", program, state)
	if n := state.ExitCode(); n > 0xFFFF {
		why += fmt.Sprintf(" (0x%08X)", uint32(n)) // as Windows documents it
	}
	return why
}

// explain adds to the outcome of an installer of a kind what its code means.
func explain(k patch.Kind, out *Outcome) {
	if out.Result == patch.Success || out.Exit <= 0 {
		return
	}
	n := out.Exit
	// Set-up programs pass a code of Windows on as an HRESULT: 0x8007 and the code.
	if uint32(n)&0xFFFF0000 == 0x80070000 {
		n &= 0xFFFF
	}
	c, ok := codesOf(k)[n]
	if k == patch.KindEXE && !ok && n >= 1600 && n < 1700 {
		c, ok = msiCodes[n] // most likely of an msi inside
	}
	if ok {
		out.Why += ": " + c.words
	}
}
