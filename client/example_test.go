package client_test

import (
	"context"
	"fmt"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"

	"github.com/patchkeep/patchkeep/client"
	"github.com/patchkeep/patchkeep/client/tuf/tuftest"
)

// exampleRepository serves a repository with one file.
func exampleRepository() (url string, root []byte, stop func()) {
	r := tuftest.New()
	r.AddArtifact("targets", "patches/hello/1.1/any/hello.sh", []byte("echo hello\n"))
	r.PublishAll()
	ts := httptest.NewServer(r)
	return ts.URL, r.Published["root"][0], ts.Close
}

// Check what a repository vouches for.
func Example_check() {
	url, root, stop := exampleRepository()
	defer stop()
	ctx := context.Background()

	c, err := client.Open(client.Config{
		Root:    root, // came with the program, not over the network
		Mirrors: []string{url},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if err := c.Refresh(ctx); err != nil {
		log.Fatal(err)
	}
	t, err := c.Target(ctx, "patches/hello/1.1/any/hello.sh")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(t.Length, "bytes, signed by", t.Role)
	// Output: 11 bytes, signed by targets
}

// Download a file: it is verified, or it is not there.
func Example_download() {
	url, root, stop := exampleRepository()
	defer stop()
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	c, err := client.Open(client.Config{Dir: filepath.Join(dir, "state"), Root: root, Mirrors: []string{url}})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if err := c.Refresh(ctx); err != nil {
		log.Fatal(err)
	}
	dest := filepath.Join(dir, "hello.sh")
	_, res, err := c.Download(ctx, "patches/hello/1.1/any/hello.sh", dest, client.DownloadOptions{
		Progress: func(done, total int64) { fmt.Println(done, "of", total) },
	})
	if err != nil {
		log.Fatal(err)
	}
	text, err := os.ReadFile(dest)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d bytes fetched: %s", res.Bytes, text)
	// Output:
	// 11 of 11
	// 11 bytes fetched: echo hello
}
