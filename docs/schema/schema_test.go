// Package schema_test holds the JSON Schemas beside it to what the parsers in
// Go read and write.
package schema_test

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/patchkeep/patchkeep/repo/delta"
	"github.com/patchkeep/patchkeep/repo/mirrors"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/repo/rollout"
)

// kinds are the documents: how Go reads each, and the struct behind it.
var kinds = map[string]struct {
	parse func([]byte) error
	typ   reflect.Type
}{
	"patch":   {func(b []byte) error { _, err := patch.Parse(b); return err }, reflect.TypeFor[patch.Patch]()},
	"plan":    {func(b []byte) error { _, err := rollout.ParsePlan(b); return err }, reflect.TypeFor[rollout.Plan]()},
	"halts":   {func(b []byte) error { _, err := rollout.ParseHalts(b); return err }, reflect.TypeFor[rollout.Halts]()},
	"change":  {func(b []byte) error { _, err := rollout.ParseChange(b); return err }, reflect.TypeFor[rollout.Change]()},
	"delta":   {func(b []byte) error { _, err := delta.Parse(b); return err }, reflect.TypeFor[delta.Info]()},
	"mirrors": {func(b []byte) error { _, err := mirrors.Parse(b); return err }, reflect.TypeFor[mirrors.List]()},
	"policies": {
		func(b []byte) error { _, err := rollout.ParsePolicies(b); return err }, reflect.TypeFor[rollout.Policies](),
	},
}

func compile(t *testing.T, kind string) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	s, err := c.Compile(kind + ".schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func validate(t *testing.T, s *jsonschema.Schema, doc []byte) error {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(doc))
	if err != nil {
		t.Fatalf("%s: %v", doc, err)
	}
	return s.Validate(v)
}

var (
	day  = time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	sumA = strings.Repeat("a1", 32)
	sumB = strings.Repeat("b2", 32)
)

func must(data []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return data
}

