package signing

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// maxDirEntries bounds the files looked at in one directory of keys.
const maxDirEntries = 10_000

// Options of a keyring; the zero value opens encrypted keys only when they need
// no password, which is never.
type Options struct {
	// Password is asked when a key has to be unlocked or made; what it gave is
	// tried for all further keys. Nil means that there are no passwords.
	Password PasswordFunc
	// AllowUnencrypted lets Create and Import write a key in the clear when the
	// password is empty or Password is nil. For tests only.
	AllowUnencrypted bool
	// AllowExample lets the keys of keys-example sign. For the demo only.
	AllowExample bool
}

// KeyInfo is the public side of a key.
type KeyInfo struct {
	Name      string           `json:"name"`      // of the file, without suffix
	ID        string           `json:"keyid"`     // TUF key id; empty while a key without NAME.pub is locked
	Algorithm Algorithm        `json:"algorithm"` // empty as long as ID is
	Source    string           `json:"source"`    // path of the key file
	Example   bool             `json:"example,omitempty"`
	Public    crypto.PublicKey `json:"-"` // nil as long as ID is empty
}

// Fingerprint is that of the key id.
func (i KeyInfo) Fingerprint() string { return Fingerprint(i.ID) }

// Keyring finds keys by id and unlocks them when they first sign. It may be
// used by several goroutines at once; keys are unlocked one at a time, so that
// one prompt is on the terminal and the memory for one is taken.
type Keyring struct {
	opts  Options
	paths []string // the locations

	mu        sync.Mutex // guards what follows
	places    []string   // the locations, for messages
	dir       string     // where keys are created; empty: no directory was given
	entries   []*entry
	passwords [][]byte // that unlocked or made a key
	closed    bool
}

type entry struct {
	info KeyInfo
	key  *Key // nil while locked
}

// Open looks at each location: a directory of key files, or the reference of
// one key (see [ParseRef]). Nothing is unlocked and no password asked. A
// location that does not exist holds no key: its files may be made later, and a
// key that is missed names it. A public key that cannot be read is an error.
func Open(ctx context.Context, locations []string, opts Options) (*Keyring, error) {
	kr := &Keyring{opts: opts}
	for _, location := range locations {
		ref, err := ParseRef(location)
		if err != nil {
			return nil, fmt.Errorf("open keys: %w", err)
		}
		kr.paths = append(kr.paths, ref.Path)
	}
	if err := kr.Reload(ctx); err != nil {
		return nil, err
	}
	return kr, nil
}

// Reload looks at the locations again, for keys that others have made since.
// What is unlocked stays so.
func (kr *Keyring) Reload(ctx context.Context) error {
	kr.mu.Lock()
	defer kr.mu.Unlock()
	kr.places = nil
	for _, path := range kr.paths {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("open keys: %w", err)
		}
		if err := kr.add(path); err != nil {
			return fmt.Errorf("open keys: %w", err)
		}
	}
	return nil
}

