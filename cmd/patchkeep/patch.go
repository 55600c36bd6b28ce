package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/patchkeep/patchkeep/cmd/internal/cli"
	"github.com/patchkeep/patchkeep/repo"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
	"github.com/patchkeep/patchkeep/signing"
)

func newPatch(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "patch", Short: "Publish, show and withdraw patches"}
	cmd.AddCommand(newPatchAdd(a), newPatchList(a), newPatchShow(a), newPatchWithdraw(a))
	return cmd
}

// patchAdd is what the flags of patch add say. A flag that is given goes over
// the file of --from.
type patchAdd struct {
	*app
	p                                 patch.Patch
	kind, severity, released          string
	install, verify, rollback, detect string
	exits, signatures                 []string
	timeout                           time.Duration
	from, name                        string
	deltaFrom                         []string
}

func newPatchAdd(a *app) *cobra.Command {
	in := &patchAdd{app: a}
	cmd := &cobra.Command{
		Use:   "add FILE",
		Short: "Publish a patch, signed by its product's release engineers",
		Long: `add publishes a file as one version of a product for one platform. No machine
installs it before a ring approves it: see rollout start. FILE may be "-", which
is stdin; then --name names it.

What it is and how it is installed is said by flags, or by a YAML file with the
same fields (--from, see docs/formats.md); flags go over the file. Recipes are
JSON arrays of arguments, never a shell line; {file}, {product}, {version},
{previous}, {root} and {log} stand for what their names say.

--os-signature demands a signature of the operating system's own kind besides
ours; a machine that cannot check it refuses the patch. SCHEME=SIGNER is
authenticode=cn:COMMON NAME, authenticode=sha256:CERTIFICATE, rpm=FINGERPRINT or
pkg=TEAM; of several signers one is enough.

With --delta-from, machines that have the file of that earlier version fetch what
is new in this one, if that is less than 60 % of it. It works on the bytes of the
files as they are, so publish packages uncompressed: see docs/operations.md. It
takes memory for both files, of at most 1 GiB each, and 200 MiB.`,
		Example: `  patchkeep patch add hello_1.0_amd64.deb --product hello --version 1.0 --platform linux-amd64
  patchkeep patch add setup.exe --product app --version 2.1 --platform windows-amd64 --severity critical --cve CVE-2026-12345 \
      --install '["{file}","/S"]' --exit 3010=reboot --verify '["C:\\app\\app.exe","--version"]'
  patchkeep patch add tool.tar.gz --from tool.yaml --dry-run
  patchkeep patch add hello_1.1_amd64.deb --product hello --version 1.1 --platform linux-amd64 --delta-from 1.0`,
		Args: cobra.ExactArgs(1),
	}
	f := cmd.Flags()
	f.StringVar(&in.p.Product, "product", "", "product")
	f.StringVar(&in.p.Version, "version", "", "version of the product that this installs")
	f.StringVar(&in.p.Platform, "platform", "any", "system and architecture, such as linux-amd64, windows-arm64, linux-any, any")
	f.StringVar(&in.kind, "kind", "", "msi, exe, deb, rpm, pkg, script, archive, command or file (default: by the file's ending)")
	f.StringVar(&in.p.Title, "title", "", "title for people")
	f.StringVar(&in.p.Description, "description", "", "description for people")
	f.StringVar(&in.severity, "severity", "", "low, moderate, important or critical")
	f.StringSliceVar(&in.p.CVEs, "cve", nil, "CVE that it mends; may be repeated")
	f.StringSliceVar(&in.p.Links, "link", nil, "link to release notes and the like; may be repeated")
	f.StringVar(&in.install, "install", "", "install recipe, a JSON array of arguments")
	f.StringVar(&in.verify, "verify", "", "verify recipe: the patch is installed if it says so")
	f.StringVar(&in.rollback, "rollback", "", "rollback recipe")
	f.StringVar(&in.detect, "detect", "", "detect recipe: prints the installed version")
	f.StringArrayVar(&in.exits, "exit", nil, "CODE=OUTCOME of the install recipe: success, reboot, reboot-started, retry, not-applicable, failure; may be repeated")
	f.DurationVar(&in.timeout, "timeout", 0, "how long the install recipe may take")
	f.StringArrayVar(&in.signatures, "os-signature", nil, "SCHEME=SIGNER that the file must bear too, such as authenticode='cn:Example GmbH'; may be repeated")
	f.StringVar(&in.p.Applies.MinVersion, "min-version", "", "least installed version that it can be put on")
	f.StringVar(&in.p.Applies.MaxVersion, "max-version", "", "greatest installed version that it can be put on")
	f.StringSliceVar(&in.p.Applies.Requires, "requires", nil, "PRODUCT or PRODUCT>=VERSION that must be installed before; may be repeated")
	f.StringSliceVar(&in.p.Applies.Supersedes, "supersedes", nil, "PRODUCT@VERSION that is not needed any more; may be repeated")
	f.StringVar(&in.released, "released", "", "release time, RFC 3339 (default: now)")
	f.StringVar(&in.from, "from", "", "YAML file that describes the patch")
	f.StringVar(&in.name, "name", "", "file name to publish under (default: the file's own)")
	f.StringArrayVar(&in.deltaFrom, "delta-from", nil, fmt.Sprintf("earlier version whose machines are to fetch only what is new; may be repeated, %d times at most", repo.MaxDeltas))
	dryRun := dryRunFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return in.run(cmd, args[0], *dryRun) }
	return cmd
}

