package s3store

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"

	"github.com/patchkeep/patchkeep/repo/store"
)

// Sizes of multipart uploads. Two parts are in memory at a time: while one is
// on its way the other one is read.
const (
	minPart   = 5 << 20 // S3's smallest part but for the last
	maxParts  = 10_000  // S3's limit
	inFlight  = 2
	unknownIs = 64 << 30 // the largest object of unknown size that can be stored
)

// partSize returns the size in bytes of the parts of an object: all the same
// but for the last, as some services want it, and at most maxParts of them.
func partSize(size int64) int64 {
	if size < 0 {
		size = unknownIs
	}
	const step = 1 << 20
	part := (size + maxParts - 1) / maxParts
	return max(minPart, (part+step-1)/step*step)
}

// Create implements store.Store. An object of unknown size may have 64 GiB.
// Memory is two parts of 5 MiB; more only above 48 GiB.
func (s *Store) Create(ctx context.Context, name string, r io.Reader, size int64, opt store.Options) (store.Info, error) {
	err := store.CheckName(name)
	var info store.Info
	if err == nil {
		info, err = s.create(ctx, name, r, size, opt)
	}
	if err != nil {
		return store.Info{}, fmt.Errorf("create object %s: %w", name, err)
	}
	return info, nil
}

func (s *Store) create(ctx context.Context, name string, r io.Reader, size int64, opt store.Options) (store.Info, error) {
	part := partSize(size)
	if size < 0 || size > part {
		// Spares the upload; the condition at its end is what decides.
		if _, err := s.stat(ctx, name); err == nil {
			return store.Info{}, store.ErrConflict
		} else if !errors.Is(err, fs.ErrNotExist) {
			return store.Info{}, err
		}
	}
	src := store.SizedReader(ctx, r, size)
	buf, err := readFirst(src, size)
	if err == nil {
		return s.putParts(ctx, name, buf, src, part, opt)
	}
	if err != io.EOF {
		return store.Info{}, err
	}
	return s.putSmall(ctx, name, buf, opt)
}

// putSmall creates an object in one request.
func (s *Store) putSmall(ctx context.Context, name string, data []byte, opt store.Options) (store.Info, error) {
	if _, err := s.put(ctx, name, data, "", opt); err != nil {
		return store.Info{}, err
	}
	return s.verify(ctx, name, int64(len(data)), digest(data))
}

// readFirst reads the first part of an object, or with io.EOF all of it.
func readFirst(src io.Reader, size int64) ([]byte, error) {
	n := partSize(size)
	if size >= 0 {
		n = min(n, size+1) // one more, to meet the end
	}
	buf := make([]byte, n)
	m, err := fill(src, buf)
	return buf[:m], err
}

// fill reads until buf is full, or returns the reader's error, io.EOF included.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// digest is a SHA-256 as S3's checksum headers spell it.
func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// verify reads back what the service says about an object just created, and
// removes the object if it is another.
func (s *Store) verify(ctx context.Context, name string, size int64, sum string) (store.Info, error) {
	obj, err := s.head(ctx, name)
	if err != nil {
		return store.Info{}, fmt.Errorf("verify: %w", err)
	}
	// A checksum of checksums is followed by "-" and the number of parts.
	got, _, _ := strings.Cut(obj.ChecksumSHA256, "-")
	if obj.Size != size || got != "" && got != sum {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		err := fmt.Errorf("verify: the service has stored %d bytes with SHA-256 %q, sent were %d with %q", obj.Size, got, size, sum)
		return store.Info{}, errors.Join(err, s.remove(ctx, name))
	}
	return store.Info{Name: name, Size: size, ETag: obj.ETag, Modified: obj.LastModified.UTC()}, nil
}

// Replace implements store.Store. Info.Modified is by this machine's clock.
func (s *Store) Replace(ctx context.Context, name string, data []byte, etag string, opt store.Options) (store.Info, error) {
	err := store.CheckName(name)
	if err == nil && len(data) > store.MaxReplace {
		err = fmt.Errorf("%d bytes, more than the %d that can be replaced", len(data), store.MaxReplace)
	}
	var info store.Info
	if err == nil {
		info, err = s.put(ctx, name, data, etag, opt)
	}
	if err != nil {
		return store.Info{}, fmt.Errorf("replace object %s: %w", name, err)
	}
	return info, nil
}

