// Package store is where a repository lies: a flat, ordered space of named
// objects with create-only writes and one compare-and-replace, which is all
// that publishing needs (see docs/formats.md).
//
// The drivers are in the packages below it: dirstore (a plain directory) and
// s3store (any S3-compatible service with conditional writes). Both pass
// storetest.
package store

import (
	"context"
	"errors"
	"io"
	"time"
)

// ErrConflict is returned by Create when the object exists already, and by
// Replace when the object is not the one the caller has read. Nothing was
// written.
var ErrConflict = errors.New("object changed or exists already")

// ErrUnsupported is returned by Probe when the service behind the store lacks
// what publishing relies on, such as conditional writes.
var ErrUnsupported = errors.New("store does not support conditional writes")

// ErrUnreachable is wrapped by errors of a store that could not be reached,
// or that kept failing on its own account, after bounded retries: the network
// or the service is down, and trying again later is the right thing to do.
var ErrUnreachable = errors.New("store cannot be reached")

// ErrDenied is wrapped by errors of a store that refused the credentials it
// was given, or what they allow. The error never shows a secret.
var ErrDenied = errors.New("store denied access")

// MaxReplace is the largest object, in bytes, that Replace writes. Up to this
// size a dirstore's ETag is a hash of the content.
const MaxReplace = 1 << 20

// Info describes an object.
type Info struct {
	Name     string    // slash-separated, relative to the store's root
	Size     int64     // bytes
	ETag     string    // opaque version of the content, for Replace; List may leave it empty
	Modified time.Time // UTC; for gc's grace period, never for trust
}

// Reader reads objects. It is all that a mirror or a verifier needs.
//
// A missing object is reported as an error that wraps [io/fs.ErrNotExist].
// Names are those of package layout; a name that CheckName refuses is an
// error that wraps layout.ErrBadName.
type Reader interface {
	// Open returns the object's bytes from offset to its end, and its Info.
	// An offset at or beyond the end yields an empty reader. The caller
	// closes the reader. The reader ends with an error, never early with
	// io.EOF, if the store delivers fewer bytes than Info.Size promises.
	Open(ctx context.Context, name string, offset int64) (io.ReadCloser, Info, error)

	// Stat returns the object's Info.
	Stat(ctx context.Context, name string) (Info, error)

	// List calls fn for every object whose name starts with prefix, in
	// lexical (byte) order of the names, until fn returns an error, which List
	// returns. Objects being written are never listed. No match is no error.
	List(ctx context.Context, prefix string, fn func(Info) error) error
}

// Store reads and writes objects. Implementations are safe for concurrent use
// by many goroutines and many processes.
type Store interface {
	Reader
	Stager

	// Create writes a new object, streaming size bytes from r; size -1 means
	// unknown. It returns ErrConflict if the object exists, whoever won. The
	// object appears whole or not at all, also when the process is killed,
	// and it is durable when Create returns. A reader that fails or that ends
	// before or after size leaves nothing behind.
	Create(ctx context.Context, name string, r io.Reader, size int64, opt Options) (Info, error)

	// Replace overwrites the object with data, of at most MaxReplace bytes, if
	// its current ETag is etag; an empty etag means that the object must not
	// exist yet. It returns ErrConflict otherwise. It is atomic and durable.
	Replace(ctx context.Context, name string, data []byte, etag string, opt Options) (Info, error)

	// Delete removes the object. Deleting what is not there is no error.
	Delete(ctx context.Context, name string) error

	// Probe checks that the store can be reached and written to, and that it
	// really does refuse a second Create and a stale Replace. It leaves
	// nothing behind. It returns ErrUnsupported if the store only pretends.
	Probe(ctx context.Context) error

	// String names the store for people, without credentials.
	String() string
}

// Options go with an object that is written. They matter to stores that are
// read over HTTP by others; dirstore ignores them.
type Options struct {
	ContentType  string
	CacheControl string
}