func (in *patchAdd) run(cmd *cobra.Command, file string, dryRun bool) error {
	ctx := cmd.Context()
	name := in.name
	if name == "" {
		if file == "-" {
			return cli.Usagef("a patch from stdin needs a name: --name FILE")
		}
		name = filepath.Base(file)
	}
	p, err := in.describe(cmd, name)
	if err != nil {
		return &cli.UsageError{Err: err}
	}
	if err := checkDeltaFrom(in.deltaFrom, p.Version); err != nil {
		return &cli.UsageError{Err: err}
	}
	content, size, err := openInput(cmd, file)
	if err != nil {
		return err
	}
	defer content.Close()
	r, ring, err := in.open(ctx)
	if err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		// Buffers for parts come and go: collected early they stay within 40 MB
		// on S3 too, at no measurable cost.
		debug.SetGCPercent(25)
	}
	bar := cli.Progress(cmd, name, size)
	defer bar.Close()
	pub, change, err := r.AddPatch(ctx, p, name, io.TeeReader(content, bar), size, repo.AddOptions{
		DryRun:     dryRun,
		NewProduct: in.newProduct(ctx, cmd, ring, dryRun),
		DeltaFrom:  in.deltaFrom,
		OnDelta: func(from string) {
			bar.Close()
			note(cmd, "making a delta from %s", from)
		},
	})
	bar.Close()
	if err != nil {
		return fmt.Errorf("add patch %s: %w", p.ID, err)
	}
	if strings.ContainsAny(name, "#?%") {
		note(cmd, "some other TUF clients cannot fetch a file with # ? or %% in its name; Patchkeep's own can")
	}
	words := fmt.Sprintf("%s %s for %s, %s", p.Product, p.Version, p.Platform, cli.Bytes(pub.Length))
	for _, d := range pub.Deltas {
		words += "\n  " + deltaWords(d, pub.Length)
	}
	return printChange(cmd, published{Change: *change, Patch: pub}, words,
		fmt.Sprintf("patchkeep rollout start %s@%s --ring RING", p.Product, p.Version))
}

func checkDeltaFrom(versions []string, own string) error {
	if len(versions) > repo.MaxDeltas {
		return fmt.Errorf("--delta-from is given %d times, at most %d are allowed", len(versions), repo.MaxDeltas)
	}
	for i, v := range versions {
		switch {
		case layout.CheckName(v) != nil:
			return fmt.Errorf("--delta-from %q is not a version", v)
		case v == own:
			return fmt.Errorf("--delta-from %s is the version that is added", v)
		case slices.Contains(versions[:i], v):
			return fmt.Errorf("--delta-from %s is given twice", v)
		}
	}
	return nil
}

// deltaWords says what became of a delta.
func deltaWords(d repo.Delta, whole int64) string {
	if d.Skipped != "" {
		return fmt.Sprintf("no delta from %s: %s", d.From, d.Skipped)
	}
	return fmt.Sprintf("delta from %s: %s, %s of the file", d.From, cli.Bytes(d.Length), share(d.Length, whole))
}

