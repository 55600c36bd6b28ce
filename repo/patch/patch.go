// Package patch is what a product's release engineers say about a file: what
// it is, where it applies, and how it is installed, verified and rolled back.
// It travels as custom.patchkeep of the patch's TUF target, signed by the
// product's role, and the install recipe is read from nowhere else.
package patch

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"

	"github.com/patchkeep/patchkeep/repo/internal/document"
	"github.com/patchkeep/patchkeep/repo/layout"
)

// Format is the version of the format that this package writes.
const Format = 1

// Bounds on what is read; beyond them a patch is refused.
const (
	MaxSize    = 64 << 10 // bytes of custom.patchkeep
	maxCustom  = 1 << 20  // bytes of custom, others' fields included
	maxText    = 4 << 10  // bytes of a free text
	maxList    = 256      // entries of a list
	maxArgs    = 128      // arguments of a recipe
	maxArg     = 8 << 10  // bytes of an argument
	maxTimeout = 24 * time.Hour
)

// ErrBad is wrapped by every error about a patch that is refused.
var ErrBad = errors.New("bad patch")

// Kind says which installer takes the file.
type Kind string

// The kinds of patches. A file is delivered, not installed; a command is any
// file with an install recipe of its own.
const (
	KindMSI     Kind = "msi"
	KindEXE     Kind = "exe"
	KindDeb     Kind = "deb"
	KindRPM     Kind = "rpm"
	KindPkg     Kind = "pkg"
	KindScript  Kind = "script"
	KindArchive Kind = "archive"
	KindCommand Kind = "command"
	KindFile    Kind = "file"
)

// Kinds lists all kinds.
var Kinds = []Kind{KindMSI, KindEXE, KindDeb, KindRPM, KindPkg, KindScript, KindArchive, KindCommand, KindFile}

// KindOf guesses the kind from a file's name; KindFile if nothing is known.
func KindOf(file string) Kind {
	f := strings.ToLower(file)
	for _, s := range []struct {
		suffix string
		kind   Kind
	}{
		{".msi", KindMSI},
		{".msp", KindMSI},
		{".exe", KindEXE},
		{".deb", KindDeb},
		{".rpm", KindRPM},
		{".pkg", KindPkg},
		{".sh", KindScript},
		{".ps1", KindScript},
		{".tar", KindArchive},
		{".tar.gz", KindArchive},
		{".tgz", KindArchive},
		{".tar.zst", KindArchive},
		{".zip", KindArchive},
	} {
		if strings.HasSuffix(f, s.suffix) {
			return s.kind
		}
	}
	return KindFile
}

// Severity is how much it matters that the patch gets installed.
type Severity string

// The severities, least first.
const (
	SeverityLow       Severity = "low"
	SeverityModerate  Severity = "moderate"
	SeverityImportant Severity = "important"
	SeverityCritical  Severity = "critical"
)

// Severities lists all severities, least first.
var Severities = []Severity{SeverityLow, SeverityModerate, SeverityImportant, SeverityCritical}

// Patch is the custom.patchkeep of a patch target.
type Patch struct {
	Format      int           `json:"format"`
	ID          string        `json:"id"` // <product>@<version>/<platform>
	Product     string        `json:"product"`
	Version     string        `json:"version"`
	Platform    string        `json:"platform"` // "linux-amd64", "any", …
	Title       string        `json:"title,omitempty"`
	Description string        `json:"description,omitempty"`
	Severity    Severity      `json:"severity,omitempty"`
	CVEs        []string      `json:"cves,omitempty"`
	Kind        Kind          `json:"kind"`
	Applies     Applicability `json:"applies,omitzero"`
	Install     *Recipe       `json:"install,omitempty"`      // nil, or without argv: the kind's own way
	Verify      *Recipe       `json:"verify,omitempty"`       // nil: the installer's word is taken
	Rollback    *Recipe       `json:"rollback,omitempty"`     // nil: the kind's own way, if it has one
	Detect      *Recipe       `json:"detect,omitempty"`       // prints the installed version; nil: the kind's own way
	OSSignature *OSSignature  `json:"os_signature,omitempty"` // that the file must bear besides ours; nil: none
	Released    time.Time     `json:"released"`               // UTC, whole seconds
	Links       []string      `json:"links,omitempty"`

	Unknown document.Unknown `json:"-"` // fields of a newer format
}

