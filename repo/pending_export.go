package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/repo/internal/document"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/store"
)

// Bounds on a file that carries a change to a machine without network, or
// signatures back.
const (
	MaxBundle        = 128 << 20 // bytes of the file
	maxBundleContent = 90 << 20  // bytes of all objects in it
	maxBundleObjects = 20_000
)

// Kinds of bundles.
const (
	bundleChange     = "patchkeep change"
	bundleSignatures = "patchkeep signatures"
)

// Bundle is a change as a file carries it: the objects of the store that it
// takes to verify what is published from the root on, to read what the change
// does, and to sign it. Or it carries signatures only.
type Bundle struct {
	Format  int               `json:"format"`
	Kind    string            `json:"kind"`
	ID      string            `json:"id"` // of the change
	Objects map[string][]byte `json:"objects"`
}

// ReadBundle reads and checks a bundle. What its objects say is believed by
// nobody yet.
func ReadBundle(r io.Reader) (*Bundle, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxBundle+1))
	if err != nil {
		return nil, err
	}
	var b Bundle
	if _, err := document.Decode(data, MaxBundle, &b); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadPending, err)
	}
	if err := b.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadPending, err)
	}
	return &b, nil
}

func (b *Bundle) check() error {
	switch {
	case b.Kind != bundleChange && b.Kind != bundleSignatures:
		return errors.New("it is neither a change nor signatures that patchkeep wrote")
	case b.Format != pendingFormat:
		return fmt.Errorf("format %d is not known to this version (it knows %d)", b.Format, pendingFormat)
	case len(b.Objects) > maxBundleObjects:
		return fmt.Errorf("it has %d objects, at most %d are allowed", len(b.Objects), maxBundleObjects)
	}
	if err := layout.CheckPendingID(b.ID); err != nil {
		return err
	}
	size := 0
	for name, data := range b.Objects {
		size += len(data)
		if err := b.checkName(name); err != nil {
			return err
		}
	}
	if size > maxBundleContent {
		return fmt.Errorf("it has %d bytes of objects, at most %d are allowed", size, maxBundleContent)
	}
	return nil
}

func (b *Bundle) checkName(name string) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	dir, rest, _ := strings.Cut(name, "/")
	ok := false
	switch dir {
	case layout.MetadataDir:
		_, _, ok = layout.ParseMetadataFile(rest)
	case layout.TargetsDir:
		_, _, ok = layout.ParseTargetFile(rest)
	case layout.PendingDir:
		ok = strings.HasPrefix(name, layout.PendingPrefix(b.ID))
	}
	if b.Kind == bundleSignatures {
		id, _, _, isSignature := layout.ParsePendingSignature(name)
		ok = isSignature && id == b.ID
	}
	if !ok {
		return fmt.Errorf("object %q does not belong to it", clean(name))
	}
	return nil
}

// WriteTo writes the bundle as a file.
func (b *Bundle) WriteTo(w io.Writer) (int64, error) {
	if err := b.check(); err != nil {
		return 0, fmt.Errorf("write change %s: %w", b.ID, err)
	}
	data, err := json.Marshal(b)
	if err != nil {
		return 0, err
	}
	n, err := w.Write(append(data, '\n'))
	return int64(n), err
}