// put writes data in one request if the object's ETag is etag, or if there is
// no object and etag is empty.
func (s *Store) put(ctx context.Context, name string, data []byte, etag string, opt store.Options) (store.Info, error) {
	sum := sha256.Sum256(data)
	sum64 := base64.StdEncoding.EncodeToString(sum[:])
	po := putOptions(opt)
	po.UserMetadata = map[string]string{"X-Amz-Checksum-Sha256": sum64}
	if etag == "" {
		po.SetMatchETagExcept("*")
	} else {
		po.SetMatchETag(etag)
	}
	var up minio.UploadInfo
	retried, err := s.retry(ctx, lightRetries, func() (err error) {
		ctx, stall := withStall(ctx, patience(len(data)))
		defer stall.end()
		up, err = s.client.PutObject(ctx, s.cfg.Bucket, s.key(name), stall.body(data), int64(len(data)), "", hex.EncodeToString(sum[:]), po)
		if err == nil && up.ETag == "" {
			err = errors.New("no ETag of the object")
		}
		return err
	})
	if err == nil && up.ChecksumSHA256 != "" && up.ChecksumSHA256 != sum64 {
		return store.Info{}, fmt.Errorf("the service has received SHA-256 %q, sent was %q", up.ChecksumSHA256, sum64)
	}
	if etag != "" && errors.Is(err, fs.ErrNotExist) {
		err = store.ErrConflict // it was deleted
	}
	if retried && errors.Is(err, store.ErrConflict) {
		// The answer to an earlier try was lost. It may have succeeded, and
		// then the object in our way is our own.
		if obj, herr := s.head(ctx, name); herr == nil && obj.ChecksumSHA256 == sum64 {
			return store.Info{Name: name, Size: obj.Size, ETag: obj.ETag, Modified: obj.LastModified.UTC()}, nil
		}
	}
	if err != nil {
		return store.Info{}, err
	}
	return store.Info{Name: name, Size: int64(len(data)), ETag: up.ETag, Modified: time.Now().UTC()}, nil
}

// putOptions are those common to all uploads. The body's hash is known before,
// so it is signed as a whole, which every service understands.
func putOptions(opt store.Options) minio.PutObjectOptions {
	return minio.PutObjectOptions{
		ContentType:          opt.ContentType,
		CacheControl:         opt.CacheControl,
		DisableContentSha256: true, // not another one by chunks
	}
}

// putParts creates an object in parts: first, of part bytes unless it is the
// last, and then what src has.
func (s *Store) putParts(ctx context.Context, name string, first []byte, src io.Reader, part int64, opt store.Options) (store.Info, error) {
	po := putOptions(opt)
	po.UserMetadata = map[string]string{"X-Amz-Checksum-Algorithm": "SHA256"}
	var size int64
	all := sha256.New() // of the parts' hashes: S3's composite checksum
	unsure, err := s.multipart(ctx, name, po, func(id string) ([]minio.CompletePart, error) {
		parts, n, err := s.sendParts(ctx, s.key(name), id, first, src, part)
		list := make([]minio.CompletePart, len(parts))
		for i, p := range parts {
			all.Write(p.sum[:])
			list[i] = minio.CompletePart{PartNumber: i + 1, ETag: p.etag, ChecksumSHA256: base64.StdEncoding.EncodeToString(p.sum[:])}
		}
		size = n
		return list, err
	})
	sum := base64.StdEncoding.EncodeToString(all.Sum(nil))
	if err != nil && unsure {
		// As in put: the object in our way may be our own.
		obj, herr := s.head(ctx, name)
		if got, _, _ := strings.Cut(obj.ChecksumSHA256, "-"); herr != nil || obj.Size != size || got != sum {
			return store.Info{}, err
		}
	} else if err != nil {
		return store.Info{}, err
	}
	return s.verify(ctx, name, size, sum)
}