// written are documents as Go writes them: with every field, and with the fewest.
func written() map[string][][]byte {
	full := &patch.Patch{
		Format: 1, ID: "app@2.1~rc1+b2/windows-amd64", Product: "app", Version: "2.1~rc1+b2", Platform: "windows-amd64",
		Title: "App ☂", Description: "<b>", Severity: patch.SeverityCritical, CVEs: []string{"CVE-2026-12345"}, Kind: patch.KindEXE,
		Applies: patch.Applicability{
			OS: []string{"windows"}, Arch: []string{"amd64"}, MinVersion: "1.0", MaxVersion: "2.0",
			Requires: []string{"base>=2.0", "libc"}, Supersedes: []string{"app@2.0"},
		},
		Install:  &patch.Recipe{Argv: []string{"{file}", "/S", "{", "{}", "{A}", "a{root}{product}{{version}-{previous}", ""}, Timeout: 600, Exit: map[string]patch.Outcome{"0": patch.Success, "3010": patch.Reboot, "-1": patch.Retry}},
		Verify:   &patch.Recipe{Argv: []string{`C:\app\app.exe`, "--version"}},
		Rollback: &patch.Recipe{Argv: []string{"undo"}}, Detect: &patch.Recipe{Argv: []string{"detect", "{log}"}},
		OSSignature: &patch.OSSignature{Scheme: patch.Authenticode, Signers: []string{"cn:Example Söhne", "sha256:" + sumA}},
		Released:    day, Links: []string{"https://example.org/notes?x=1#y"},
	}
	plain := &patch.Patch{Format: 1, ID: "p@1/any", Product: "p", Version: "1", Platform: "any", Kind: patch.KindFile, Released: day}
	plan := &rollout.Plan{
		Format: 1, Ring: "servers", MinimumSafe: map[string]string{"app": "2.0"}, Lifts: []string{"h20261123-084512-3fa2b01c"},
		Entries: []rollout.Entry{
			{
				Patch: "patches/app/2.1/windows-amd64/Größe 1 %.exe", SHA256: sumA, Custom: sumB, NotBefore: day,
				Steps:        []rollout.Step{{At: 0, Percent: 1}, {At: 3600, Percent: 1250}, {At: 86400, Percent: rollout.All, Ramp: true}},
				Windows:      []rollout.Window{{Days: []string{"mon", "sun"}, From: "22:00", To: "5:30"}, {From: "00:00", To: "00:00"}},
				MissedWindow: rollout.MissedInstall, Deadline: 86400, Grace: 3600, Paused: true, PausedReason: "wait", PausedSince: day, Change: "CHG-1",
				Expedite: true, ExpediteReason: "exploited",
			},
			{Patch: "patches/p/1/any/f", SHA256: sumB, Custom: sumA, NotBefore: day},
		},
	}
	plan.Holds = []rollout.Hold{{Patch: "patches/p/2/any/f", Since: day, Reason: "not before the fair"}}
	policies := &rollout.Policies{Format: 1, Policies: []rollout.Policy{
		{
			Ring: "servers", AuthorMayNotApprove: true, ChangeRequired: true, RollbackPlanRequired: true, EvidenceRequired: true,
			FailureBudget: "2.5%", Steps: "10%@0h,50%@24h..100%@3d", After: "users", Soak: 86400,
		},
		{Ring: "users"},
	}}
	halts := &rollout.Halts{Format: 1, Halts: []rollout.Halt{
		{ID: "h1", SHA256: sumA, Since: day, Reason: "crash", By: "anna"},
		{ID: "h2", Product: "app", Since: day},
		{ID: "h3", All: true, Since: day},
	}}
	change := &rollout.Change{
		Format: 1, ID: "CHG-1", Ring: "servers", What: "w", Why: "y", Risk: "low", Assessment: "a", PlannedFrom: day, PlannedTo: day,
		Preparation: "p", TestEvidence: []rollout.Evidence{{Name: "log", SHA256: sumB, Note: "n"}}, Installation: "i",
		RollbackPlan: "r", Verification: "v", Author: "anna", Patches: map[string]string{"patches/app/2.1/windows-amd64/setup.exe": sumA},
	}
	list := &mirrors.List{Format: 1, Mirrors: []mirrors.Mirror{
		{
			URL: "https://mirror.example.org:8443/a%20b", Networks: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParsePrefix("2001:db8::/32")},
			Region: "eu", Weight: 3, Origin: true,
		},
		{URL: "http://[2001:db8::1]"},
	}}
	info := &delta.Info{Format: 1, From: "2.0", BaseSHA256: sumA, BaseLength: 1 << 30, SHA256: sumB, Length: 1, Memory: delta.Memory}
	bare := func(p *patch.Patch) []byte { // custom without its wrapper
		var c struct{ Patchkeep json.RawMessage }
		if err := json.Unmarshal(must(p.ToCustom()), &c); err != nil {
			panic(err)
		}
		return c.Patchkeep
	}
	bareDelta := func(i *delta.Info) []byte {
		var c struct {
			Delta json.RawMessage `json:"patchkeep-delta"`
		}
		if err := json.Unmarshal(must(i.ToCustom()), &c); err != nil {
			panic(err)
		}
		return c.Delta
	}
	return map[string][][]byte{
		"delta":    {bareDelta(info)},
		"patch":    {bare(full), bare(plain)},
		"plan":     {must(plan.Encode()), must((&rollout.Plan{Format: 1, Ring: "users"}).Encode())},
		"halts":    {must(halts.Encode()), must((&rollout.Halts{Format: 1}).Encode())},
		"mirrors":  {must(list.Encode()), must((&mirrors.List{Format: 1}).Encode())},
		"change":   {must(change.Encode()), must((&rollout.Change{Format: 1, ID: "c", Ring: "r", Patches: map[string]string{"patches/p/1/any/f": sumB}}).Encode())},
		"policies": {must(policies.Encode()), must((&rollout.Policies{Format: 1}).Encode())},
	}
}

func TestWhatGoWritesIsValid(t *testing.T) {
	for kind, docs := range written() {
		s := compile(t, kind)
		for _, doc := range docs {
			if err := validate(t, s, doc); err != nil {
				t.Errorf("%s: %s: %v", kind, doc, err)
			}
			newer := append([]byte(`{"of_a_newer_version":{"x":1},`), doc[1:]...)
			if err := validate(t, s, newer); err != nil {
				t.Errorf("%s with an unknown field: %v", kind, err)
			}
		}
	}
}

// A mutation sets the value at a path in the first document of its kind.
type mutation struct {
	path  string // parts separated by "/", array indices among them
	value any
}

