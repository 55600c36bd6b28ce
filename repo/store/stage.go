package store

import (
	"context"
	"io"
)

// Stager takes an object's bytes before its name is known. A patch's object is
// named by its hash, and the file is read once, for the hash and the upload
// together.
type Stager interface {
	// Stage streams size bytes from r, -1 if unknown, to a place of the store
	// that readers do not see. It fails as Create does.
	Stage(ctx context.Context, r io.Reader, size int64, opt Options) (Staged, error)
}

// Staged is an object without a name.
type Staged interface {
	// Commit gives the object its name. It returns ErrConflict, and keeps what
	// is there, if the name is taken. It is durable when Commit returns.
	Commit(ctx context.Context, name string) (Info, error)
	// Discard removes what is left, and does nothing after a Commit that
	// succeeded. What a killed process leaves is found by gc.
	Discard(ctx context.Context) error
}