func share(part, whole int64) string {
	return strconv.FormatFloat(100*float64(part)/float64(max(whole, 1)), 'f', 1, 64) + " %"
}

// openInput opens the file to publish, which must be a regular one or stdin.
func openInput(cmd *cobra.Command, file string) (io.ReadCloser, int64, error) {
	if file == "-" {
		return io.NopCloser(cmd.InOrStdin()), -1, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && fi.IsDir() {
		err = fmt.Errorf("%s is a directory: pack it first", file)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	if !fi.Mode().IsRegular() {
		return f, -1, nil // a pipe: read to its end
	}
	return f, fi.Size(), nil
}

// newProduct makes the key of a product that is not there yet.
func (in *patchAdd) newProduct(ctx context.Context, cmd *cobra.Command, ring *signing.Keyring, dryRun bool) func(string) (repo.RoleConfig, error) {
	return func(product string) (repo.RoleConfig, error) {
		if dryRun {
			note(cmd, "product %s is new: a key is made for it unless one named %s is at hand", product, layout.ProductRole(product))
			pub, _, err := ed25519.GenerateKey(nil)
			return repo.RoleConfig{Keys: []crypto.PublicKey{pub}}, err
		}
		info, err := findOrMake(ctx, ring, layout.ProductRole(product), signing.Ed25519, len(in.keyRefs) > 0)
		if err != nil {
			return repo.RoleConfig{}, err
		}
		note(cmd, "product %s is new: its patches are signed by key %s (%s)", product, info.Fingerprint(), info.Source)
		return repo.RoleConfig{Keys: []crypto.PublicKey{info.Public}}, nil
	}
}

// describe puts together what the YAML file and the flags say.
func (in *patchAdd) describe(cmd *cobra.Command, name string) (*patch.Patch, error) {
	p := &patch.Patch{}
	if in.from != "" {
		if err := readYAML(in.from, p); err != nil {
			return nil, err
		}
	}
	given := cmd.Flags().Changed
	flag, file := &in.p, p
	for _, f := range []struct {
		name     string
		from, to *string
	}{
		{"product", &flag.Product, &file.Product},
		{"version", &flag.Version, &file.Version},
		{"platform", &flag.Platform, &file.Platform},
		{"title", &flag.Title, &file.Title},
		{"description", &flag.Description, &file.Description},
		{"severity", &in.severity, (*string)(&file.Severity)},
		{"kind", &in.kind, (*string)(&file.Kind)},
		{"min-version", &flag.Applies.MinVersion, &file.Applies.MinVersion},
		{"max-version", &flag.Applies.MaxVersion, &file.Applies.MaxVersion},
	} {
		if given(f.name) || *f.to == "" {
			*f.to = *f.from
		}
	}
	for _, f := range []struct {
		name     string
		from, to *[]string
	}{
		{"cve", &flag.CVEs, &file.CVEs},
		{"link", &flag.Links, &file.Links},
		{"requires", &flag.Applies.Requires, &file.Applies.Requires},
		{"supersedes", &flag.Applies.Supersedes, &file.Applies.Supersedes},
	} {
		if given(f.name) {
			*f.to = *f.from
		}
	}
	if p.Kind == "" {
		p.Kind = patch.KindOf(name)
	}
	if err := in.recipes(p); err != nil {
		return nil, err
	}
	if err := in.signature(p); err != nil {
		return nil, err
	}
	if err := in.times(p); err != nil {
		return nil, err
	}
	for what, s := range map[string]string{"product": p.Product, "version": p.Version} {
		if s == "" {
			return nil, fmt.Errorf("--%s is missing", what)
		}
	}
	p.Format = patch.Format
	p.ID = patch.MakeID(p.Product, p.Version, p.Platform)
	if _, err := layout.PatchPath(p.Product, p.Version, p.Platform, name); err != nil {
		return nil, err
	}
	return p, p.Check()
}

func (in *patchAdd) times(p *patch.Patch) error {
	if in.released != "" {
		t, err := time.Parse(time.RFC3339, in.released)
		if err != nil {
			return fmt.Errorf("--released %q is not a time like 2026-11-23T08:00:00Z", in.released)
		}
		p.Released = t
	}
	if p.Released.IsZero() {
		p.Released = time.Now()
	}
	p.Released = p.Released.UTC().Truncate(time.Second)
	return nil
}

// recipes reads the recipes that flags give.
func (in *patchAdd) recipes(p *patch.Patch) error {
	for _, f := range []struct {
		name, argv string
		to         **patch.Recipe
	}{
		{"install", in.install, &p.Install},
		{"verify", in.verify, &p.Verify},
		{"rollback", in.rollback, &p.Rollback},
		{"detect", in.detect, &p.Detect},
	} {
		if f.argv == "" {
			continue
		}
		var argv []string
		if err := json.Unmarshal([]byte(f.argv), &argv); err != nil || len(argv) == 0 {
			return fmt.Errorf(`--%s %s is not a JSON array of arguments like '["dpkg","-i","{file}"]'`, f.name, f.argv)
		}
		*f.to = &patch.Recipe{Argv: argv}
	}
	if p.Install == nil && (len(in.exits) > 0 || in.timeout != 0) {
		p.Install = &patch.Recipe{} // the kind's own way, with these
	}
	for _, e := range in.exits {
		code, outcome, ok := strings.Cut(e, "=")
		if !ok {
			return fmt.Errorf("--exit %q is not CODE=OUTCOME like 3010=reboot", e)
		}
		if p.Install.Exit == nil {
			p.Install.Exit = map[string]patch.Outcome{"0": patch.Success}
		}
		p.Install.Exit[code] = patch.Outcome(outcome)
	}
	if in.timeout != 0 {
		p.Install.Timeout = int(in.timeout.Round(time.Second).Seconds())
	}
	return nil
}

// signature reads the signers that flags give, all of one scheme.
func (in *patchAdd) signature(p *patch.Patch) error {
	if len(in.signatures) == 0 {
		return nil
	}
	p.OSSignature = &patch.OSSignature{}
	for _, s := range in.signatures {
		scheme, signer, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("--os-signature %q is not SCHEME=SIGNER like authenticode=cn:Example", s)
		}
		if p.OSSignature.Scheme != "" && string(p.OSSignature.Scheme) != scheme {
			return fmt.Errorf("--os-signature: %s and %s cannot both be demanded of one file", p.OSSignature.Scheme, scheme)
		}
		p.OSSignature.Scheme = patch.SignatureScheme(scheme)
		p.OSSignature.Signers = append(p.OSSignature.Signers, signer)
	}
	return nil
}

// readYAML reads a document of at most 64 KiB into v by its JSON names. An
// unknown field is an error.
func readYAML(file string, v any) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, patch.MaxSize+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	if len(data) > patch.MaxSize {
		return fmt.Errorf("read %s: larger than %d bytes", file, patch.MaxSize)
	}
	var doc map[string]any
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	raw, err := json.Marshal(textKeys(doc))
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && wrong.Type.Kind() == reflect.String {
			return fmt.Errorf("read %s: %s: a text is wanted here, not a %s: put it in quotes", file, wrong.Field, wrong.Value)
		}
		return fmt.Errorf("read %s: %w", file, err)
	}
	return nil
}