// Applicability says which machines the patch is for. Zero fields do not
// restrict.
type Applicability struct {
	OS         []string `json:"os,omitempty"`          // GOOS names
	Arch       []string `json:"arch,omitempty"`        // GOARCH names
	MinVersion string   `json:"min_version,omitempty"` // least installed version it can be put on
	MaxVersion string   `json:"max_version,omitempty"` // greatest installed version it can be put on
	Requires   []string `json:"requires,omitempty"`    // "<product>" or "<product>>=<version>": to be installed before
	Supersedes []string `json:"supersedes,omitempty"`  // "<product>@<version>": not needed once this is installed
}

// Recipe is a program to run, never through a shell. In its arguments {file},
// {product}, {version}, {previous}, {root} and {log} stand for the verified file,
// the patch's product and version, the version installed before ("" if none),
// the agent's install root, and a file that the program may write its log to.
type Recipe struct {
	Argv    []string           `json:"argv,omitempty"`
	Timeout int                `json:"timeout,omitempty"` // seconds; 0: the agent's default
	Exit    map[string]Outcome `json:"exit,omitempty"`    // exit code → outcome, over what the kind says; default: 0 is success, the rest failure
}

// Outcome is what an exit code means.
type Outcome string

// The outcomes of a recipe.
const (
	Success       Outcome = "success"
	Reboot        Outcome = "reboot"         // success, once the machine was rebooted
	RebootStarted Outcome = "reboot-started" // the same, and the installer reboots by itself
	Retry         Outcome = "retry"          // busy: try again later
	NotApplicable Outcome = "not-applicable"
	Failure       Outcome = "failure"
)

// Outcomes lists all outcomes.
var Outcomes = []Outcome{Success, Reboot, RebootStarted, Retry, NotApplicable, Failure}

// Placeholders that a recipe's arguments may hold.
var placeholders = []string{"{file}", "{product}", "{version}", "{previous}", "{root}", "{log}"}

// MakeID makes a patch's id.
func MakeID(product, version, platform string) string {
	return product + "@" + version + "/" + platform
}

// ParseRef takes "<product>@<version>" apart.
func ParseRef(s string) (product, version string, err error) {
	product, version, ok := strings.Cut(s, "@")
	if !ok {
		return "", "", fmt.Errorf("%w: %q is not PRODUCT@VERSION", ErrBad, s)
	}
	for _, n := range []string{product, version} {
		if err := layout.CheckName(n); err != nil {
			return "", "", fmt.Errorf("%w: %q is not PRODUCT@VERSION: %w", ErrBad, s, err)
		}
	}
	return product, version, nil
}

// ParseRequirement takes an entry of Requires apart; version is "" if any will
// do.
func ParseRequirement(s string) (product, version string, err error) {
	product, version, ok := strings.Cut(s, ">=")
	if err := layout.CheckName(product); err != nil {
		return "", "", fmt.Errorf("%w: requires %q: %w", ErrBad, s, err)
	}
	if !ok {
		return product, "", nil
	}
	if err := layout.CheckName(version); err != nil {
		return "", "", fmt.Errorf("%w: requires %q: %w", ErrBad, s, err)
	}
	return product, version, nil
}

// SplitPlatform takes a platform apart: "linux-amd64", "windows-any", "any".
// An empty os or arch does not restrict.
func SplitPlatform(platform string) (os, arch string) {
	os, arch, _ = strings.Cut(platform, "-")
	if os == "any" {
		os = ""
	}
	if arch == "any" {
		arch = ""
	}
	return os, arch
}

// Parse reads and checks a custom.patchkeep value.
func Parse(data []byte) (*Patch, error) {
	var p Patch
	unknown, err := document.Decode(data, MaxSize, &p)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBad, err)
	}
	p.Unknown = unknown
	if err := p.Check(); err != nil {
		return nil, err
	}
	return &p, nil
}

// custom is the custom object of a patch target.
type custom struct {
	Patchkeep json.RawMessage `json:"patchkeep"`
}

