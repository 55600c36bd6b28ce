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
	"slices"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/patchkeep/patchkeep/repo/delta"
	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/patch"
)

const (
	// MaxDeltas is how many deltas one patch may have.
	MaxDeltas = 8
	// maxShare is how much of the whole file a delta may have, in percent, to be
	// worth a target of its own and the work of applying it.
	maxShare = 60
)

// Delta is a delta that makes a patch's file out of the one of an earlier
// version.
type Delta struct {
	From       string `json:"from"` // version
	BaseSHA256 string `json:"base_sha256"`
	Path       string `json:"path,omitempty"`
	Length     int64  `json:"length,omitempty"`
	SHA256     string `json:"sha256,omitempty"`
	Blocks     bool   `json:"blocks"` // it has a block list
	// Skipped says why it was not published, or cannot be used.
	Skipped string `json:"skipped,omitempty"`

	custom json.RawMessage
	blocks []byte
}

// deltaBases finds the files of earlier versions, for the same platform, that
// deltas are to be made from. One that is not published is fs.ErrNotExist.
func (r *Repository) deltaBases(ctx context.Context, p *patch.Patch, versions []string) ([]Published, error) {
	if len(versions) == 0 {
		return nil, nil
	}
	if len(versions) > MaxDeltas {
		return nil, fmt.Errorf("deltas from %d versions: at most %d are allowed", len(versions), MaxDeltas)
	}
	base, err := r.load(ctx)
	if err != nil {
		return nil, err
	}
	all, err := r.draftOn(base).published(ctx, p.Product)
	if err != nil {
		return nil, err
	}
	var list []Published
	for _, v := range versions {
		i := slices.IndexFunc(all, func(pub Published) bool { return pub.Patch.Version == v && pub.Patch.Platform == p.Platform })
		if i < 0 {
			return nil, fmt.Errorf("delta from %s: patch %s: %w", v, patch.MakeID(p.Product, v, p.Platform), fs.ErrNotExist)
		}
		object := layout.TargetObject(all[i].Path, all[i].SHA256)
		if _, err := r.store.Stat(ctx, object); err != nil {
			return nil, fmt.Errorf("delta from %s: %w", v, err)
		}
		list = append(list, all[i])
	}
	return list, nil
}

// keeper keeps what is written to it, as far as a delta can be made to it.
type keeper struct {
	buf  bytes.Buffer
	over bool // it was more
}

func newKeeper(size int64) *keeper {
	k := &keeper{}
	if size > 0 && size <= delta.MaxFile {
		k.buf.Grow(int(size))
	}
	return k
}

func (k *keeper) Write(p []byte) (int, error) {
	if k.over = k.over || k.buf.Len()+len(p) > delta.MaxFile; k.over {
		k.buf = bytes.Buffer{}
		return len(p), nil
	}
	return k.buf.Write(p)
}

// makeDeltas makes deltas to the file of pub, which is in memory, and uploads
// those that are worth it.
func (r *Repository) makeDeltas(ctx context.Context, pub *Published, bases []Published, target *keeper, opt AddOptions) error {
	for _, base := range bases {
		if opt.OnDelta != nil {
			opt.OnDelta(base.Patch.Version)
		}
		d := Delta{From: base.Patch.Version, BaseSHA256: base.SHA256}
		var err error
		switch d.Path, err = layout.DeltaPath(pub.Path, base.SHA256); {
		case err != nil:
			d.Skipped = err.Error()
		case target.over || base.Length > delta.MaxFile:
			d.Skipped = fmt.Sprintf("deltas are made between files of at most %d bytes", delta.MaxFile)
		case pub.Length == 0 || base.Length == 0:
			d.Skipped = "an empty file has none"
		case slices.ContainsFunc(pub.Deltas, func(o Delta) bool { return o.BaseSHA256 == d.BaseSHA256 }):
			d.Skipped = "another version has the same file"
		default:
			if err := r.makeDelta(ctx, pub, &base, target.buf.Bytes(), &d, opt.DryRun); err != nil {
				return fmt.Errorf("delta from %s: %w", d.From, err)
			}
		}
		if d.Skipped != "" {
			d.Path = ""
		}
		pub.Deltas = append(pub.Deltas, d)
	}
	return nil
}