// textKeys makes the keys of maps texts, as JSON has them: YAML has numbers too.
func textKeys(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = textKeys(v[k])
		}
	case map[any]any:
		m := make(map[string]any, len(v))
		for k, e := range v {
			m[fmt.Sprint(k)] = textKeys(e)
		}
		return m
	case []any:
		for i := range v {
			v[i] = textKeys(v[i])
		}
	}
	return v
}

func newPatchList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list [PRODUCT]",
		Short:   "List published patches, and the rings that approve them",
		Example: `  patchkeep patch list hello`,
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, _, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			product := strings.Join(args, "")
			list, err := r.Patches(cmd.Context(), product)
			if err != nil {
				return err
			}
			return cli.Print(cmd, list, func(w io.Writer) error {
				if len(list) == 0 {
					_, err := fmt.Fprintln(w, "No patches are published.")
					return err
				}
				t := cli.Table(w)
				fmt.Fprintln(t, "PRODUCT\tVERSION\tPLATFORM\tKIND\tSEVERITY\tSIZE\tDELTAS\tRINGS\tFILE")
				for _, p := range list {
					var deltas []string
					for _, d := range p.Deltas {
						if d.Skipped == "" {
							deltas = append(deltas, d.From)
						}
					}
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Patch.Product, p.Patch.Version, p.Patch.Platform, p.Patch.Kind,
						orDash(string(p.Patch.Severity)), cli.Bytes(p.Length), orDash(strings.Join(deltas, ",")), orDash(strings.Join(p.Rings, ",")), filepath.Base(p.Path))
				}
				return t.Flush()
			})
		},
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func newPatchShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "show PRODUCT@VERSION",
		Short:   "Show all that is signed about a version",
		Example: `  patchkeep patch show hello@1.0`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			product, version, err := patch.ParseRef(args[0])
			if err != nil {
				return &cli.UsageError{Err: err}
			}
			r, _, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			list, err := r.PatchVersion(cmd.Context(), product, version)
			if err != nil {
				return err
			}
			return cli.Print(cmd, list, func(w io.Writer) error { return showPatches(w, list) })
		},
	}
}

