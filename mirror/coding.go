package mirror

import (
	"bytes"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// coding is a content coding (RFC 9110 §8.4.1).
type coding int

const (
	identity coding = iota
	gzipped
	zstandard
	codings // how many there are
)

var contentEncoding = [codings][]string{identity: nil, gzipped: {"gzip"}, zstandard: {"zstd"}}

// header is the value of Content-Encoding, never written to.
func (c coding) header() []string { return contentEncoding[c] }

// suffix sets the ETag of a variant apart from that of the others, as strong
// ones must be (RFC 9110 §8.8.3.3).
func (c coding) suffix() string {
	if c == identity {
		return ""
	}
	return "-" + contentEncoding[c][0]
}

// qualities reads an Accept-Encoding (RFC 9110 §12.5.3): what each coding is
// worth to the client, 0 if it is not acceptable. What makes no sense in it is
// passed over.
func qualities(header string) (q [codings]int) {
	const notSaid = -1
	rest := 0
	for c := range q {
		q[c] = notSaid
	}
	seenRest := false
	for item := range strings.SplitSeq(header, ",") {
		name, params, _ := strings.Cut(item, ";")
		value, ok := quality(params)
		if !ok {
			continue
		}
		switch name = strings.Trim(name, " \t"); {
		case name == "*":
			rest, seenRest = value, true
		case strings.EqualFold(name, "gzip"), strings.EqualFold(name, "x-gzip"):
			q[gzipped] = value
		case strings.EqualFold(name, "zstd"):
			q[zstandard] = value
		case strings.EqualFold(name, "identity"):
			q[identity] = value
		}
	}
	for c := range q {
		switch {
		case q[c] != notSaid:
		case coding(c) == identity && !seenRest:
			q[c] = 1 // acceptable, but less so than whatever was asked for
		default:
			q[c] = rest
		}
	}
	return q
}

// quality reads the weight in the parameters of a coding, in units of 1/2000:
// an odd one is free for "a little less".
func quality(params string) (q int, ok bool) {
	params = strings.Trim(params, " \t")
	if params == "" {
		return 2000, true
	}
	s, found := strings.CutPrefix(params, "q=")
	if !found {
		s, found = strings.CutPrefix(params, "Q=")
	}
	if !found || len(s) > len("0.000") || s == "" || s[0] != '0' && s[0] != '1' || len(s) > 1 && s[1] != '.' {
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f > 1 {
		return 0, false
	}
	return 2 * int(f*1000+0.5), true
}

// smallBody is up to how many bytes time does not matter.
const smallBody = 1 << 20

// packer compresses. It is shared, since it holds a few MB; and it does only two
// things at once, since strangers say when it works.
type packer struct {
	small, large *zstd.Encoder
	gzip         chan struct{}
}

var packers = sync.OnceValue(func() *packer {
	encoder := func(level zstd.EncoderLevel) *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(8<<20), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic(err) // the options are wrong
		}
		return e
	}
	return &packer{encoder(zstd.SpeedBetterCompression), encoder(zstd.SpeedDefault), make(chan struct{}, 2)}
})

func (p *packer) pack(c coding, body []byte) []byte {
	if c == zstandard {
		if len(body) <= smallBody {
			return p.small.EncodeAll(body, nil)
		}
		return p.large.EncodeAll(body, nil)
	}
	p.gzip <- struct{}{}
	defer func() { <-p.gzip }()
	level := gzip.BestCompression
	if len(body) > smallBody {
		level = gzip.DefaultCompression
	}
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, level)
	if err == nil {
		_, err = w.Write(body)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err) // a buffer takes everything
	}
	return out.Bytes()
}