type drop struct{} // removes the field

// TestGoAndSchemaAgree changes one thing at a time in a document that is right:
// Go and the schema must say the same of the result.
func TestGoAndSchemaAgree(t *testing.T) {
	long := strings.Repeat("x", 65)
	good := map[string][]mutation{
		"patch": {
			{"title", drop{}},
			{"severity", ""},
			{"applies", drop{}},
			{"install/timeout", 86400},
			{"install/argv/1", "a\nb{x"},
			{"applies/min_version", ""},
			{"links/0", "HTTP://h"},
			{"released", "2026-11-23T08:00:00.5+01:00"},
			{"kind", "msi"},
			{"os_signature", drop{}},
			{"os_signature/signers/0", "cn:x"},
		},
		"plan": {
			{"entries", drop{}},
			{"entries/0/change", ""},
			{"entries/0/windows/0/from", "7:05"},
			{"entries/0/steps", []any{}},
			{"entries/0/steps/0", map[string]any{}},
			{"entries/0/missed_window", ""},
			{"entries/0/missed_window", "wait"},
			{"entries/0/deadline", 316224000},
			{"ring", long[:64]},
			{"entries/1/patch", "patches/p/1/any/a.blocks.b"},
			{"entries/1/patch", "patches/p/1/any/ä b"},
			{"entries/1/patch", "patches/p/1/any/a.delta"},
		},
		"delta": {{"length", 1 << 30}, {"memory", 1}, {"from", "1.0~rc1+b2"}},
		"halts": {{"halts", drop{}}, {"halts/0/reason", drop{}}, {"halts/0/product", ""}, {"halts/0/all", false}},
		"mirrors": {
			{"mirrors", drop{}},
			{"mirrors/0/networks", drop{}},
			{"mirrors/0/region", ""},
			{"mirrors/0/weight", 0},
			{"mirrors/0/weight", 1000},
			{"mirrors/0/url", "http://10.1.2.3"},
			{"mirrors/0/url", "https://h/a-b_c~d"},
			{"mirrors/0/networks/0", "0.0.0.0/0"},
			{"mirrors/0/networks/0", "::/0"},
			{"mirrors/0/networks/0", "2001:db8:1::/48"},
		},
		"policies": {
			{"policies", drop{}},
			{"policies/0/failure_budget", "100%"},
			{"policies/0/failure_budget", ""},
			{"policies/0/steps", ""},
			{"policies/0/after", ""},
			{"policies/0/soak", drop{}},
		},
		"change": {{"what", drop{}}, {"risk", "any word"}, {"planned_from", drop{}}, {"test_evidence/0/name", drop{}}},
	}
	bad := map[string][]mutation{
		"patch": {
			{"format", 2},
			{"format", "1"},
			{"format", drop{}},
			{"id", "app@2.1"},
			{"id", drop{}},
			{"product", "../x"},
			{"product", drop{}},
			{"version", "1."},
			{"version", long},
			{"platform", ""},
			{"kind", "floppy"},
			{"kind", drop{}},
			{"severity", "bad"},
			{"title", strings.Repeat("x", 4097)},
			{"title", 1},
			{"cves/0", "CVE-1"},
			{"cves/0", "x CVE-2026-12345"},
			{"cves", slices.Repeat([]any{"CVE-2026-12345"}, 257)},
			{"links/0", "javascript:alert(1)"},
			{"links/0", "https://"},
			{"links/0", "https:///x"},
			{"released", drop{}},
			{"released", "yesterday"},
			{"released", "2026-11-23 08:00:00Z"},
			{"released", "0001-01-01T00:00:00Z"},
			{"released", "2026-02-30T08:00:00Z"},
			{"applies", "linux"},
			{"applies/os/0", "Linux "},
			{"applies/min_version", "1 0"},
			{"applies/requires/0", "a b"},
			{"applies/requires/0", "a>=1>=2"},
			{"applies/requires/0", ">=1"},
			{"applies/supersedes/0", "hello"},
			{"kind", "file"},
			{"os_signature/scheme", "rpm"},
			{"os_signature/scheme", "pgp"},
			{"os_signature/scheme", drop{}},
			{"os_signature/signers", drop{}},
			{"os_signature/signers", []any{}},
			{"os_signature/signers", slices.Repeat([]any{"cn:x"}, 17)},
			{"os_signature/signers/0", "Example"},
			{"os_signature/signers/0", "cn:"},
			{"os_signature/signers/0", "cn:a\nb"},
			{"os_signature/signers/0", "sha256:" + strings.ToUpper(sumA)},
			{"os_signature", map[string]any{"scheme": "rpm", "signers": []any{strings.Repeat("A", 40)}}},
			{"os_signature", map[string]any{"scheme": "pkg", "signers": []any{"ABCDE12345"}}},
			{"install", drop{}},
			{"install/argv", []any{}},
			{"install/argv", drop{}},
			{"install/argv/0", ""},
			{"install/argv", "dpkg -i"},
			{"install/argv/1", "a\x00b"},
			{"install/argv/1", "{password}"},
			{"install/argv/1", "{{file}{files}"},
			{"install/argv/1", "{x}"},
			{"install/argv/1", strings.Repeat("x", 8193)},
			{"install/argv", slices.Repeat([]any{"x"}, 129)},
			{"install/timeout", -1},
			{"install/timeout", 86401},
			{"install/timeout", 1.5},
			{"install/exit/01", "success"},
			{"install/exit/-0", "success"},
			{"install/exit/7", "great"},
			{"verify/argv/0", "{nothing}"},
		},
		"plan": {
			{"format", 2},
			{"ring", ".."},
			{"ring", drop{}},
			{"entries", map[string]any{}},
			{"entries/0/patch", "rings/users/plan.json"},
			{"entries/0/patch", drop{}},
			{"entries/0/patch", "patches/p/1/any/../f"},
			{"entries/0/patch", "patches/p/1/any/.f"},
			{"entries/0/patch", "patches/p/1/any/f."},
			{"entries/0/patch", "patches/p/1/any/ "},
			{"entries/0/patch", "patches/p/1/any/f "},
			{"entries/0/patch", "patches/p/1/any/f.blocks"},
			{"entries/0/patch", "patches/p/1/any/f.from-0123456789abcdef.delta"},
			{"entries/0/patch", `patches/p/1/any/a\b`},
			{"entries/0/patch", "patches/p/1/any/a\tb"},
			{"entries/0/patch", "patches/p/1/any/a\u0085b"},
			{"entries/0/patch", "patches/p/1/any/a\u202eb"},
			{"entries/0/patch", "patches/p/1/any/\u061c"},
			{"entries/0/patch", "patches/p/1/any/" + strings.Repeat("x", 181)},
			{"entries/0/patch", "patches/p/1/f"},
			{"entries/0/sha256", "xyz"},
			{"entries/0/sha256", strings.ToUpper(sumA)},
			{"entries/0/sha256", sumA + "00"},
			{"entries/0/sha256", drop{}},
			{"entries/0/custom_sha256", "xyz"},
			{"entries/0/custom_sha256", ""},
			{"entries/0/custom_sha256", drop{}},
			{"entries/0/not_before", drop{}},
			{"entries/0/not_before", "0001-01-01T00:00:00Z"},
			{"entries/0/steps/0/percent", 101},
			{"entries/0/steps/0/percent", -1},
			{"entries/0/steps/0/percent", 0.001},
			{"entries/0/steps/0/at", -1},
			{"entries/0/steps/0/at", 316224001},
			{"entries/0/steps/0/at", 1.5},
			{"entries/0/steps/0/ramp", 1},
			{"entries/0/paused_since", "now"},
			{"entries/0/expedite", "yes"},
			{"entries/0/expedite_reason", strings.Repeat("x", 4097)},
			{"holds/0/patch", "x"},
			{"holds/0/since", drop{}},
			{"holds/0/reason", strings.Repeat("x", 4097)},
			{"entries/0/windows/0/from", "24:00"},
			{"entries/0/windows/0/to", "10:60"},
			{"entries/0/windows/0/to", "10:5"},
			{"entries/0/windows/0/from", drop{}},
			{"entries/0/windows/0/days/0", "someday"},
			{"entries/0/windows/0/days", slices.Repeat([]any{"mon"}, 8)},
			{"entries/0/missed_window", "skip"},
			{"entries/0/deadline", -5},
			{"entries/0/grace", 316224001},
			{"entries/0/paused", "yes"},
			{"entries/0/paused_reason", strings.Repeat("x", 4097)},
			{"entries/0/change", "../x"},
			{"entries/0/windows", slices.Repeat([]any{map[string]any{"from": "01:00", "to": "02:00"}}, 33)},
			{"minimum_safe/app", "1 0"},
			{"minimum_safe/..", "1"},
			{"lifts/0", ""},
			{"lifts/0", "a/b"},
		},
		"policies": {
			{"format", 2},
			{"policies/0/ring", drop{}},
			{"policies/0/ring", ".."},
			{"policies/0/failure_budget", "2"},
			{"policies/0/failure_budget", "101%"},
			{"policies/0/failure_budget", "0.001%"},
			{"policies/0/failure_budget", "null%"},
			{"policies/0/steps", strings.Repeat("x", 4097)},
			{"policies/0/after", "a b"},
			{"policies/0/soak", -1},
			{"policies/0/soak", 0.5},
			{"policies/0/change_required", "yes"},
		},
		"delta": {
			{"format", 2},
			{"format", drop{}},
			{"from", ""},
			{"from", "../x"},
			{"from", drop{}},
			{"base_sha256", sumA[:16]},
			{"base_sha256", strings.ToUpper(sumA)},
			{"base_sha256", drop{}},
			{"base_length", 0},
			{"base_length", 1<<30 + 1},
			{"base_length", drop{}},
			{"sha256", "x"},
			{"sha256", drop{}},
			{"length", -1},
			{"length", 1.5},
			{"length", "1"},
			{"length", drop{}},
			{"memory", 0},
			{"memory", 128<<20 + 1},
			{"memory", drop{}},
		},
		"halts": {
			{"format", 0},
			{"halts/0/id", ""},
			{"halts/0/id", drop{}},
			{"halts/0/sha256", drop{}},
			{"halts/0/sha256", "*"},
			{"halts/0/product", "app"},
			{"halts/0/all", true},
			{"halts/1/product", "a b"},
			{"halts/1/sha256", sumA},
			{"halts/2/all", false},
			{"halts/2/product", "app"},
			{"halts/0/since", drop{}},
			{"halts/0/since", "0001-01-01T00:00:00Z"},
			{"halts/0/reason", strings.Repeat("x", 4097)},
			{"halts/0/by", 7},
		},
		"mirrors": {
			{"format", 2},
			{"format", drop{}},
			{"mirrors", map[string]any{}},
			{"mirrors/0/url", drop{}},
			{"mirrors/0/url", ""},
			{"mirrors/0/url", "ftp://h"},
			{"mirrors/0/url", "https://"},
			{"mirrors/0/url", "https://h/"},
			{"mirrors/0/url", "https://H"},
			{"mirrors/0/url", "https://u@h"},
			{"mirrors/0/url", "https://h?x"},
			{"mirrors/0/url", "https://h/a?x"},
			{"mirrors/0/url", "https://h#x"},
			{"mirrors/0/url", "https://h/a#x"},
			{"mirrors/0/url", "https://h//a"},
			{"mirrors/0/url", "https://h/a b"},
			{"mirrors/0/url", `https://h/a\b`},
			{"mirrors/0/url", "https://h:0"},
			{"mirrors/0/url", "https://-h"},
			{"mirrors/0/url", "https://" + strings.Repeat("h.", 253) + "h"},
			{"mirrors/0/networks", slices.Repeat([]any{"10.0.0.0/8"}, 65)},
			{"mirrors/0/networks/0", ""},
			{"mirrors/0/networks/0", "10.0.0.0"},
			{"mirrors/0/networks/0", "10.0.0.0/33"},
			{"mirrors/0/networks/0", "10.0/8"},
			{"mirrors/0/networks/0", "::/129"},
			{"mirrors/0/networks/0", "::ffff:10.0.0.0/104"},
			{"mirrors/0/networks/0", "fe80::%eth0/64"},
			{"mirrors/0/networks/0", 10},
			{"mirrors/0/region", "a b"},
			{"mirrors/0/region", long},
			{"mirrors/0/weight", -1},
			{"mirrors/0/weight", 1001},
			{"mirrors/0/weight", 1.5},
			{"mirrors/0/origin", "yes"},
		},
		"change": {
			{"format", drop{}},
			{"id", "../x"},
			{"id", drop{}},
			{"ring", drop{}},
			{"ring", ""},
			{"patches", drop{}},
			{"patches", map[string]any{}},
			{"patches/x", sumA},
			{"patches", map[string]any{"patches/app/1/any/f": "y"}},
			{"test_evidence/0/sha256", "y"},
			{"test_evidence/0/sha256", drop{}},
			{"planned_to", "soon"},
			{"author", 1},
		},
	}
	docs := written()
	for kind, k := range kinds {
		s := compile(t, kind)
		check := func(m mutation, want bool) {
			doc := mutate(t, docs[kind][0], m)
			goErr, schemaErr := k.parse(doc), validate(t, s, doc)
			if (goErr == nil) != want || (schemaErr == nil) != want {
				t.Errorf("%s: %s = %.80q: Go says %v, the schema says %v; want valid: %t", kind, m.path, fmt.Sprint(m.value), goErr, schemaErr, want)
			}
		}
		for _, m := range good[kind] {
			check(m, true)
		}
		for _, m := range bad[kind] {
			check(m, false)
		}
	}
}