func showPatches(w io.Writer, list []repo.Published) error {
	for i, p := range list {
		if i > 0 {
			fmt.Fprintln(w)
		}
		t := cli.Table(w)
		row := func(name string, value any) {
			if s := fmt.Sprint(value); s != "" && s != "[]" {
				fmt.Fprintf(t, "%s\t%s\n", name, s)
			}
		}
		recipe := func(name string, r *patch.Recipe) {
			if r != nil {
				argv, _ := json.Marshal(r.Argv) // strings always marshal
				row(name, string(argv))
			}
		}
		row("patch", p.Patch.ID)
		row("title", p.Patch.Title)
		row("description", p.Patch.Description)
		row("kind", p.Patch.Kind)
		row("severity", p.Patch.Severity)
		row("cves", strings.Join(p.Patch.CVEs, " "))
		row("released", p.Patch.Released.Format(time.RFC3339))
		row("file", p.Path)
		row("size", fmt.Sprintf("%s (%d bytes)", cli.Bytes(p.Length), p.Length))
		row("sha256", p.SHA256)
		for _, d := range p.Deltas {
			if d.Skipped != "" {
				row("bad delta", d.Path+": "+d.Skipped)
			} else {
				row("delta from "+d.From, fmt.Sprintf("%s (%d bytes, %s of the file)", cli.Bytes(d.Length), d.Length, share(d.Length, p.Length)))
			}
		}
		row("needs at least", p.Patch.Applies.MinVersion)
		row("can be put on", p.Patch.Applies.MaxVersion)
		row("requires", strings.Join(p.Patch.Applies.Requires, " "))
		row("supersedes", strings.Join(p.Patch.Applies.Supersedes, " "))
		recipe("install", p.Patch.Install)
		recipe("verify", p.Patch.Verify)
		recipe("rollback", p.Patch.Rollback)
		recipe("detect", p.Patch.Detect)
		if sig := p.Patch.OSSignature; sig != nil {
			row("os signature", fmt.Sprintf("%s: %s", sig.Scheme, strings.Join(sig.Signers, " or ")))
		}
		row("links", strings.Join(p.Patch.Links, " "))
		rings := strings.Join(p.Rings, " ")
		if rings == "" {
			rings = "none: no machine installs it yet"
		}
		row("approved by rings", rings)
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func newPatchWithdraw(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "withdraw PRODUCT@VERSION",
		Short: "Take back a product's word for a version: no machine installs it any more",
		Long: `withdraw removes a version from what the product vouches for. Machines that have
installed it keep it. To stop a rollout at once, halt add is quicker: any one
halt key is enough.`,
		Example: `  patchkeep patch withdraw hello@1.0`,
		Args:    cobra.ExactArgs(1),
	}
	dryRun := dryRunFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		product, version, err := patch.ParseRef(args[0])
		if err != nil {
			return &cli.UsageError{Err: err}
		}
		r, _, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		change, err := r.WithdrawPatch(cmd.Context(), product, version, *dryRun)
		if err != nil {
			return err
		}
		return printChange(cmd, published{Change: *change}, args[0]+" withdrawn")
	}
	return cmd
}
