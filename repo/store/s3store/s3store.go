// Package s3store keeps a repository in a bucket of any S3-compatible service
// that has conditional writes: `If-None-Match: *` and `If-Match`, on PutObject
// and, the former, on CompleteMultipartUpload. Probe finds out.
//
// What is checked of every object written: the service receives the SHA-256 of
// each request's body in its signature (X-Amz-Content-Sha256) and as
// x-amz-checksum-sha256, and refuses other bytes. After a Create the object is
// read back by HEAD: its size must be the one sent, and, where the service
// reports one, its SHA-256 (of the object, or of its parts' SHA-256s if it was
// sent in parts) that of the bytes read. An object that differs is removed.
//
// A process that is killed in the middle of a large upload leaves parts that no
// one sees but that are paid for: give the bucket a lifecycle rule with
// AbortIncompleteMultipartUpload.
package s3store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/minio/minio-go/v7"

	"github.com/patchkeep/patchkeep/repo/store"
)

// Store is a prefix in a bucket. Use New.
type Store struct {
	client *minio.Core
	cfg    Config
	creds  *credentialChain

	bucketSeen atomic.Bool // the bucket has answered: a 404 is about an object
}

var _ store.Store = (*Store)(nil)

// String is the store's URL, without credentials.
func (s *Store) String() string { return s.cfg.String() }

// key is an object's key in the bucket.
func (s *Store) key(name string) string {
	if s.cfg.Prefix == "" {
		return name
	}
	return s.cfg.Prefix + "/" + name
}

// Open implements store.Reader. Ending ctx ends the reader as well.
func (s *Store) Open(ctx context.Context, name string, offset int64) (io.ReadCloser, store.Info, error) {
	body, info, err := s.open(ctx, name, offset)
	if err != nil {
		return nil, store.Info{}, fmt.Errorf("open object %s: %w", name, err)
	}
	return body, info, nil
}

func (s *Store) open(ctx context.Context, name string, offset int64) (io.ReadCloser, store.Info, error) {
	if err := store.CheckName(name); err != nil {
		return nil, store.Info{}, err
	}
	if offset < 0 {
		return nil, store.Info{}, fmt.Errorf("negative offset %d", offset)
	}
	var opt minio.GetObjectOptions
	if offset > 0 {
		opt.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
	}
	var body *bodyReader
	var info store.Info
	caller := ctx
	_, err := s.retry(ctx, lightRetries, func() error {
		ctx, stall := withStall(caller, lightTimeout)
		rc, obj, header, err := s.client.GetObject(ctx, s.cfg.Bucket, s.key(name), opt)
		if err != nil {
			stall.end()
			return err
		}
		info = store.Info{Name: name, ETag: obj.ETag, Modified: obj.LastModified.UTC()}
		info.Size, err = objectSize(header, offset)
		if err != nil {
			rc.Close()
			stall.end()
			return err
		}
		stall.pause()
		body = &bodyReader{rc: rc, stall: stall, left: info.Size - offset, caller: caller, store: s}
		return nil
	})
	if isCode(err, minio.InvalidRange) { // nothing at or after offset
		info, err := s.stat(ctx, name)
		return io.NopCloser(strings.NewReader("")), info, err
	}
	return body, info, err
}

var errNoSize = errors.New("no size of the object")

// objectSize reads the size of the whole object from a GET's headers: RFC 9110
// §14.4 Content-Range if a range was asked for, Content-Length otherwise.
func objectSize(h http.Header, offset int64) (int64, error) {
	if offset == 0 {
		n, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64)
		if err != nil || n < 0 {
			return 0, errNoSize
		}
		return n, nil
	}
	span, total, ok := strings.Cut(h.Get("Content-Range"), "/")
	n, err := strconv.ParseInt(total, 10, 64)
	if !ok || err != nil || span != fmt.Sprintf("bytes %d-%d", offset, n-1) {
		return 0, errors.New("not the range asked for")
	}
	return n, nil
}

// bodyReader yields what Info.Size promised, or an error, and gives up on a
// service that has stopped sending.
type bodyReader struct {
	rc     io.ReadCloser
	stall  *stall
	left   int64
	caller context.Context // of Open, which the reader belongs to
	store  *Store
}

func (b *bodyReader) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	b.stall.arm(stallTimeout)
	n, err := b.rc.Read(p[:min(int64(len(p)), b.left)])
	b.stall.pause()
	b.left -= int64(n)
	switch {
	case err == nil:
		return n, nil
	case b.left == 0:
		return n, io.EOF
	case b.caller.Err() != nil:
		return n, b.caller.Err()
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		return n, fmt.Errorf("%w: %d bytes are missing: %w", store.ErrUnreachable, b.left, io.ErrUnexpectedEOF)
	}
	return n, b.store.explain(err)
}

func (b *bodyReader) Close() error {
	b.stall.end()
	return b.rc.Close()
}

// Stat implements store.Reader.
func (s *Store) Stat(ctx context.Context, name string) (store.Info, error) {
	err := store.CheckName(name)
	var info store.Info
	if err == nil {
		info, err = s.stat(ctx, name)
	}
	if err != nil {
		return store.Info{}, fmt.Errorf("stat object %s: %w", name, err)
	}
	return info, nil
}

func (s *Store) stat(ctx context.Context, name string) (store.Info, error) {
	obj, err := s.head(ctx, name)
	if err != nil {
		return store.Info{}, err
	}
	return store.Info{Name: name, Size: obj.Size, ETag: obj.ETag, Modified: obj.LastModified.UTC()}, nil
}

