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

// MaxAttempts is how often a patch is tried before it waits for a person.
const MaxAttempts = 3

// Record is the journal of one patch: patches/<key>.json.
type Record struct {
	Path     string        `json:"path"`
	SHA256   string        `json:"sha256"`
	Length   int64         `json:"length"`
	Patch    *patch.Patch  `json:"patch"` // as it was signed when it was offered
	Step     Step          `json:"step"`
	Attempts int           `json:"attempts"`
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

// load returns the record of a patch, nil if there is none.
func (j *journal) load(key string) (*Record, error) {
	var r *Record
	if err := readJSON(filepath.Join(j.dir, key+".json"), &r); err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	if r != nil && (r.Patch == nil || r.key() != key || r.Patch.Check() != nil || !r.Patch.MatchesPath(r.Path)) {
		return nil, fmt.Errorf("read journal: %s.json is damaged", key)
	}
	return r, nil
}

// all returns all records, oldest first.
func (j *journal) all() ([]*Record, error) {
	entries, err := os.ReadDir(j.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []*Record
	for _, e := range entries {
		key, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !layout.IsSHA256(key) {
			continue
		}
		r, err := j.load(key)
		if err != nil {
			return nil, err
		}
		if r != nil {
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b *Record) int { return a.Updated.Compare(b.Updated) })
	return out, nil
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
	all, err := j.all()
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

// final reports whether nothing is under way.
func (r *Record) final() bool {
	switch r.Step {
	case StepCommitted, StepRolledBack, StepFailed, StepNotApplicable, StepRetryLater, StepOffered, StepFetched, StepVerified:
		return true
	}
	return false
}