// mutate returns the document with one thing changed.
func mutate(t *testing.T, doc []byte, m mutation) []byte {
	t.Helper()
	var v any
	if err := json.Unmarshal(doc, &v); err != nil {
		t.Fatal(err)
	}
	return must(json.Marshal(set(t, v, strings.Split(m.path, "/"), m.value)))
}

func set(t *testing.T, v any, path []string, value any) any {
	t.Helper()
	if len(path) == 0 {
		return value
	}
	switch v := v.(type) {
	case map[string]any:
		if _, gone := value.(drop); gone && len(path) == 1 {
			delete(v, path[0])
			return v
		}
		v[path[0]] = set(t, v[path[0]], path[1:], value)
		return v
	case []any:
		var i int
		if _, err := fmt.Sscan(path[0], &i); err != nil || i >= len(v) {
			t.Fatalf("%s: no such element", path[0])
		}
		v[i] = set(t, v[i], path[1:], value)
		return v
	}
	t.Fatalf("%v: nothing to change in %T", path, v)
	return nil
}

// TestFieldsAreTheSame compares each struct's json tags with its schema.
func TestFieldsAreTheSame(t *testing.T) {
	for kind, k := range kinds {
		data, err := os.ReadFile(kind + ".schema.json")
		if err != nil {
			t.Fatal(err)
		}
		var doc map[string]any
		if err := json.Unmarshal(data, &doc); err != nil {
			t.Fatal(err)
		}
		if doc["additionalProperties"] != true {
			t.Errorf("%s: unknown fields are kept, and the schema forbids them", kind)
		}
		compare(t, kind, doc, doc, k.typ)
	}
}

