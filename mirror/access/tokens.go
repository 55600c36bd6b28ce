package access

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

const (
	// MaxTokenFile bounds a file of tokens, in bytes.
	MaxTokenFile = 4 << 20

	minToken  = 16 // characters; the shorter can be guessed
	maxToken  = 4 << 10
	maxName   = 64
	hashLabel = "sha256:"
)

// Tokens are those that let in. Only their hashes are kept.
type Tokens struct {
	salt [32]byte
	// By the hash of salt and hash, so that the time which a look-up takes says
	// nothing about the hashes.
	known map[[32]byte]token
}

type token struct {
	name string
	hash [32]byte
}

// ParseTokens reads a file of tokens. Each line is a name, and the token or
// sha256: and its SHA-256 in hex; # begins a comment line. A name may have
// several tokens, as while one is replaced. Errors name the line, never the token.
func ParseTokens(data []byte) (*Tokens, error) {
	if len(data) > MaxTokenFile {
		return nil, fmt.Errorf("more than %d bytes", MaxTokenFile)
	}
	t := &Tokens{known: map[[32]byte]token{}}
	_, _ = rand.Read(t.salt[:]) // never fails
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := t.add(strings.Fields(line)); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *Tokens) add(fields []string) error {
	if len(fields) != 2 {
		return errors.New("want a name, a space, and a token")
	}
	name, text := fields[0], fields[1]
	if len(name) > maxName || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@") != "" {
		return fmt.Errorf("a name has up to %d letters, digits, and . _ - @", maxName)
	}
	entry := token{name: name}
	if hexed, ok := strings.CutPrefix(text, hashLabel); ok {
		sum, err := hex.DecodeString(hexed)
		if err != nil || len(sum) != sha256.Size {
			return errors.New("after " + hashLabel + " come 64 hex digits")
		}
		copy(entry.hash[:], sum)
	} else {
		if len(text) < minToken || len(text) > maxToken {
			return fmt.Errorf("a token has %d characters or more", minToken)
		}
		entry.hash = sha256.Sum256([]byte(text))
	}
	at := t.index(entry.hash)
	if other, ok := t.known[at]; ok {
		return fmt.Errorf("the token of %s is that of %s", name, other.name)
	}
	t.known[at] = entry
	return nil
}

func (t *Tokens) index(hash [32]byte) [32]byte {
	var both [64]byte
	copy(both[:], t.salt[:])
	copy(both[32:], hash[:])
	return sha256.Sum256(both[:])
}

// Len is how many there are.
func (t *Tokens) Len() int { return len(t.known) }

// Find returns the name of a token, if it is one of them.
func (t *Tokens) Find(text string) (name string, ok bool) {
	if len(text) > maxToken {
		return "", false
	}
	hash := sha256.Sum256([]byte(text))
	entry, ok := t.known[t.index(hash)]
	if !ok || subtle.ConstantTimeCompare(entry.hash[:], hash[:]) != 1 {
		return "", false
	}
	return entry.name, true
}