// add takes in a key file or a directory of them.
func (kr *Keyring) add(path string) error {
	fi, err := os.Stat(path)
	isFile := strings.HasSuffix(path, privateSuffix)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kr.places = append(kr.places, path+" (does not exist)")
		if kr.dir == "" && !isFile {
			kr.dir = path
		}
		return nil
	case err != nil:
		return err
	case !fi.IsDir():
		kr.places = append(kr.places, path)
		return kr.addFile(path)
	}
	kr.places = append(kr.places, path)
	if kr.dir == "" {
		kr.dir = path
	}
	files, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	if len(files) > maxDirEntries {
		return fmt.Errorf("%w: %q holds more than %d files", ErrKey, path, maxDirEntries)
	}
	for _, file := range files {
		name := file.Name()
		if file.IsDir() || !strings.HasSuffix(name, privateSuffix) || strings.HasPrefix(name, ".") {
			continue
		}
		if err := kr.addFile(filepath.Join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

func (kr *Keyring) addFile(path string) error {
	i := slices.IndexFunc(kr.entries, func(e *entry) bool { return e.info.Source == path })
	if i >= 0 && kr.entries[i].info.Public != nil {
		return nil
	}
	info, err := Describe(path)
	if errors.Is(err, fs.ErrNotExist) { // no public half: known once unlocked
		info, err = KeyInfo{Name: nameOf(path), Source: path}, nil
	}
	switch {
	case err != nil:
		return err
	case i >= 0:
		kr.entries[i].info = info
	default:
		kr.entries = append(kr.entries, &entry{info: info})
	}
	return nil
}

// Describe tells about a key from the public half beside path, which is that of
// a NAME.key or a NAME.pub; without one it is [fs.ErrNotExist].
func Describe(path string) (KeyInfo, error) {
	pubPath := path
	if !strings.HasSuffix(path, publicSuffix) {
		pubPath = publicPath(path)
	}
	data, err := readKeyFile(pubPath, false)
	if err != nil {
		return KeyInfo{}, fmt.Errorf("read public key: %w", err)
	}
	pub, err := ParsePublic(data)
	if err != nil {
		return KeyInfo{}, fmt.Errorf("read public key %q: %w", pubPath, err)
	}
	return describe(path, pub)
}

func describe(path string, pub crypto.PublicKey) (KeyInfo, error) {
	alg, err := algorithmOf(pub)
	if err != nil {
		return KeyInfo{}, err
	}
	_, id, err := TUFKey(pub)
	if err != nil {
		return KeyInfo{}, err
	}
	return KeyInfo{Name: nameOf(path), ID: id, Algorithm: alg, Source: path, Example: IsExample(id), Public: pub}, nil
}

func nameOf(path string) string {
	base := filepath.Base(path)
	return strings.TrimSuffix(strings.TrimSuffix(base, privateSuffix), publicSuffix)
}

// Keys lists all keys in the order of the locations, by name within each.
func (kr *Keyring) Keys() []KeyInfo {
	kr.mu.Lock()
	defer kr.mu.Unlock()
	infos := make([]KeyInfo, len(kr.entries))
	for i, e := range kr.entries {
		infos[i] = e.info
	}
	return infos
}

// Signer gives the key of a TUF key id, unlocked. A key that is nowhere is
// [fs.ErrNotExist]; a wrong password is [ErrPassword]; a key file that cannot
// be used is [ErrKey]; an example key is [ErrExampleKey] unless allowed.
//
// Keys without a public half are unlocked, one after the other, only when no
// other key has the id.
func (kr *Keyring) Signer(ctx context.Context, keyID string) (*Key, error) {
	kr.mu.Lock()
	defer kr.mu.Unlock()
	if kr.closed {
		return nil, fmt.Errorf("find key %s: keyring: %w", keyID, fs.ErrClosed)
	}
	var failed error
	for _, e := range kr.entries {
		if e.info.ID != keyID {
			continue
		}
		key, err := kr.unlock(ctx, e)
		if err == nil {
			return key, nil
		}
		failed = errors.Join(failed, err) // another copy may do
	}
	if failed != nil {
		return nil, failed
	}
	for _, e := range kr.entries {
		if e.info.ID != "" {
			continue
		}
		key, err := kr.unlock(ctx, e)
		if err == nil && key.id == keyID {
			return key, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		failed = errors.Join(failed, err)
	}
	return nil, kr.notFound(keyID, failed)
}

// notFound says where a key was looked for, and which files could not be read.
func (kr *Keyring) notFound(keyID string, failed error) error {
	places := "nowhere: no place of keys was given"
	if len(kr.places) > 0 {
		places = strings.Join(kr.places, ", ")
	}
	err := fmt.Errorf("find key %s: %w; looked in %s", keyID, fs.ErrNotExist, places)
	if failed != nil {
		err = fmt.Errorf("%w; not all of it could be read: %w", err, failed)
	}
	return err
}

// unlock makes an entry's key ready. kr.mu is held.
func (kr *Keyring) unlock(ctx context.Context, e *entry) (*Key, error) {
	if e.key != nil {
		return e.key, nil
	}
	if e.info.Example && !kr.opts.AllowExample {
		return nil, fmt.Errorf("use key %q: %w, so it signs in the demo only", e.info.Source, ErrExampleKey)
	}
	locked, err := readPrivate(e.info.Source)
	if err != nil {
		return nil, err
	}
	priv, err := kr.decrypt(ctx, locked, fmt.Sprintf("key file %q", e.info.Source))
	if err != nil {
		return nil, fmt.Errorf("unlock key file %q: %w", e.info.Source, err)
	}
	key, err := newKey(priv)
	if err != nil {
		return nil, fmt.Errorf("unlock key file %q: %w", e.info.Source, err)
	}
	if e.info.ID != "" && e.info.ID != key.id {
		return nil, fmt.Errorf("unlock key file %q: %w: it does not belong to %q", e.info.Source, ErrKey, publicPath(e.info.Source))
	}
	info, err := describe(e.info.Source, key.pub)
	if err != nil {
		return nil, err
	}
	if info.Example && !kr.opts.AllowExample { // one whose public half was taken away
		return nil, fmt.Errorf("use key %q: %w, so it signs in the demo only", e.info.Source, ErrExampleKey)
	}
	e.info, e.key = info, key
	return key, nil
}

// decrypt tries the passwords that worked before, then asks. kr.mu is held.
func (kr *Keyring) decrypt(ctx context.Context, locked *lockedKey, what string) (crypto.PrivateKey, error) {
	if !locked.encrypted {
		return locked.unlock(ctx, nil)
	}
	tried := slices.Clone(kr.passwords)
	for _, pw := range tried {
		if priv, err := locked.unlock(ctx, pw); err == nil || !errors.Is(err, ErrPassword) {
			return priv, err
		}
	}
	if kr.opts.Password == nil {
		return nil, fmt.Errorf("%w: none was given", ErrPassword)
	}
	err := fmt.Errorf("%w: it is wrong, or the file is damaged", ErrPassword)
	known := len(tried)
	defer func() {
		for _, wrong := range tried[known:] {
			clear(wrong)
		}
	}()
	for range attempts {
		pw, askErr := kr.opts.Password(ctx, what, false)
		if askErr != nil {
			return nil, askErr
		}
		// Asking the environment again gives the same: not worth the work.
		if slices.ContainsFunc(tried, func(t []byte) bool { return bytes.Equal(t, pw) }) {
			clear(pw)
			continue
		}
		var priv crypto.PrivateKey
		if priv, err = locked.unlock(ctx, pw); err == nil {
			kr.passwords = append(kr.passwords, pw)
			return priv, nil
		}
		if !errors.Is(err, ErrPassword) {
			clear(pw)
			return nil, err
		}
		tried = append(tried, pw)
	}
	return nil, err
}

// Create makes a key and writes NAME.key and NAME.pub to the first directory
// among the locations, which is made if need be. It is encrypted by the
// password that is in use, or else a new one is asked for. A name that is taken
// is [fs.ErrExist]. Errors leave no file.
func (kr *Keyring) Create(ctx context.Context, name string, alg Algorithm) (KeyInfo, error) {
	kr.mu.Lock()
	defer kr.mu.Unlock()
	priv, err := generate(alg)
	if err != nil {
		return KeyInfo{}, fmt.Errorf("create key %q: %w", name, err)
	}
	info, err := kr.store(ctx, name, priv)
	if err != nil {
		return KeyInfo{}, fmt.Errorf("create key %q: %w", name, err)
	}
	return info, nil
}

// Import takes over a private key: PKCS#8 ("PRIVATE KEY", "ENCRYPTED PRIVATE
// KEY"), SEC 1 ("EC PRIVATE KEY") or cosign's and sigstore's own encryption, in
// PEM. It is written like one of [Keyring.Create], under the password that
// opened it if it had one.
func (kr *Keyring) Import(ctx context.Context, name string, pemBytes []byte) (KeyInfo, error) {
	kr.mu.Lock()
	defer kr.mu.Unlock()
	info, err := kr.importKey(ctx, name, pemBytes)
	if err != nil {
		return KeyInfo{}, fmt.Errorf("import key %q: %w", name, err)
	}
	return info, nil
}

func (kr *Keyring) importKey(ctx context.Context, name string, pemBytes []byte) (KeyInfo, error) {
	if len(pemBytes) > maxKeyFile {
		return KeyInfo{}, fmt.Errorf("%w: larger than %d bytes", ErrKey, maxKeyFile)
	}
	locked, err := parseLocked(pemBytes)
	if err != nil {
		return KeyInfo{}, err
	}
	priv, err := kr.decrypt(ctx, locked, "the key to import")
	if err != nil {
		return KeyInfo{}, err
	}
	key, err := newKey(priv)
	if err != nil {
		return KeyInfo{}, err
	}
	if IsExample(key.id) && !kr.opts.AllowExample {
		return KeyInfo{}, ErrExampleKey
	}
	return kr.store(ctx, name, priv)
}

// store writes a key pair and takes it in, unlocked. kr.mu is held.
func (kr *Keyring) store(ctx context.Context, name string, priv crypto.PrivateKey) (KeyInfo, error) {
	if kr.closed {
		return KeyInfo{}, fmt.Errorf("keyring: %w", fs.ErrClosed)
	}
	if err := checkName(name); err != nil {
		return KeyInfo{}, err
	}
	if kr.dir == "" {
		return KeyInfo{}, fmt.Errorf("%w: no directory of keys was given to write it to", ErrRef)
	}
	path := filepath.Join(kr.dir, name+privateSuffix)
	for _, p := range []string{path, publicPath(path)} { // before anybody types a password
		if _, err := os.Lstat(p); err == nil {
			return KeyInfo{}, fmt.Errorf("%q: %w", p, fs.ErrExist)
		}
	}
	key, err := newKey(priv)
	if err != nil {
		return KeyInfo{}, err
	}
	info, err := describe(path, key.pub)
	if err != nil {
		return KeyInfo{}, err
	}
	password, err := kr.newPassword(ctx, name)
	if err != nil {
		return KeyInfo{}, err
	}
	private, err := encodePrivate(priv, password)
	if err != nil {
		return KeyInfo{}, fmt.Errorf("encrypt: %w", err)
	}
	defer clear(private)
	public, err := encodePublic(key.pub)
	if err != nil {
		return KeyInfo{}, err
	}
	if err := writeKeyPair(kr.dir, name, private, public); err != nil {
		return KeyInfo{}, err
	}
	kr.entries = append(kr.entries, &entry{info: info, key: key})
	return info, nil
}

// newPassword gives the password to encrypt with: one in use, or a new one;
// none only where that is allowed. kr.mu is held.
func (kr *Keyring) newPassword(ctx context.Context, name string) ([]byte, error) {
	if n := len(kr.passwords); n > 0 {
		return kr.passwords[n-1], nil
	}
	var pw []byte
	if kr.opts.Password != nil {
		var err error
		if pw, err = kr.opts.Password(ctx, fmt.Sprintf("key %q", name), true); err != nil {
			return nil, err
		}
	}
	switch {
	case len(pw) > 0:
		kr.passwords = append(kr.passwords, pw)
		return pw, nil
	case kr.opts.AllowUnencrypted:
		return nil, nil
	}
	return nil, fmt.Errorf("%w: an empty one would leave the key unprotected", ErrPassword)
}

// Close forgets keys and passwords. Keys that were handed out go on working.
func (kr *Keyring) Close() {
	kr.mu.Lock()
	defer kr.mu.Unlock()
	for _, pw := range kr.passwords {
		clear(pw)
	}
	kr.entries, kr.passwords, kr.closed = nil, nil, true
}
