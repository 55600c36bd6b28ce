package fetch

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/patchkeep/patchkeep/repo/layout"
)

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-99/200", "bytes 5-4/9", "bytes */10", "bytes 0-9/*", "", "bytes 9223372036854775807-9223372036854775807/1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parseContentRange(s)
		if err != nil {
			return
		}
		if c.start < 0 || c.start > c.end || c.end >= c.total {
			t.Fatalf("%q is accepted as %+v", s, c)
		}
		again, err := parseContentRange(fmt.Sprintf("bytes %d-%d/%d", c.start, c.end, c.total))
		if err != nil || again != c {
			t.Fatalf("%+v does not survive: %+v, %v", c, again, err)
		}
	})
}

func FuzzRetryAfter(f *testing.F) {
	now := time.Unix(1e9, 0)
	f.Add("120")
	f.Add("Fri, 31 Dec 1999 23:59:59 GMT")
	f.Fuzz(func(t *testing.T, s string) {
		if d, ok := parseRetryAfter(s, now); ok && d < 0 {
			t.Fatalf("%q means %s", s, d)
		}
	})
}

// Whatever the progress file says, it leads to hashes that go on from where it
// says, or to none.
func FuzzProgress(f *testing.F) {
	r := &Request{Length: 5 * layout.BlockSize, Hashes: map[string]string{"sha256": fmt.Sprintf("%064x", 1)}}
	h, err := newHashes(r.Hashes)
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(progress{progressFormat, r.Length, r.Hashes, layout.BlockSize, h.state(), "", bitmap{1}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"format":2,"verified":-1}`))
	f.Add([]byte(`{"format":2,"length":5242880,"verified":0,"boot":"x","blocks":"AA=="}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		pr, ok := parseProgress(data, r)
		if !ok {
			return
		}
		if pr.Verified < 0 || pr.Verified > r.Length || pr.Verified%layout.BlockSize != 0 ||
			pr.Blocks != nil && (len(pr.Blocks) != 1 || pr.Boot != "") {
			t.Fatalf("%s is accepted", data)
		}
		h, err := newHashes(r.Hashes)
		if err != nil {
			t.Fatal(err)
		}
		if h.resume(pr.States) {
			h.write([]byte("more"))
			_ = h.check()
		}
	})
}

// A block list of any bytes accepts a block only if its hash stands there.
func FuzzBlockList(f *testing.F) {
	f.Add([]byte{}, []byte("block"), int64(5))
	f.Fuzz(func(t *testing.T, list, block []byte, length int64) {
		d := &download{Request: Request{Length: length, Blocks: list}}
		if length <= 0 || len(block) == 0 || len(list) == 0 ||
			int64(len(list)) != layout.BlockCount(length)*blockHashLen {
			return // refused before: TestWrongBlockListIsNotBelieved
		}
		rd := &reader{download: d, buf: block}
		h, err := newHashes(map[string]string{"sha256": fmt.Sprintf("%x", list[:blockHashLen])})
		if err != nil {
			t.Fatal(err)
		}
		h.write(block)
		if (rd.verify() == nil) != (h.check() == nil) {
			t.Fatal("a block is accepted that is not the one listed")
		}
	})
}
