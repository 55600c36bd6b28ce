package tuftest

import (
	"context"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/patchkeep/patchkeep/client/tuf"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

var _ tuf.Fetcher = (*Repo)(nil)

// Requests returns what was asked for since the last ResetRequests, as it
// stood in the URL: "2.root.json", "timestamp.json", "targets/<hash>.name".
func (r *Repo) Requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// ResetRequests empties the log.
func (r *Repo) ResetRequests() {
	r.mu.Lock()
	r.requests = nil
	r.mu.Unlock()
}

// answer logs a request and finds its answer. It holds the lock of the log, so
// a test that calls Requests before and after it changes the Repo does not race
// with a server's goroutines.
func (r *Repo) answer(request, name string, find func(string) ([]byte, bool)) ([]byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, request)
	return find(name)
}

// FetchMetadata makes a Repo a tuf.Fetcher.
func (r *Repo) FetchMetadata(ctx context.Context, name string, max int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	data, ok := r.answer(name, name, r.file)
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("%s: %w", name, tuf.ErrTooLarge)
	}
	return data, nil
}

// file finds a metadata file by its percent-encoded name.
func (r *Repo) file(name string) ([]byte, bool) {
	base, ok := strings.CutSuffix(name, ".json")
	if !ok {
		return nil, false
	}
	version := 0
	if number, rest, found := strings.Cut(base, "."); found && base != metadata.TIMESTAMP &&
		(rest == metadata.ROOT || r.Root.Signed.ConsistentSnapshot) {
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 {
			return nil, false
		}
		version, base = n, rest
	} else if base == metadata.ROOT || r.Root.Signed.ConsistentSnapshot && base != metadata.TIMESTAMP {
		return nil, false
	}
	role, err := url.PathUnescape(base)
	all := r.Published[role]
	if err != nil || len(all) == 0 || version > len(all) {
		return nil, false
	}
	if version == 0 {
		version = len(all)
	}
	return all[version-1], true
}

// ServeHTTP serves /metadata/… and /targets/….
func (r *Repo) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	escaped := req.URL.EscapedPath()
	var data []byte
	var ok bool
	if name, found := strings.CutPrefix(escaped, "/metadata/"); found {
		data, ok = r.answer(name, name, r.file)
	} else if name, found := strings.CutPrefix(escaped, "/targets/"); found {
		data, ok = r.answer("targets/"+name, name, r.artifact)
	}
	if !ok {
		http.Error(w, "no such file", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.Write(data)
}

func (r *Repo) artifact(escaped string) ([]byte, bool) {
	name, err := url.PathUnescape(escaped)
	if err != nil {
		return nil, false
	}
	if !r.Root.Signed.ConsistentSnapshot || !r.HashPrefix {
		data, ok := r.Artifacts[name]
		return data, ok
	}
	dir, file := path.Split(name)
	sum, file, _ := strings.Cut(file, ".")
	for _, md := range r.Targets {
		t := md.Signed.Targets[dir+file]
		if t == nil {
			continue
		}
		for _, h := range t.Hashes {
			if hex.EncodeToString(h) == sum {
				return r.Artifacts[dir+file], true
			}
		}
	}
	return nil, false
}
