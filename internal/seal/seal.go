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
	"path/filepath"

	"github.com/gantryd/gantry/fault"
)

const keySize = 32

// Box seals and opens. Use Open.
type Box struct {
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
	return &Box{aead: aead, macKey: derive(key, "fingerprint")}, nil
}

func readKey(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fault.New(fault.Denied, "the key file %s can be read by others than its owner (mode %04o)", path, info.Mode().Perm()).
			WithHint("chmod 600 %s, and think about who may have read it", path)
	}
	key, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read the key of the secrets")
	}
	if len(key) != keySize {
		return nil, fault.New(fault.Corrupt, "the key file %s has %d bytes, not %d", path, len(key), keySize).
			WithHint("put it back from your backup")
	}
	return key, nil
}

// makeKey writes a new key so that a crash leaves either none or all of it.
func makeKey(path string) ([]byte, error) {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails: crypto/rand ends the program instead
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot make the key of the secrets")
	}
	_, err = f.Write(key)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot make the key of the secrets")
	}
	return key, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
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
