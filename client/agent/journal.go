package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/patchkeep/patchkeep/client/install"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
)

// Step is how far a patch has come on this machine.
type Step string

// The steps.
const (
	StepOffered       Step = "offered"
	StepFetched       Step = "fetched"
	StepVerified      Step = "verified"
	StepInstalling    Step = "installing"
	StepChecking      Step = "checking"
	StepRollingBack   Step = "rolling-back"
	StepRebootPending Step = "reboot-pending"
	StepCommitted     Step = "committed"
	StepRolledBack    Step = "rolled-back"
	StepFailed        Step = "failed"
	StepRetryLater    Step = "retry-later"
	StepNotApplicable Step = "not-applicable" // the installer says so
)

// Words say what happens to a patch that is at the step.
func (s Step) Words() string {
	switch s {
	case StepInstalling:
		return "being installed"
	case StepChecking:
		return "being checked"
	case StepRollingBack:
		return "being rolled back"
	case StepRebootPending:
		return "waiting for a reboot of this machine"
	}
	return string(s)
}

// What keeps a patch from going round for ever. Beyond each of them it has
// failed, and waits for a person.
const (
	MaxAttempts = 3  // failures by its installer's or its checks' own word
	MaxResumes  = 10 // runs in a row that were cut off while they installed, checked or rolled back
	MaxRetries  = 24 // times in a row that its installer was busy, with waits of up to 4 h between
	MaxReturns  = 3  // installations that were gone again, within a week each
)

// returnsWithin is how soon after it was installed a patch must be gone for it
// to count.
const returnsWithin = 7 * 24 * time.Hour

// Record is the journal of one patch: patches/<key>.json.
type Record struct {
	Path     string        `json:"path"`
	SHA256   string        `json:"sha256"`
	Length   int64         `json:"length"`
	Patch    *patch.Patch  `json:"patch"` // as it was signed when it was offered
	Step     Step          `json:"step"`
	Attempts int           `json:"attempts"`           // that came to an end by themselves
	Resumes  int           `json:"resumes,omitempty"`  // of attempts that were cut off
	Retries  int           `json:"retries,omitempty"`  // in a row that ended with retry-later
	Returned int           `json:"returned,omitempty"` // how often it was gone again soon after it was installed
	Until    time.Time     `json:"until,omitzero"`     // of retry-later: not before
	Begun    time.Time     `json:"begun,omitzero"`     // the last attempt
	Previous string        `json:"previous,omitempty"` // version installed before
	Known    install.Known `json:"known,omitzero"`
	Boot     string        `json:"boot,omitempty"` // during which it was installed
	Why      string        `json:"why,omitempty"`
	Updated  time.Time     `json:"updated"`
}

// recordKey names a patch's record: the SHA-256 of its path and content, as two
// versions may have the same content.
func recordKey(path, sum string) string {
	key := sha256.Sum256([]byte(path + "\x00" + sum))
	return hex.EncodeToString(key[:])
}

func (r *Record) key() string { return recordKey(r.Path, r.SHA256) }

// journal is the directory of records.
type journal struct {
	dir string
	now func() time.Time
}

// atStep is called before and after a step is written; tests kill the
// process there.
var atStep = func(string) {}

// save writes a step down, before it is taken.
func (j *journal) save(r *Record, step Step, why string) error {
	r.Step, r.Why, r.Updated = step, why, j.now().UTC().Truncate(time.Second)
	atStep("before " + string(step))
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(j.dir, r.key()+".json"), r); err != nil {
		return fmt.Errorf("write journal of %s: %w", r.Patch.ID, err)
	}
	atStep("after " + string(step))
	return nil
}

// load returns the record of a patch, nil if there is none. ErrDamaged if there
// is one that cannot be read.
func (j *journal) load(key string) (*Record, error) {
	var r *Record
	if err := readJSON(filepath.Join(j.dir, key+".json"), &r); err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	if r != nil && (r.Patch == nil || r.key() != key || r.Patch.Check() != nil || !r.Patch.MatchesPath(r.Path)) {
		return nil, fmt.Errorf("read journal: %w: %s.json", ErrDamaged, key)
	}
	return r, nil
}

// all returns all records that can be read, oldest first, and the keys of those
// that are damaged.
func (j *journal) all() (records []*Record, damaged []string, err error) {
	entries, err := os.ReadDir(j.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		key, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !layout.IsSHA256(key) {
			continue
		}
		r, err := j.load(key)
		switch {
		case errors.Is(err, ErrDamaged):
			damaged = append(damaged, key)
		case err != nil:
			return nil, nil, err
		case r != nil:
			records = append(records, r)
		}
	}
	slices.SortStableFunc(records, func(a, b *Record) int { return a.Updated.Compare(b.Updated) })
	return records, damaged, nil
}

func (j *journal) remove(r *Record) error {
	err := os.Remove(filepath.Join(j.dir, r.key()+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// maxRecords is how many records are kept.
const maxRecords = 500

// prune forgets the oldest records of patches that are through.
func (j *journal) prune() error {
	all, _, err := j.all()
	if err != nil {
		return err
	}
	over := len(all) - maxRecords
	for _, r := range all {
		if over > 0 && r.final() {
			over--
			if err := j.remove(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// lost reports whether a record of the patch was damaged and set aside, and none
// was begun since: nobody knows what an earlier run came to.
func (j *journal) lost(key string) bool {
	path := filepath.Join(j.dir, key+".json")
	return isThere(path+damagedSuffix) && !isThere(path)
}

// found forgets that a record was damaged: it is known again how things stand.
func (j *journal) found(key string) error {
	err := os.Remove(filepath.Join(j.dir, key+".json"+damagedSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// returned is how often the patch of a committed record was gone again, should
// it be found gone now.
func (r *Record) returned(now time.Time) int {
	if now.Sub(r.Updated) > returnsWithin {
		return 0
	}
	return r.Returned + 1
}

// busyWait is how long a patch waits whose installer was busy: not at all after
// the first time, then from a quarter of an hour on twice as long each time.
func busyWait(retries int) time.Duration {
	if retries <= 1 {
		return 0
	}
	return min(15*time.Minute<<min(retries-2, 8), 4*time.Hour)
}

// final reports whether nothing is under way.
func (r *Record) final() bool {
	switch r.Step {
	case StepCommitted, StepRolledBack, StepFailed, StepNotApplicable, StepRetryLater, StepOffered, StepFetched, StepVerified:
		return true
	}
	return false
}
