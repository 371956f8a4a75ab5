package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/gantryd/gantry/fault"
)

const (
	maxKey  = 1024
	maxName = 200 // file systems allow 255 bytes; suffixes need room
)

func checkKey(key string) error {
	switch {
	case key == "":
		return fault.New(fault.Invalid, "a volume needs a key")
	case len(key) > maxKey:
		return fault.New(fault.Invalid, "the volume key is %d bytes long, %d is the most", len(key), maxKey)
	case !utf8.ValidString(key) || strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fault.New(fault.Invalid, "the volume key %q has control characters", key)
	}
	return nil
}

// fileName turns any key into one file name that is never "", "." or "..", has no separator and differs for every key.
func fileName(key string) string {
	var b strings.Builder
	for i := range len(key) {
		if c := key[i]; plain(c) && (c != '.' || i > 0) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	if b.Len() > maxName {
		sum := sha256.Sum256([]byte(key))
		return "~" + hex.EncodeToString(sum[:]) // "~" is never plain
	}
	return b.String()
}

func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
}

// keyLocks is one lock per key, kept only while somebody wants it.
type keyLocks struct {
	mu    sync.Mutex
	locks map[string]*keyLock
}

type keyLock struct {
	sync.Mutex
	users int
}

// lock locks key and returns the unlock.
func (k *keyLocks) lock(key string) func() {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*keyLock{}
	}
	l := k.locks[key]
	if l == nil {
		l = &keyLock{}
		k.locks[key] = l
	}
	l.users++
	k.mu.Unlock()
	l.Lock()
	return func() { k.unlock(key, l) }
}

func (k *keyLocks) unlock(key string, l *keyLock) {
	l.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(k.locks, key)
	}
}