// multipart creates an object by a multipart upload whose parts send brings,
// and aborts it if it fails. With store.ErrConflict, unsure says that the
// answer to an earlier try was lost, which may have succeeded.
//
// It is done by the calls of the core client, since PutObject of minio-go does
// not send the condition with CompleteMultipartUpload, where it takes effect.
func (s *Store) multipart(ctx context.Context, name string, po minio.PutObjectOptions, send func(id string) ([]minio.CompletePart, error)) (unsure bool, err error) {
	key := s.key(name)
	var id string
	if _, err := s.retry(ctx, lightRetries, func() (err error) {
		ctx, cancel := context.WithTimeout(ctx, lightTimeout)
		defer cancel()
		id, err = s.client.NewMultipartUpload(ctx, s.cfg.Bucket, key, po)
		return err
	}); err != nil {
		return false, err
	}
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
			defer cancel()
			// Best effort: a lifecycle rule removes what stays.
			_ = s.client.AbortMultipartUpload(ctx, s.cfg.Bucket, key, id)
		}
	}()
	list, err := send(id)
	if err != nil {
		return false, err
	}
	var done minio.PutObjectOptions
	done.SetMatchETagExcept("*")
	retried, err := s.retry(ctx, completeRetries, func() error {
		ctx, cancel := context.WithTimeout(ctx, completeTimeout)
		defer cancel()
		_, err := s.client.CompleteMultipartUpload(ctx, s.cfg.Bucket, key, id, list, done)
		return err
	})
	if retried && isCode(err, minio.NoSuchUpload) {
		err = fmt.Errorf("%w: %w", store.ErrConflict, err) // it was completed
	}
	return retried && errors.Is(err, store.ErrConflict), err
}

// sentPart is written by the goroutine that sends the part, and read after all
// have ended.
type sentPart struct {
	etag string
	sum  [sha256.Size]byte
}

// sendParts sends the parts, inFlight at a time, and returns them with their
// total size.
func (s *Store) sendParts(ctx context.Context, key, id string, first []byte, src io.Reader, part int64) ([]*sentPart, int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, gctx := errgroup.WithContext(ctx)
	free := make(chan []byte, inFlight) // buffers; nil: to be made when needed
	for range inFlight - 1 {
		free <- nil
	}
	var parts []*sentPart
	var size int64
	send := func(buf []byte, n int) {
		p := new(sentPart)
		parts = append(parts, p)
		num := len(parts)
		size += int64(n)
		g.Go(func() (err error) {
			p.sum = sha256.Sum256(buf[:n])
			p.etag, err = s.sendPart(gctx, key, id, num, buf[:n], p.sum)
			if err == nil { // else the transport may still be reading it
				free <- buf
			}
			return err
		})
	}
	buf, n, err := first, len(first), error(nil)
	for {
		if n > 0 && len(parts) == maxParts {
			err = fmt.Errorf("content is longer than %d bytes, the most that can be stored without knowing its size", maxParts*part)
		} else if n > 0 {
			send(buf, n)
		}
		if err != nil {
			break
		}
		select {
		case buf = <-free:
		case <-gctx.Done():
			if err := g.Wait(); err != nil {
				return nil, 0, err
			}
			return nil, 0, ctx.Err()
		}
		if buf == nil {
			buf = make([]byte, part)
		}
		if n, err = fill(src, buf); err != nil && err != io.EOF {
			break
		}
	}
	if err != io.EOF {
		cancel()
		_ = g.Wait() // it only says that it was cancelled
		return nil, 0, err
	}
	err = g.Wait()
	return parts, size, err
}

// sendPart sends one part and returns its ETag.
func (s *Store) sendPart(ctx context.Context, key, id string, num int, data []byte, sum [sha256.Size]byte) (string, error) {
	sum64 := base64.StdEncoding.EncodeToString(sum[:])
	header := map[string][]string{"X-Amz-Checksum-Sha256": {sum64}}
	var p minio.ObjectPart
	_, err := s.retry(ctx, partRetries, func() (err error) {
		ctx, stall := withStall(ctx, patience(len(data)))
		defer stall.end()
		p, err = s.client.PutObjectPart(ctx, s.cfg.Bucket, key, id, num, stall.body(data), int64(len(data)), minio.PutObjectPartOptions{
			Sha256Hex: hex.EncodeToString(sum[:]), DisableContentSha256: true, CustomHeader: header,
		})
		return err
	})
	if err == nil && p.ChecksumSHA256 != "" && p.ChecksumSHA256 != sum64 {
		err = fmt.Errorf("the service has received part %d with SHA-256 %q, sent was %q", num, p.ChecksumSHA256, sum64)
	}
	return p.ETag, err
}

func randomName() string { return strings.ToLower(rand.Text()) }

// body is data as a request's body, which keeps the request alive as long as
// bytes go out.
func (s *stall) body(data []byte) io.Reader {
	return &sendReader{r: bytes.NewReader(data), stall: s, patience: patience(len(data))}
}

type sendReader struct {
	r        *bytes.Reader
	stall    *stall
	patience time.Duration
}

func (b *sendReader) Read(p []byte) (int, error) {
	b.stall.arm(b.patience)
	return b.r.Read(p)
}
