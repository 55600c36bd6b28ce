package agent

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/client/internal/host"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// Power is what feeds the machine.
type Power = host.Power

// ownAccord is what to do about what the settings hold back.
const ownAccord = "or now with: patchkeep-agent apply --now"

// hold keeps offered patches back for the battery's and the line's sake, unless
// a person asks. Where the system does not tell, there is mains and no meter.
func (e *evaluation) hold(ctx context.Context) {
	set := e.Settings()
	offered := e.rep.In(StateOffered)
	if len(offered) == 0 || e.asked {
		return
	}
	if r := e.rebooting(e.now); r != nil {
		for _, it := range offered {
			it.no(StateWaiting, "reboot", fmt.Sprintf("this machine reboots at %s, and nothing is begun before", r.At.In(e.now.Location()).Format(time.RFC3339)))
			it.Until = r.At.Add(rebootSlack)
		}
		return
	}
	if set.MinBattery > 0 {
		p, err := e.opts.Power(ctx)
		if err != nil {
			zerolog.Ctx(ctx).Debug().Err(err).Msg("ask for the power supply")
			p = Power{Percent: -1}
		}
		why, ok := enough(p, set.MinBattery)
		for _, it := range offered {
			if ok {
				it.yes("power", why)
			} else {
				it.no(StateWaiting, "power", why)
			}
		}
		if !ok {
			return
		}
	}
	if set.Metered == "" || set.Metered == MeteredAny || !e.isMetered(ctx) {
		return
	}
	for _, it := range offered {
		if why, ok := e.worthIt(it, &set); ok {
			it.yes("metered", why)
		} else {
			it.no(StateWaiting, "metered", why)
		}
	}
}

func enough(p Power, least int) (why string, ok bool) {
	switch {
	case !p.Battery:
		return "it does not run on battery", true
	case p.Saver:
		return "it runs on battery and saves power: it waits for mains, " + ownAccord, false
	case p.Percent < 0:
		return "it runs on battery, and does not tell how much is left", true
	case p.Percent < least:
		return fmt.Sprintf("it runs on battery with %d %% left, and nothing is begun below %d %%: it waits for mains, %s", p.Percent, least, ownAccord), false
	}
	return fmt.Sprintf("it runs on battery with %d %% left", p.Percent), true
}

// worthIt reports whether a patch may be fetched over a line that costs. What
// lies on the disk already costs nothing.
func (e *evaluation) worthIt(it *Item, set *Settings) (why string, ok bool) {
	rec := &Record{Path: it.Path, SHA256: it.SHA256}
	if info, err := os.Stat(e.filePath(rec)); err == nil && info.Mode().IsRegular() && info.Size() == it.Length {
		return "the line is metered, but the file is here already", true
	}
	const waits = "it waits for another line, " + ownAccord
	switch {
	case set.Metered == MeteredNone:
		return "the line is metered, and nothing is fetched over it: " + waits, false
	case it.Length <= set.MeteredMax:
		return "the line is metered, but the file is small", true
	case it.Severity == patch.SeverityCritical:
		return "the line is metered, but the patch is critical", true
	case it.Overdue:
		return "the line is metered, but the deadline has passed", true
	}
	return fmt.Sprintf("the line is metered, and %d bytes are more than the %d that are fetched over it: %s", it.Length, set.MeteredMax, waits), false
}

func (a *Agent) isMetered(ctx context.Context) bool {
	yes, err := a.opts.Metered(ctx)
	if err != nil {
		zerolog.Ctx(ctx).Debug().Err(err).Msg("ask whether the line is metered")
	}
	return err == nil && yes
}

// rate is the limit of downloads; 0: none.
func (a *Agent) rate(ctx context.Context) int64 {
	set := a.Settings()
	if set.MeteredRate > 0 && a.isMetered(ctx) {
		return set.MeteredRate
	}
	return set.Rate
}
