package rollout

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseSteps(t *testing.T) {
	tests := []struct {
		in   string
		want []Step
		out  string // "": as in
	}{
		{"10%@0h,12.5%@90m,100%@3d", []Step{{At: 0, Percent: 1000}, {At: 5400, Percent: 1250}, {At: 259200, Percent: All}}, ""},
		{" 10%@0h, 100%@72h", []Step{{At: 0, Percent: 1000}, {At: 259200, Percent: All}}, "10%@0h,100%@3d"},
		{"0%@0h..100%@72h", []Step{{At: 0, Percent: 0}, {At: 259200, Percent: All, Ramp: true}}, "0%@0h..100%@3d"},
		{"1%@0h,1%@1d..50%@2d..100%@4d", []Step{{At: 0, Percent: 100}, {At: 86400, Percent: 100}, {At: 172800, Percent: 5000, Ramp: true}, {At: 345600, Percent: All, Ramp: true}}, ""},
	}
	for _, tt := range tests {
		got, err := ParseSteps(tt.in)
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("ParseSteps(%q) = %v, %v; want %v", tt.in, got, err, tt.want)
		}
		want := tt.out
		if want == "" {
			want = tt.in
		}
		if out := FormatSteps(got); out != want {
			t.Errorf("FormatSteps of %q = %q, want %q", tt.in, out, want)
		}
	}
}

func TestBadSteps(t *testing.T) {
	for in, want := range map[string]string{
		"": "step 1", "10": "step 1", "10%": "step 1", "10%@": "step 1", "x%@1h": "step 1", "10%@-1h": "step 1", "10%@xd": "step 1",
		"0.001%@0h": "step 1", "101%@0h": "step 1", "null%@0h": "step 1",
		"5%@0h,101%@1h":           "step 2",
		"10%@1h,5%@2h":            "step 2: shares never fall, and 5 % is less than the 10 % of step 1",
		"10%@2h,20%@1h":           "step 2: it overlaps step 1",
		"10%@2h,20%@2h":           "step 2: it overlaps step 1",
		"1%@0h..2%@1h,1%@2h":      "step 3: shares never fall",
		"0%@0h..50%@1h..60%@1h":   "step 3: it overlaps step 2",
		"0%@0h....100%@1h":        "step 2",
		"0%@0h..100%@100000h":     "step 2",
		"1%@0h,2%@1h,3%@2h,x%@3h": "step 4",
	} {
		if steps, err := ParseSteps(in); !errors.Is(err, ErrBad) || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseSteps(%q) = %v, %v; want ErrBad with %q", in, steps, err, want)
		}
	}
}

// A rollout that was paused goes on where it stood: nobody falls out, and nobody
// comes in at once.
func TestResume(t *testing.T) {
	h := func(n int) time.Time { return start.Add(time.Duration(n) * time.Hour) }
	tests := []struct {
		name           string
		steps          string
		paused, resume int // hours after the start
		catchUp        bool
		want           string
		begins         int
	}{
		{"between steps", "10%@0h,50%@24h,100%@72h", 12, 100, false, "10%@0h,50%@112h,100%@160h", 0},
		{"at a step", "10%@0h,50%@24h,100%@72h", 24, 25, false, "10%@0h,50%@1d,100%@73h", 0},
		{"catching up", "10%@0h,50%@24h,100%@72h", 12, 100, true, "10%@0h,50%@1d,100%@3d", 0},
		{"in a ramp", "0%@0h..100%@100h", 50, 60, false, "0%@0h..50%@50h,50%@60h..100%@110h", 0},
		{"in a ramp without a first step", "10%@0h..20%@10h..100%@90h", 30, 40, false, "10%@0h..20%@10h..40%@30h,40%@40h..100%@100h", 0},
		{"after the end", "10%@0h,100%@24h", 30, 40, false, "10%@0h,100%@1d", 0},
		{"before the start", "10%@0h,100%@24h", -5, -3, false, "10%@0h,100%@1d", 0},
		{"over the start", "10%@0h,100%@24h", -5, 7, false, "10%@0h,100%@1d", 7},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			steps, err := ParseSteps(tt.steps)
			if err != nil {
				t.Fatal(err)
			}
			e := Entry{Patch: pathA, SHA256: sumA, Custom: sumC, NotBefore: start, Steps: steps}
			before := e.Share(h(tt.paused))
			e.Pause("r", h(tt.paused))
			e.Resume(tt.catchUp, h(tt.resume))
			if got := FormatSteps(e.Steps); got != tt.want || !e.NotBefore.Equal(h(tt.begins)) {
				t.Errorf("steps = %s from %s, want %s from %s", got, e.NotBefore, tt.want, h(tt.begins))
			}
			if after := e.Share(h(tt.resume)); !tt.catchUp && tt.begins == 0 && tt.paused > 0 && after != before {
				t.Errorf("%s %% before the pause, %s %% after it", before, after)
			}
			if e.Paused || e.PausedReason != "" || !e.PausedSince.IsZero() {
				t.Errorf("still paused: %+v", e)
			}
			if err := e.check(); err != nil {
				t.Error(err)
			}
		})
	}
}