// FromCustom reads the patch out of a target's custom object. It returns nil
// and no error if the target is not a patch.
func FromCustom(raw json.RawMessage) (*Patch, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	var c custom
	if _, err := document.Decode(raw, maxCustom, &c); err != nil {
		return nil, fmt.Errorf("%w: custom: %w", ErrBad, err)
	}
	if len(c.Patchkeep) == 0 {
		return nil, nil
	}
	return Parse(c.Patchkeep)
}

// ToCustom makes the custom object of a patch target.
func (p *Patch) ToCustom() (json.RawMessage, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	raw, err := document.Encode(p, p.Unknown)
	if err != nil {
		return nil, fmt.Errorf("encode patch: %w", err)
	}
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes of metadata, at most %d are allowed", ErrBad, len(raw), MaxSize)
	}
	return document.Encode(custom{raw}, nil)
}

// Digest is the SHA-256, in lower-case hex, of all that a product says about a
// patch: of custom.patchkeep in canonical JSON, as TUF signs it, so that it is
// the same however the metadata was written. By it a plan approves, with the
// bytes of a patch, its recipes and where it applies.
func Digest(raw json.RawMessage) (string, error) {
	var c custom
	if _, err := document.Decode(raw, maxCustom, &c); err != nil {
		return "", fmt.Errorf("%w: custom: %w", ErrBad, err)
	}
	if _, err := document.Decode(c.Patchkeep, MaxSize, new(Patch)); err != nil {
		return "", fmt.Errorf("%w: custom.patchkeep: %w", ErrBad, err)
	}
	canonical, err := cjson.EncodeCanonical(c.Patchkeep)
	if err != nil {
		return "", fmt.Errorf("%w: custom: %w", ErrBad, err)
	}
	sum := sha256.Sum256(canonical)
	return hex.EncodeToString(sum[:]), nil
}

// MatchesPath reports whether the patch says of itself what its target path
// says, so that metadata of one product cannot speak for another.
func (p *Patch) MatchesPath(targetPath string) bool {
	product, version, platform, _, ok := layout.SplitPatchPath(targetPath)
	return ok && product == p.Product && version == p.Version && platform == p.Platform
}

var (
	cvePattern  = regexp.MustCompile(`^CVE-[0-9]{4}-[0-9]{4,19}$`)
	wordPattern = regexp.MustCompile(`^[a-z0-9]{1,32}$`)
)

// Check reports the first thing that is wrong with the patch.
func (p *Patch) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrBad}, args...)...)
	}
	if p.Format != Format {
		return bad("format %d is not known to this version (it knows %d)", p.Format, Format)
	}
	for _, f := range []struct{ what, s string }{
		{"product", p.Product}, {"version", p.Version}, {"platform", p.Platform},
	} {
		if err := layout.CheckName(f.s); err != nil {
			return bad("%s: %w", f.what, err)
		}
	}
	if p.ID != MakeID(p.Product, p.Version, p.Platform) {
		return bad("id %q does not fit %s", p.ID, MakeID(p.Product, p.Version, p.Platform))
	}
	if len(p.Title) > maxText || len(p.Description) > maxText {
		return bad("title or description is longer than %d bytes", maxText)
	}
	if p.Severity != "" && !slices.Contains(Severities, p.Severity) {
		return bad("severity %q is none of %v", p.Severity, Severities)
	}
	if !slices.Contains(Kinds, p.Kind) {
		return bad("kind %q is none of %v", p.Kind, Kinds)
	}
	if err := p.checkLists(); err != nil {
		return bad("%w", err)
	}
	for what, r := range map[string]*Recipe{"install": p.Install, "verify": p.Verify, "rollback": p.Rollback, "detect": p.Detect} {
		if what == "install" && p.InstallsItself() && r != nil {
			r = &Recipe{Argv: []string{"own"}, Timeout: r.Timeout, Exit: r.Exit}
		}
		if err := r.check(); err != nil {
			return bad("%s: %w", what, err)
		}
	}
	if err := p.OSSignature.check(p.Kind); err != nil {
		return bad("os_signature: %w", err)
	}
	if p.InstallsItself() && (p.Kind == KindCommand || p.Kind == KindEXE) {
		return bad("kind %s needs an install recipe", p.Kind)
	}
	if p.Released.IsZero() {
		return bad("released is missing")
	}
	return nil
}

