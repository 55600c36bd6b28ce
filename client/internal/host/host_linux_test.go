package host

import (
	"os"
	"path/filepath"
	"testing"
)

func TestPowerSupplies(t *testing.T) {
	type files map[string]string
	mains := func(online string) files { return files{"type": "Mains", "online": online} }
	battery := func(status, capacity string) files {
		return files{"type": "Battery", "present": "1", "status": status, "capacity": capacity}
	}
	mouse := files{"type": "Battery", "scope": "Device", "status": "Discharging", "capacity": "3"}
	for _, tt := range []struct {
		name     string
		supplies map[string]files
		want     Power
	}{
		{"a server", nil, Power{Percent: -1}},
		{"a laptop plugged in", map[string]files{"AC": mains("1"), "BAT0": battery("Charging", "12")}, Power{Percent: 12}},
		{"a laptop on battery", map[string]files{"AC": mains("0"), "BAT0": battery("Discharging", "29")}, Power{Battery: true, Percent: 29}},
		{"two batteries", map[string]files{"AC": mains("0"), "BAT0": battery("Not charging", "5"), "BAT1": battery("Discharging", "80")}, Power{Battery: true, Percent: 80}},
		{"by USB-C", map[string]files{"ucsi": {"type": "USB", "online": "1"}, "BAT0": battery("Discharging", "40")}, Power{Percent: 40}},
		{"a PC with a mouse", map[string]files{"hid": mouse}, Power{Percent: -1}},
		{"no charge told", map[string]files{"BAT0": battery("Discharging", "")}, Power{Battery: true, Percent: -1}},
		{"nonsense", map[string]files{"BAT0": battery("Discharging", "4000")}, Power{Battery: true, Percent: -1}},
		{"taken out", map[string]files{"BAT0": {"type": "Battery", "present": "0", "status": "Discharging"}}, Power{Percent: -1}},
	} {
		dir := t.TempDir()
		for name, fs := range tt.supplies {
			if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
			for f, content := range fs {
				if err := os.WriteFile(filepath.Join(dir, name, f), []byte(content+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got, err := readSupplies(dir); err != nil || got != tt.want {
			t.Errorf("%s: %+v, %v; want %+v", tt.name, got, err, tt.want)
		}
	}
	if p, err := readSupplies(filepath.Join(t.TempDir(), "none")); err != nil || p.Battery {
		t.Errorf("without the kernel's list: %+v, %v", p, err)
	}
}

func TestMeteredAnswers(t *testing.T) {
	for out, want := range map[string]bool{"u 1\n": true, "u 2\n": false, "u 3\n": true, "u 4\n": false} {
		if got, err := parseMetered(out); err != nil || got != want {
			t.Errorf("%q: %v, %v", out, got, err)
		}
	}
	for _, out := range []string{"", "u 0\n", "s \"yes\"\n"} {
		if _, err := parseMetered(out); err == nil {
			t.Errorf("%q is an answer", out)
		}
	}
}

func TestSessions(t *testing.T) {
	for out, want := range map[string]bool{
		"": false,
		" 3 1000 anna seat0 1234 user    tty2 no -\n":    true,
		" 4 1000 anna -     1235 manager -    no -\n":    false,
		" 1  120 gdm  seat0 1236 greeter tty1 no -\n":    false,
		"anna     pts/0        2026-11-24 23:00 (x)\n\n": true,
	} {
		if got := parseSessions(out); got != want {
			t.Errorf("%q: %v, want %v", out, got, want)
		}
	}
}