func (r *Repository) makeDelta(ctx context.Context, pub, from *Published, target []byte, d *Delta, dryRun bool) error {
	base, err := r.readVerified(ctx, from)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	limit := pub.Length * maxShare / 100
	err = delta.Make(ctx, &out, base, target, limit)
	if errors.Is(err, delta.ErrTooLarge) {
		d.Skipped = fmt.Sprintf("it would have more than %d %% of the %d bytes of the file", maxShare, pub.Length)
		return nil
	}
	if err != nil {
		return err
	}
	// What every machine will do, once before they do.
	sum := sha256.New()
	if _, err := delta.Apply(ctx, sum, bytes.NewReader(base), from.Length, bytes.NewReader(out.Bytes()), pub.Length); err != nil {
		return fmt.Errorf("apply it: %w", err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != pub.SHA256 {
		return fmt.Errorf("apply it: %w: it makes a file with sha256 %s instead of %s", delta.ErrBad, got, pub.SHA256)
	}
	info := delta.Info{
		Format: delta.Format, From: d.From, BaseSHA256: from.SHA256, BaseLength: from.Length,
		SHA256: pub.SHA256, Length: pub.Length, Memory: delta.Memory,
	}
	if d.custom, err = info.ToCustom(); err != nil {
		return err
	}
	up := &Published{Path: d.Path}
	if d.blocks, err = r.upload(ctx, up, &out, int64(out.Len()), dryRun); err != nil {
		return err
	}
	d.Length, d.SHA256, d.Blocks = up.Length, up.SHA256, up.Blocks
	return nil
}

// readVerified reads a published file of at most delta.MaxFile bytes back from
// the store.
func (r *Repository) readVerified(ctx context.Context, pub *Published) ([]byte, error) {
	rc, info, err := r.store.Open(ctx, layout.TargetObject(pub.Path, pub.SHA256), 0)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	wrong := fmt.Errorf("%w: %s in the store is not what role %s signed", ErrNotTrusted, pub.Path, layout.ProductRole(pub.Patch.Product))
	if info.Size != pub.Length {
		return nil, wrong
	}
	data, sum := make([]byte, pub.Length), sha256.New()
	for rest := data; len(rest) > 0; {
		p := rest[:min(len(rest), layout.BlockSize)]
		if _, err := io.ReadFull(rc, p); err != nil {
			return nil, fmt.Errorf("read %s: %w", pub.Path, err)
		}
		sum.Write(p)
		rest = rest[len(p):]
	}
	if hex.EncodeToString(sum.Sum(nil)) != pub.SHA256 {
		return nil, wrong
	}
	return data, nil
}

// put makes the delta a target in a draft.
func (dl *Delta) put(ctx context.Context, d *draft, role string, t *metadata.TargetsType) error {
	if dl.Skipped != "" {
		return nil
	}
	tf := targetFile(dl.Path, dl.Length, [sha256.Size]byte(mustHex(dl.SHA256)))
	tf.Custom = &dl.custom
	t.Targets[dl.Path] = tf
	if dl.Blocks {
		return d.putDocument(ctx, role, layout.BlocksPath(dl.Path), dl.blocks)
	}
	return nil
}

// publishedDelta is what a role says of a delta of pub at a path.
func publishedDelta(t *metadata.TargetsType, path string, pub *Published) Delta {
	tf := t.Targets[path]
	d := Delta{Path: path, Length: tf.Length, SHA256: tf.Hashes["sha256"].String(), Blocks: t.Targets[layout.BlocksPath(path)] != nil}
	info, err := deltaInfo(path, tf, pub.Path, pub.SHA256, pub.Length)
	if info != nil {
		d.From, d.BaseSHA256 = info.From, info.BaseSHA256
	}
	if err != nil {
		d.Skipped = err.Error()
	}
	return d
}

// deltaInfo reads what is signed about a delta, and says whether it fits its
// patch.
func deltaInfo(path string, tf *metadata.TargetFiles, target, sum string, length int64) (*delta.Info, error) {
	var raw json.RawMessage
	if tf.Custom != nil {
		raw = *tf.Custom
	}
	info, err := delta.FromCustom(raw)
	if err != nil {
		return nil, err
	}
	return info, info.Fits(path, target, sum, length)
}