func (s *Store) head(ctx context.Context, name string) (minio.ObjectInfo, error) {
	var obj minio.ObjectInfo
	_, err := s.retry(ctx, lightRetries, func() (err error) {
		ctx, cancel := context.WithTimeout(ctx, lightTimeout)
		defer cancel()
		obj, err = s.client.StatObject(ctx, s.cfg.Bucket, s.key(name), minio.StatObjectOptions{Checksum: true})
		if err == nil && obj.Size < 0 {
			err = errNoSize
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) && !s.bucketSeen.Load() {
		if berr := s.checkBucket(ctx); berr != nil {
			err = berr
		}
	}
	return obj, err
}

// checkBucket tells why a HEAD found nothing: its answer has no body to say
// whether the object is missing, or the bucket, or the user.
func (s *Store) checkBucket(ctx context.Context) error {
	_, err := s.retry(ctx, lightRetries, func() error {
		ctx, cancel := context.WithTimeout(ctx, lightTimeout)
		defer cancel()
		for obj := range s.client.ListObjectsIter(ctx, s.cfg.Bucket, minio.ListObjectsOptions{
			Prefix: s.key(""), Recursive: true, MaxKeys: 1, FetchOwner: new(bool),
		}) {
			return obj.Err
		}
		return ctx.Err()
	})
	if isCode(err, minio.AccessDenied) { // may read, not list: it is there
		return nil
	}
	return err
}

// List implements store.Reader.
func (s *Store) List(ctx context.Context, prefix string, fn func(store.Info) error) error {
	if err := store.CheckPrefix(prefix); err != nil {
		return fmt.Errorf("list objects: %w", err)
	}
	var last string // key of the newest object passed to fn: where a retry goes on
	var fnErr error
	_, err := s.retry(ctx, lightRetries, func() error {
		ctx, stall := withStall(ctx, stallTimeout)
		defer stall.end()
		for obj := range s.client.ListObjectsIter(ctx, s.cfg.Bucket, minio.ListObjectsOptions{
			Prefix: s.key(prefix), Recursive: true, StartAfter: last, FetchOwner: new(bool),
		}) {
			if obj.Err != nil {
				return obj.Err
			}
			if last != "" && obj.Key <= last {
				return errors.New("the list is not in order of names")
			}
			last = obj.Key
			name := strings.TrimPrefix(obj.Key, s.key(""))
			if store.CheckName(name) != nil { // another's: a "directory", say
				continue
			}
			stall.pause()
			if fnErr = fn(store.Info{Name: name, Size: obj.Size, ETag: obj.ETag, Modified: obj.LastModified.UTC()}); fnErr != nil {
				return nil
			}
			stall.arm(stallTimeout)
		}
		return ctx.Err() // the iterator ends without a word then
	})
	if fnErr != nil {
		return fnErr
	}
	if err != nil {
		return fmt.Errorf("list objects: %w", err)
	}
	return nil
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	err := store.CheckName(name)
	if err == nil {
		err = s.remove(ctx, name)
	}
	if err != nil {
		return fmt.Errorf("delete object %s: %w", name, err)
	}
	return nil
}

func (s *Store) remove(ctx context.Context, name string) error {
	_, err := s.retry(ctx, lightRetries, func() error {
		ctx, cancel := context.WithTimeout(ctx, lightTimeout)
		defer cancel()
		return s.client.RemoveObject(ctx, s.cfg.Bucket, s.key(name), minio.RemoveObjectOptions{})
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Probe implements store.Store.
func (s *Store) Probe(ctx context.Context) error {
	if err := s.probe(ctx); err != nil {
		return fmt.Errorf("probe bucket %s: %w", s.cfg.Bucket, err)
	}
	return nil
}

func (s *Store) probe(ctx context.Context) error {
	small := store.ReservedDir + "/probe-" + randomName()
	large := small + "-parts"
	body, other := []byte("probe"), []byte("other")
	put := func(data []byte, etag string) (store.Info, error) {
		return s.put(ctx, small, data, etag, store.Options{})
	}
	parts := func(name string) error {
		_, err := s.putParts(ctx, name, body, bytes.NewReader(nil), minPart, store.Options{})
		return err
	}
	first, err := put(body, "")
	if errors.Is(err, store.ErrUnreachable) || errors.Is(err, store.ErrDenied) {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		_ = s.remove(ctx, small) // best effort: the probe has its answer
		_ = s.remove(ctx, large)
	}()
	if err != nil {
		return err
	}
	if _, err := put(other, ""); !errors.Is(err, store.ErrConflict) {
		return lacks(err, "it creates an object twice (PutObject ignores If-None-Match)")
	}
	second, err := put(other, first.ETag)
	if err != nil {
		return err
	}
	if second.ETag == first.ETag {
		return lacks(nil, "another content has the same ETag")
	}
	if _, err := put(body, first.ETag); !errors.Is(err, store.ErrConflict) {
		return lacks(err, "it replaces an object that has changed (PutObject ignores If-Match)")
	}
	if err := parts(large); err != nil {
		return err
	}
	if err := parts(large); !errors.Is(err, store.ErrConflict) {
		return lacks(err, "it creates an object twice (CompleteMultipartUpload ignores If-None-Match)")
	}
	info, err := s.stat(ctx, small)
	if err != nil {
		return err
	}
	if info.ETag != second.ETag {
		return lacks(nil, "a write that was refused has changed the object")
	}
	return nil
}

// lacks makes the error for a bucket that did what it should have refused.
func lacks(err error, what string) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: %s", store.ErrUnsupported, what)
}
