// Package seal keeps secrets unreadable at rest: AES-256-GCM under a key that is a file of its own.
//
// Open a Box on the key file, which is made with mode 0600 if it is missing and must not exist wider. Methods are safe in
// parallel. The name of a secret is bound into its sealed form, so that one cannot be passed off as another. It does not
// rotate keys.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"os"

	"github.com/gantryd/gantry/fault"
	"github.com/gantryd/gantry/internal/atomicfile"
)

const keySize = 32

// Box seals and opens. Use Open.
type Box struct {
	key    []byte
	aead   cipher.AEAD
	macKey []byte
}

// Open reads the key at path. With create, a missing one is made; without, it is an error: sealed data exists that only the
// missing key can open.
func Open(path string, create bool) (*Box, error) {
	key, err := readKey(path)
	if os.IsNotExist(err) && create {
		key, err = makeKey(path)
	}
	if os.IsNotExist(err) {
		return nil, fault.Wrap(fault.Corrupt, err, "the key of the secrets is missing").
			WithHint("put %s back from your backup: what was sealed with it can be opened with nothing else", path)
	}
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(derive(key, "seal"))
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot use the key of the secrets")
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot use the key of the secrets")
	}
	return &Box{key: key, aead: aead, macKey: derive(key, "fingerprint")}, nil
}

// Import writes a key that another machine's Box has. One that is there already must be the same.
func Import(path string, key []byte) error {
	if len(key) != keySize {
		return fault.New(fault.Invalid, "a key of %d bytes was given, not %d", len(key), keySize)
	}
	old, err := readKey(path)
	if err == nil && !hmac.Equal(old, key) {
		return fault.New(fault.Conflict, "this machine has another key of secrets in %s", path).
			WithHint("it belonged to another cluster: start with an empty --root")
	}
	if err == nil || !os.IsNotExist(err) {
		return err
	}
	return writeKey(path, key)
}

// Key is the key itself, for another server of the same cluster.
func (b *Box) Key() []byte { return b.key }

func readKey(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fault.New(fault.Denied, "the key file %s can be read by others than its owner (mode %04o)", path, info.Mode().Perm()).
			WithHint("chmod 600 %s, and think about who may have read it", path)
	}
	key, err := atomicfile.Read(path)
	if fault.Is(err, fault.Corrupt) {
		return nil, fault.Wrap(fault.Corrupt, err, "the key of the secrets is damaged").
			WithHint("put %s back from your backup, or from another server: what was sealed with it can be opened with nothing else", path)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read the key of the secrets")
	}
	if len(key) != keySize {
		return nil, fault.New(fault.Corrupt, "the key file %s has %d bytes, not %d", path, len(key), keySize).
			WithHint("put it back from your backup")
	}
	return key, nil
}

// makeKey makes up a key and keeps it.
func makeKey(path string) ([]byte, error) {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails: crypto/rand ends the program instead
	return key, writeKey(path, key)
}

// writeKey leaves either none or all of the key.
func writeKey(path string, key []byte) error {
	if err := atomicfile.Write(path, key, 0o600); err != nil {
		return fault.Wrap(fault.Unavailable, err, "cannot keep the key of the secrets")
	}
	return nil
}

func derive(key []byte, purpose string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(purpose))
	return m.Sum(nil)
}

// Seal encrypts plain for the secret called name.
func (b *Box) Seal(name string, plain []byte) ([]byte, error) {
	nonce := make([]byte, b.aead.NonceSize())
	_, _ = rand.Read(nonce)
	return b.aead.Seal(nonce, nonce, plain, []byte(name)), nil
}

// Open decrypts what Seal made for the same name.
func (b *Box) Open(name string, sealed []byte) ([]byte, error) {
	n := b.aead.NonceSize()
	if len(sealed) < n {
		return nil, fault.New(fault.Corrupt, "the sealed secret %q is too short", name)
	}
	plain, err := b.aead.Open(nil, sealed[:n], sealed[n:], []byte(name))
	if err != nil {
		return nil, fault.New(fault.Corrupt, "the secret %q cannot be opened with this cluster's key", name).
			WithHint("was the key file replaced? put the old one back, or set the secret again: gantry secret create --replace")
	}
	return plain, nil
}

// Fingerprint tells whether contents differ without telling them: HMAC-SHA256 under the key, hexadecimal.
func (b *Box) Fingerprint(name string, plain []byte) string {
	m := hmac.New(sha256.New, b.macKey)
	m.Write([]byte(name))
	m.Write([]byte{0})
	m.Write(plain)
	return hex.EncodeToString(m.Sum(nil))
}
