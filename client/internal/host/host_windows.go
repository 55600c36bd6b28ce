package host

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

var (
	kernel32             = windows.NewLazySystemDLL("kernel32.dll")
	getSystemPowerStatus = kernel32.NewProc("GetSystemPowerStatus")
	ole32                = windows.NewLazySystemDLL("ole32.dll")
	coCreateInstance     = ole32.NewProc("CoCreateInstance")
)

// powerStatus is SYSTEM_POWER_STATUS.
type powerStatus struct {
	ac, flag, percent, saver byte
	life, fullLife           uint32
}

func powerNow(context.Context) (Power, error) {
	var s powerStatus
	if ok, _, err := getSystemPowerStatus.Call(uintptr(unsafe.Pointer(&s))); ok == 0 {
		return Power{}, fmt.Errorf("ask for the power status: %w", err)
	}
	if s.ac == 255 {
		return Power{}, ErrUnknown
	}
	p := Power{Battery: s.ac == 0, Percent: -1, Saver: s.saver == 1}
	if s.percent <= 100 {
		p.Percent = int(s.percent)
	}
	return p, nil
}

// INetworkCostManager of netlistmgr.h, as far as GetCost.
type costManager struct{ methods *costManagerMethods }

type costManagerMethods struct{ queryInterface, addRef, release, getCost uintptr }

var (
	networkListManager  = windows.GUID{Data1: 0xDCB00C01, Data2: 0x570F, Data3: 0x4A9B, Data4: [8]byte{0x8D, 0x69, 0x19, 0x9F, 0xDB, 0xA5, 0x72, 0x3B}}
	networkCostManager  = windows.GUID{Data1: 0xDCB00008, Data2: 0x570F, Data3: 0x4A9B, Data4: [8]byte{0x8D, 0x69, 0x19, 0x9F, 0xDB, 0xA5, 0x72, 0x3B}}
	costUnrestricted    = uint32(0x1)
	costFixedOrVariable = uint32(0x2 | 0x4)
	costOverOrRoaming   = uint32(0x10000 | 0x40000)
)

const clsctxAll = 0x17

// metered asks the list of networks for the cost of the way to the internet.
func metered(context.Context) (bool, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// An error says that this thread is set up already, in one way or another.
	if err := windows.CoInitializeEx(0, windows.COINIT_MULTITHREADED); err == nil {
		defer windows.CoUninitialize()
	}
	var m *costManager
	if hr, _, _ := coCreateInstance.Call(uintptr(unsafe.Pointer(&networkListManager)), 0, clsctxAll,
		uintptr(unsafe.Pointer(&networkCostManager)), uintptr(unsafe.Pointer(&m))); hr != 0 || m == nil {
		return false, fmt.Errorf("%w: no list of networks (%#x)", ErrUnknown, hr)
	}
	defer syscall.SyscallN(m.methods.release, uintptr(unsafe.Pointer(m)))
	var cost uint32
	if hr, _, _ := syscall.SyscallN(m.methods.getCost, uintptr(unsafe.Pointer(m)), uintptr(unsafe.Pointer(&cost)), 0); hr != 0 {
		return false, fmt.Errorf("%w: no cost of the network (%#x)", ErrUnknown, hr)
	}
	return isMetered(cost)
}

func isMetered(cost uint32) (bool, error) {
	switch {
	case cost&(costFixedOrVariable|costOverOrRoaming) != 0:
		return true, nil
	case cost&costUnrestricted != 0:
		return false, nil
	}
	return false, ErrUnknown
}

// users looks for a session that somebody works in, at the screen or from afar.
func users(context.Context) (bool, error) {
	var list *windows.WTS_SESSION_INFO
	var n uint32
	if err := windows.WTSEnumerateSessions(0, 0, 1, &list, &n); err != nil {
		return false, fmt.Errorf("list sessions: %w", err)
	}
	defer windows.WTSFreeMemory(uintptr(unsafe.Pointer(list)))
	for _, s := range unsafe.Slice(list, n) {
		if s.SessionID != 0 && (s.State == windows.WTSActive || s.State == windows.WTSDisconnected) {
			return true, nil
		}
	}
	return false, nil
}

func rebootArgv(after time.Duration, text string) []string {
	exe := "shutdown.exe"
	if dir, err := windows.GetSystemDirectory(); err == nil {
		exe = filepath.Join(dir, exe)
	}
	// Planned, for an update of software (d:2:17 is "Operating System: Hot fix").
	return []string{exe, "/r", "/t", strconv.FormatInt(int64((after+time.Second-1)/time.Second), 10), "/c", text, "/d", "p:2:17"}
}