func compare(t *testing.T, where string, doc, node map[string]any, typ reflect.Type) {
	t.Helper()
	for {
		ref, ok := node["$ref"].(string)
		if !ok {
			break
		}
		name := strings.TrimPrefix(ref, "#/$defs/")
		if node, ok = doc["$defs"].(map[string]any)[name].(map[string]any); !ok {
			t.Fatalf("%s: %s leads nowhere", where, ref)
		}
	}
	plain := reflect.TypeFor[encoding.TextMarshaler]()
	switch {
	case typ.Kind() == reflect.Pointer:
		compare(t, where, doc, node, typ.Elem())
	case typ.Implements(plain): // a time: a string
	case typ.Kind() == reflect.Slice:
		items, ok := node["items"].(map[string]any)
		if !ok {
			t.Errorf("%s: a list in Go, and the schema has no items", where)
			return
		}
		compare(t, where+"[]", doc, items, typ.Elem())
	case typ.Kind() == reflect.Struct:
		have := make(map[string]reflect.Type)
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			if name != "-" {
				have[name] = typ.Field(i).Type
			}
		}
		props, _ := node["properties"].(map[string]any)
		inGo, inSchema := slices.Sorted(maps.Keys(have)), slices.Sorted(maps.Keys(props))
		if !slices.Equal(inGo, inSchema) {
			t.Errorf("%s: Go has %q, the schema %q", where, inGo, inSchema)
			return
		}
		for name, field := range have {
			compare(t, where+"."+name, doc, props[name].(map[string]any), field)
		}
	}
}
