package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// damagedSuffix is what a damaged file's name gets when it is set aside.
const damagedSuffix = ".damaged"

// Damage is a file of the state that could not be read, after a power cut, say.
type Damage struct {
	File string `json:"file"` // where it lies
	Why  string `json:"why"`  // what follows from it, and what to do
}

// heal looks at each file of the state before it is worked on. What can be done
// without is set aside, so that a power cut does not stop the agent for ever.
// Without the enrolment and the halts nothing is installed: see Open and
// readHalts.
func (s *session) heal(ctx context.Context) error {
	_, lost, err := s.journal.all()
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	for _, key := range lost {
		if err := setAside(ctx, filepath.Join(s.journal.dir, key+".json")); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		name string
		into any
	}{
		{seenFile, new(map[string]time.Time)},
		{reportFile, new(Report)},
		{looksFile, new([]int64)},
		{rebootsFile, new([]Reboot)},
		{historyFile, new([]Event)},
		{installedFile, new(map[string]install.Known)},
	} {
		err := readJSON(s.path(f.name), f.into)
		if err == nil {
			continue
		}
		if !errors.Is(err, ErrDamaged) {
			return err
		}
		if err := setAside(ctx, s.path(f.name)); err != nil {
			return err
		}
		if f.name == installedFile {
			if err := s.recallInstalled(); err != nil {
				return err
			}
		}
	}
	return s.healHalts(ctx)
}

func setAside(ctx context.Context, path string) error {
	zerolog.Ctx(ctx).Warn().Str("file", path).Msg("a state file is damaged, and set aside")
	if err := os.Rename(path, path+damagedSuffix); err != nil {
		return fmt.Errorf("set damaged file aside: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

// recallInstalled makes the record of what is installed anew, of what the
// journals hold.
func (s *session) recallInstalled() error {
	records, _, err := s.journal.all()
	if err != nil {
		return err
	}
	known := make(map[string]install.Known)
	for _, r := range records { // oldest first
		if r.Step == StepCommitted {
			known[r.Patch.Product] = r.Known
		}
	}
	return writeJSON(s.path(installedFile), known)
}

// damaged lists the files that are damaged or were set aside, until somebody
// removes them.
func (a *Agent) damaged() []Damage {
	out := []Damage{}
	for _, name := range []string{seenFile, looksFile, rebootsFile, reportFile, historyFile, installedFile, haltsFile, haltsCopy} {
		path := a.path(name)
		if isThere(path + damagedSuffix) {
			out = append(out, Damage{path + damagedSuffix, aside[name]})
		}
	}
	lost, err := filepath.Glob(a.path("patches", "*.json"+damagedSuffix))
	if err == nil {
		for _, path := range lost {
			if layout.IsSHA256(strings.TrimSuffix(filepath.Base(path), ".json"+damagedSuffix)) {
				out = append(out, Damage{path, aside["patches"]})
			}
		}
	}
	return out
}

const removeIt = " Remove it when you have looked at it."

// aside says what follows from a file that was set aside.
var aside = map[string]string{
	seenFile:      "Deadlines are counted anew from the first look after it." + removeIt,
	looksFile:     "Which windows this machine missed is not known, so none counts as missed." + removeIt,
	rebootsFile:   "Reboots for a patch are counted anew." + removeIt,
	reportFile:    "Nothing: each check writes it anew." + removeIt,
	historyFile:   "What happened before is not in the history any more." + removeIt,
	installedFile: "What was installed was found out again from the journals." + removeIt,
	haltsFile:     "Nothing: there was a copy." + removeIt,
	haltsCopy:     "Nothing: it is the copy." + removeIt,
	"patches":     "How far a patch had come is found out from the machine itself, or waits for a person: see check." + removeIt,
}

// readHalts reads the halts ever seen. They are kept twice: who forgot them
// might install what was stopped. If neither copy can be read, nothing is
// installed until a person has looked.
func (a *Agent) readHalts() ([]rollout.Halt, error) {
	var damage error
	for _, name := range []string{haltsFile, haltsCopy} {
		var halts []rollout.Halt
		err := readJSON(a.path(name), &halts)
		switch {
		case errors.Is(err, ErrDamaged):
			damage = errors.Join(damage, err)
		case err != nil:
			return nil, fmt.Errorf("read halts seen before: %w", err)
		case isThere(a.path(name)):
			return halts, nil
		}
	}
	if damage == nil {
		return nil, nil
	}
	return nil, fmt.Errorf("which patches were ever stopped is not known any more, so nothing is installed: %w; "+
		"compare 'patchkeep halt list' with what should be stopped, then remove %s and %s", damage, a.path(haltsFile), a.path(haltsCopy))
}

// writeHalts replaces both copies, one after the other.
func (a *Agent) writeHalts(halts []rollout.Halt) error {
	for _, name := range []string{haltsFile, haltsCopy} {
		if err := writeJSON(a.path(name), halts); err != nil {
			return fmt.Errorf("keep halts: %w", err)
		}
	}
	return nil
}

// healHalts makes the second copy of what one of them holds.
func (s *session) healHalts(ctx context.Context) error {
	halts, err := s.readHalts()
	if err != nil || !isThere(s.path(haltsFile)) && !isThere(s.path(haltsCopy)) {
		return nil //nolint:nilerr // the check says it
	}
	whole := true
	for _, name := range []string{haltsFile, haltsCopy} {
		err := readJSON(s.path(name), new([]rollout.Halt))
		if errors.Is(err, ErrDamaged) {
			err = setAside(ctx, s.path(name))
		}
		if err != nil {
			return err
		}
		whole = whole && isThere(s.path(name))
	}
	if whole {
		return nil
	}
	return s.writeHalts(halts)
}

func isThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
