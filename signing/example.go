package signing

import (
	"sync"

	keysexample "github.com/patchkeep/patchkeep/keys-example"
)

// IsExample tells whether a key id is that of one of the published keys of
// keys-example, whose password everybody knows.
func IsExample(keyID string) bool {
	_, ok := exampleIDs()[keyID]
	return ok
}

// A file there that is no public key is a mistake at build time, which the
// tests would show.
var exampleIDs = sync.OnceValue(func() map[string]struct{} {
	ids := map[string]struct{}{}
	for name, data := range keysexample.PublicKeys() {
		pub, err := ParsePublic(data)
		if err != nil {
			panic("keys-example/" + name + ": " + err.Error())
		}
		_, id, err := TUFKey(pub)
		if err != nil {
			panic("keys-example/" + name + ": " + err.Error())
		}
		ids[id] = struct{}{}
	}
	return ids
})