func (p *Patch) checkLists() error {
	a := p.Applies
	for what, list := range map[string][]string{
		"cves": p.CVEs, "links": p.Links, "os": a.OS, "arch": a.Arch, "requires": a.Requires, "supersedes": a.Supersedes,
	} {
		if len(list) > maxList {
			return fmt.Errorf("%s: more than %d entries", what, maxList)
		}
	}
	for _, c := range p.CVEs {
		if !cvePattern.MatchString(c) {
			return fmt.Errorf("%q is not a CVE number like CVE-2026-12345", c)
		}
	}
	for _, l := range p.Links {
		u, err := url.Parse(l)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || len(l) > maxText {
			return fmt.Errorf("link %q is not an http(s) URL", l)
		}
	}
	for _, w := range slices.Concat(a.OS, a.Arch) {
		if !wordPattern.MatchString(w) {
			return fmt.Errorf("%q is not the name of a system or architecture like linux or amd64", w)
		}
	}
	for _, v := range []string{a.MinVersion, a.MaxVersion} {
		if v != "" && layout.CheckName(v) != nil {
			return fmt.Errorf("%q is not a version", v)
		}
	}
	for _, r := range a.Requires {
		if _, _, err := ParseRequirement(r); err != nil {
			return err
		}
	}
	for _, s := range a.Supersedes {
		if _, _, err := ParseRef(s); err != nil {
			return err
		}
	}
	return nil
}

var placeholderPattern = regexp.MustCompile(`\{[a-z]+\}`)

func (r *Recipe) check() error {
	if r == nil {
		return nil
	}
	if len(r.Argv) == 0 || r.Argv[0] == "" {
		return errors.New("argv is empty")
	}
	if len(r.Argv) > maxArgs {
		return fmt.Errorf("more than %d arguments", maxArgs)
	}
	for _, a := range r.Argv {
		if len(a) > maxArg || strings.ContainsRune(a, 0) {
			return fmt.Errorf("an argument is longer than %d bytes or holds a NUL", maxArg)
		}
		for _, ph := range placeholderPattern.FindAllString(a, -1) {
			if !slices.Contains(placeholders, ph) {
				return fmt.Errorf("%s is not a placeholder (known: %s)", ph, strings.Join(placeholders, " "))
			}
		}
	}
	if r.Timeout < 0 || r.Timeout > int(maxTimeout.Seconds()) {
		return fmt.Errorf("timeout of %d s is not within 0 and %s", r.Timeout, maxTimeout)
	}
	if len(r.Exit) > maxList {
		return fmt.Errorf("more than %d exit codes", maxList)
	}
	for code, o := range r.Exit {
		if !exitPattern.MatchString(code) {
			return fmt.Errorf("%q is not an exit code", code)
		}
		if !slices.Contains(Outcomes, o) {
			return fmt.Errorf("outcome %q is none of %v", o, Outcomes)
		}
	}
	return nil
}

var exitPattern = regexp.MustCompile(`^(0|-?[1-9][0-9]{0,9})$`)

// InstallsItself reports whether the patch is installed in its kind's own way.
// An install recipe without arguments gives that way other exit codes or
// another time-out.
func (p *Patch) InstallsItself() bool { return p.Install == nil || len(p.Install.Argv) == 0 }

// OutcomeOf says what an exit code means to this recipe. Windows has codes of 32
// bits, which people write with a sign or without: both are found.
func (r *Recipe) OutcomeOf(code int) Outcome {
	if o, ok := r.Exit[fmt.Sprint(code)]; ok {
		return o
	}
	if o, ok := r.Exit[fmt.Sprint(int32(uint32(code)))]; ok && int64(code) > math.MaxInt32 && int64(code) <= math.MaxUint32 {
		return o
	}
	if code == 0 {
		return Success
	}
	return Failure
}

// Expand returns the arguments with the placeholders filled in from vals,
// whose names have no braces. What stands in a value is never expanded again.
func (r *Recipe) Expand(vals map[string]string) []string {
	argv := make([]string, len(r.Argv))
	for i, a := range r.Argv {
		argv[i] = placeholderPattern.ReplaceAllStringFunc(a, func(ph string) string {
			if v, ok := vals[ph[1:len(ph)-1]]; ok {
				return v
			}
			return ph
		})
	}
	return argv
}