// ExportPending makes a bundle of a waiting change. A change that can be signed
// no more is refused, see Pending.Open.
func (r *Repository) ExportPending(ctx context.Context, id string) (*Bundle, error) {
	// Whatever it takes to read the change here, it takes there.
	rec := &recorder{Store: r.store, objects: make(map[string][]byte)}
	watched := *r
	watched.store = rec
	p, err := watched.Pending(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := p.Open(); err != nil {
		return nil, err
	}
	return &Bundle{Format: pendingFormat, Kind: bundleChange, ID: id, Objects: rec.objects}, nil
}

// recorder keeps what is read.
type recorder struct {
	store.Store
	mu      sync.Mutex // guards objects and size
	objects map[string][]byte
	size    int
}

func (r *recorder) Open(ctx context.Context, name string, offset int64) (io.ReadCloser, store.Info, error) {
	rc, info, err := r.Store.Open(ctx, name, 0)
	if err != nil {
		return nil, info, err
	}
	data, err := readAll(rc)
	if err != nil {
		return nil, info, fmt.Errorf("read %s: %w", name, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.size += len(data) - len(r.objects[name])
	if r.size > maxBundleContent {
		return nil, info, fmt.Errorf("export: what has to go along is larger than %d bytes", maxBundleContent)
	}
	r.objects[name] = data
	return io.NopCloser(bytes.NewReader(data[min(offset, int64(len(data))):])), info, nil
}

// Makes reports whether the bundle can be read without a pinned root: it brings
// nothing that was published, so that all it can hold is a new repository.
func (b *Bundle) Makes() bool {
	for name := range b.Objects {
		if strings.HasPrefix(name, layout.MetadataDir+"/") {
			return false
		}
	}
	return b.Kind == bundleChange
}

// OpenBundle is the repository as a bundle shows it, to read and sign its change
// on a machine without network. cfg.Root must be pinned, unless the bundle makes
// a new repository: all else in it is verified from there on, and nothing else is.
func OpenBundle(b *Bundle, cfg Config) (*Repository, error) {
	if b.Kind != bundleChange {
		return nil, fmt.Errorf("%w: it holds signatures, and no change", ErrBadPending)
	}
	if len(cfg.Root) == 0 && !b.Makes() {
		return nil, errors.New("a change from a file is verified from a pinned root on, and none was given")
	}
	return Open(&bundleStore{objects: maps.Clone(b.Objects), id: b.ID}, cfg), nil
}

// Signatures is a bundle of the signatures that r, which OpenBundle has made,
// has added.
func (r *Repository) Signatures() *Bundle {
	b := &Bundle{Format: pendingFormat, Kind: bundleSignatures, Objects: make(map[string][]byte)}
	if s, ok := r.store.(*bundleStore); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		b.ID = s.id
		maps.Copy(b.Objects, s.added)
	}
	return b
}

// bundleStore is a store in memory that can be read and added to.
type bundleStore struct {
	id      string
	mu      sync.Mutex // guards what follows
	objects map[string][]byte
	added   map[string][]byte
}

var errBundle = errors.New("a file that carries a change can only be read and signed")

func (s *bundleStore) Open(_ context.Context, name string, offset int64) (io.ReadCloser, store.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.objects[name]
	if !ok {
		return nil, store.Info{}, fmt.Errorf("%s: %w in the file", name, fs.ErrNotExist)
	}
	return io.NopCloser(bytes.NewReader(data[min(offset, int64(len(data))):])), store.Info{Name: name, Size: int64(len(data))}, nil
}

func (s *bundleStore) Stat(ctx context.Context, name string) (store.Info, error) {
	_, info, err := s.Open(ctx, name, 0)
	return info, err
}

func (s *bundleStore) List(_ context.Context, prefix string, fn func(store.Info) error) error {
	s.mu.Lock()
	names := slices.Sorted(maps.Keys(s.objects))
	s.mu.Unlock()
	for _, name := range names {
		if strings.HasPrefix(name, prefix) {
			if err := fn(store.Info{Name: name}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *bundleStore) Create(_ context.Context, name string, r io.Reader, size int64, _ store.Options) (store.Info, error) {
	if id, _, _, ok := layout.ParsePendingSignature(name); !ok || id != s.id {
		return store.Info{}, errBundle
	}
	data, err := io.ReadAll(io.LimitReader(r, maxSignatureFile+1))
	if err == nil && (int64(len(data)) != size || size > maxSignatureFile) {
		err = fmt.Errorf("%d bytes instead of %d", len(data), size)
	}
	if err != nil {
		return store.Info{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.objects[name]; ok {
		return store.Info{}, store.ErrConflict
	}
	if s.added == nil {
		s.added = make(map[string][]byte)
	}
	s.objects[name], s.added[name] = data, data
	return store.Info{Name: name, Size: size}, nil
}

func (s *bundleStore) Stage(context.Context, io.Reader, int64, store.Options) (store.Staged, error) {
	return nil, errBundle
}

func (s *bundleStore) Replace(context.Context, string, []byte, string, store.Options) (store.Info, error) {
	return store.Info{}, errBundle
}
func (s *bundleStore) Delete(context.Context, string) error { return errBundle }
func (s *bundleStore) Probe(context.Context) error          { return errBundle }
func (s *bundleStore) String() string                       { return "the file" }

// Imported is what ImportPending did, or would do.
type Imported struct {
	Change *Pending           `json:"change"`
	Whole  bool               `json:"whole"` // the change itself was not there yet
	Added  []PendingSignature `json:"added"`
	Known  []PendingSignature `json:"known"` // were there already
	DryRun bool               `json:"dry_run,omitempty"`
}

// ImportPending brings a bundle's signatures to its change in the store, and the
// change itself if it is not there. All of it is verified before anything is
// written, against what is published in the store and not by what the bundle
// says: one signature that does not count, and the bundle is refused
// (ErrNotTrusted). If it brings nothing new, that is ErrExists.
func (r *Repository) ImportPending(ctx context.Context, b *Bundle, dryRun bool) (*Imported, error) {
	base, err := r.loadAny(ctx)
	if err != nil {
		return nil, err
	}
	result := &Imported{Added: []PendingSignature{}, Known: []PendingSignature{}, DryRun: dryRun}
	from := r
	if _, err := r.store.Stat(ctx, layout.PendingChange(b.ID)); errors.Is(err, fs.ErrNotExist) {
		if b.Kind != bundleChange {
			return nil, fmt.Errorf("change %s, which the file has signatures for: %w in %s", b.ID, fs.ErrNotExist, r.store)
		}
		result.Whole = true
		both := *r
		both.store = &overlay{r.store, b}
		from = &both
	} else if err != nil {
		return nil, fmt.Errorf("look for change %s: %w", b.ID, err)
	}
	p, err := from.pendingOn(ctx, base, b.ID)
	if err != nil {
		return nil, err
	}
	if err := p.Open(); err != nil {
		return nil, err
	}
	sigs, err := p.bundled(ctx, b, result)
	if err != nil {
		return nil, err
	}
	if len(result.Added) == 0 && !result.Whole {
		return nil, fmt.Errorf("all that the file brings to change %s %w", b.ID, ErrExists)
	}
	if result.Change = p; dryRun {
		return result, nil
	}
	if result.Whole {
		if err := p.writeDocuments(ctx, r, b); err != nil {
			return nil, err
		}
		for _, desc := range p.desc.Roles {
			if err := r.createSame(ctx, layout.PendingRole(p.ID, desc.Role), p.parts[desc.Role].data); err != nil {
				return nil, err
			}
		}
	}
	for _, s := range sigs {
		if err := r.putSignature(ctx, p.ID, s.part, s.sig); err != nil {
			return nil, err
		}
	}
	if result.Whole {
		if err := r.createSame(ctx, layout.PendingChange(p.ID), b.Objects[layout.PendingChange(p.ID)]); err != nil {
			return nil, err
		}
	}
	result.Change, err = r.pendingOn(ctx, base, p.ID)
	return result, err
}

type bundledSignature struct {
	part *pendingPart
	sig  metadata.Signature
}

// bundled verifies the signatures of a bundle, and returns those that are to be
// written.
func (p *Pending) bundled(ctx context.Context, b *Bundle, result *Imported) ([]bundledSignature, error) {
	var sigs []bundledSignature
	for _, name := range slices.Sorted(maps.Keys(b.Objects)) {
		_, role, keyID, ok := layout.ParsePendingSignature(name)
		if !ok {
			continue
		}
		refuse := func(err error) error {
			return fmt.Errorf("%w: signature of key %.8s for role %s: %w", ErrNotTrusted, keyID, role, err)
		}
		part := p.parts[role]
		if part == nil {
			return nil, refuse(errors.New("the change does not edit that role"))
		}
		ids, _, err := p.draft.authority(ctx, role)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(ids, keyID) {
			return nil, refuse(errors.New("it is not one of the role's keys"))
		}
		sig, err := parseSignature(b.Objects[name], keyID)
		if err != nil {
			return nil, refuse(err)
		}
		if err := verifySignature(part.keys[keyID], part.payload, sig); err != nil {
			return nil, refuse(err)
		}
		s := PendingSignature{role, keyID}
		has := slices.ContainsFunc(p.Roles, func(r PendingRole) bool { return r.Role == role && slices.Contains(r.Signed, keyID) })
		if has && !result.Whole {
			result.Known = append(result.Known, s)
			continue
		}
		result.Added = append(result.Added, s)
		sigs = append(sigs, bundledSignature{part, metadata.Signature{KeyID: keyID, Signature: sig}})
	}
	return sigs, nil
}

// writeDocuments brings the content of what a change adds into the store, as
// far as it is not there and the bundle has it.
func (p *Pending) writeDocuments(ctx context.Context, r *Repository, b *Bundle) error {
	for _, st := range p.Roles {
		for _, t := range st.Targets {
			if t.Action == "remove" {
				continue
			}
			object := layout.TargetObject(t.Path, t.SHA256)
			if _, err := r.store.Stat(ctx, object); err == nil {
				continue
			} else if !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("look for %s: %w", object, err)
			}
			data, ok := b.Objects[object]
			if !ok {
				return fmt.Errorf("%w: the content of %s is neither in the store nor in the file: add the patch where the file is", ErrBadPending, t.Path)
			}
			if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != t.SHA256 || int64(len(data)) != t.Length {
				return fmt.Errorf("%w: the content of %s in the file is not what is to be signed", ErrBadPending, t.Path)
			}
			if err := r.createSame(ctx, object, data); err != nil {
				return err
			}
		}
	}
	return nil
}

// overlay is a store with the change of a bundle in it. What is published is
// read from the store alone; documents are known by their hashes.
type overlay struct {
	store.Store
	bundle *Bundle
}

func (o *overlay) Open(ctx context.Context, name string, offset int64) (io.ReadCloser, store.Info, error) {
	data, ok := o.bundle.Objects[name]
	if !strings.HasPrefix(name, layout.PendingPrefix(o.bundle.ID)) {
		rc, info, err := o.Store.Open(ctx, name, offset)
		if !errors.Is(err, fs.ErrNotExist) || !ok || !strings.HasPrefix(name, layout.TargetsDir+"/") {
			return rc, info, err
		}
	}
	if !ok {
		return nil, store.Info{}, fmt.Errorf("%s: %w in the file", name, fs.ErrNotExist)
	}
	return io.NopCloser(bytes.NewReader(data[min(offset, int64(len(data))):])), store.Info{Name: name, Size: int64(len(data))}, nil
}
