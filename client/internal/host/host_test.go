package host

import (
	"testing"
	"time"
)

func TestPmset(t *testing.T) {
	for out, want := range map[string]Power{
		"Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t57%; discharging; 3:02 remaining present: true\n": {Battery: true, Percent: 57},
		"Now drawing from 'AC Power'\n -InternalBattery-0 (id=1)\t100%; charged; 0:00 remaining present: true\n":         {Percent: 100},
		"Now drawing from 'AC Power'\n": {Percent: -1},
		"Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t999%; discharging;\n": {Battery: true, Percent: -1},
	} {
		if got, err := parsePmset(out); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", out, got, err, want)
		}
	}
	if p, err := parsePmset("pmset: no such thing"); err == nil {
		t.Errorf("nonsense is %+v", p)
	}
}

// What a machine tells is used; that it does not is no failure.
func TestAskThisMachine(t *testing.T) {
	if p, err := PowerNow(t.Context()); err == nil && (p.Percent < -1 || p.Percent > 100) {
		t.Errorf("power %+v", p)
	}
	if _, err := Metered(t.Context()); err != nil {
		t.Logf("metered: %v", err)
	}
	if _, err := Users(t.Context()); err != nil {
		t.Logf("users: %v", err)
	}
	if a, b := Network(), Network(); a != b {
		t.Errorf("the network changes by being looked at: %q, %q", a, b)
	}
	if argv := rebootArgv(90*time.Second, "a b; c"); argv[len(argv)-1] != "a b; c" && argv[5] != "a b; c" {
		t.Errorf("the text is no argument of its own: %q", argv)
	}
	if minutes(0) != 0 || minutes(1) != 1 || minutes(time.Minute) != 1 || minutes(61*time.Second) != 2 {
		t.Error("minutes are not rounded up")
	}
}
