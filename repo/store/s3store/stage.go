package s3store

import (
	"context"
	"fmt"
	"io"

	"github.com/minio/minio-go/v7"

	"github.com/patchkeep/patchkeep/repo/layout"
	"github.com/patchkeep/patchkeep/repo/store"
)

// copyPart is the most that S3 copies as one part.
const copyPart = 5 << 30

// staged is an object without a name: a small one in memory, a large one as an
// object of its own, which the service copies when the name is known.
type staged struct {
	store *Store
	opt   store.Options
	small []byte     // if info.Name is ""
	info  store.Info // of the object that holds a large one
}

// Stage implements store.Stager.
func (s *Store) Stage(ctx context.Context, r io.Reader, size int64, opt store.Options) (store.Staged, error) {
	st := &staged{store: s, opt: opt}
	src := store.SizedReader(ctx, r, size)
	first, err := readFirst(src, size)
	switch {
	case err == io.EOF:
		st.small = first
		return st, nil
	case err == nil:
		name := layout.PendingDir + "/uploads/" + randomName()
		if st.info, err = s.putParts(ctx, name, first, src, partSize(size), opt); err == nil {
			return st, nil
		}
	}
	return nil, fmt.Errorf("stage object: %w", err)
}

// Commit implements store.Staged.
func (st *staged) Commit(ctx context.Context, name string) (store.Info, error) {
	err := store.CheckName(name)
	var info store.Info
	switch {
	case err != nil:
	case st.info.Name == "":
		info, err = st.store.putSmall(ctx, name, st.small, st.opt)
	default:
		info, err = st.store.copyNew(ctx, st.info, name, st.opt)
	}
	if err != nil {
		return store.Info{}, fmt.Errorf("create object %s: %w", name, err)
	}
	return info, st.Discard(ctx)
}

// Discard implements store.Staged.
func (st *staged) Discard(ctx context.Context) error {
	if st.info.Name == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if err := st.store.remove(ctx, st.info.Name); err != nil {
		return fmt.Errorf("discard staged object: %w", err)
	}
	st.info.Name = ""
	return nil
}

// copyNew has the service copy an object to a name that must be free. It copies
// in parts, whatever the size, since the condition is known to every service at
// the end of a multipart upload, and to few with CopyObject. If the answer was
// lost, its own copy is a conflict too.
func (s *Store) copyNew(ctx context.Context, from store.Info, name string, opt store.Options) (store.Info, error) {
	if _, err := s.stat(ctx, name); err == nil {
		return store.Info{}, store.ErrConflict
	}
	same := map[string]string{"x-amz-copy-source-if-match": `"` + from.ETag + `"`}
	_, err := s.multipart(ctx, name, putOptions(opt), func(id string) (list []minio.CompletePart, err error) {
		for offset := int64(0); offset < from.Size; offset += copyPart {
			var p minio.CompletePart
			if _, err := s.retry(ctx, completeRetries, func() (err error) {
				ctx, cancel := context.WithTimeout(ctx, completeTimeout)
				defer cancel()
				p, err = s.client.CopyObjectPart(ctx, s.cfg.Bucket, s.key(from.Name), s.cfg.Bucket, s.key(name), id, len(list)+1, offset, min(copyPart, from.Size-offset), same)
				return err
			}); err != nil {
				return nil, err
			}
			list = append(list, p)
		}
		return list, nil
	})
	if err != nil {
		return store.Info{}, err
	}
	info, err := s.stat(ctx, name)
	if err == nil && info.Size != from.Size {
		err = fmt.Errorf("verify: the service has stored %d bytes of %d", info.Size, from.Size)
	}
	return info, err
}
