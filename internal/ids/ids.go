// Package ids makes the identities of things: random, short enough to type, unique enough for a fleet.
package ids

import (
	"crypto/rand"
	"encoding/hex"
)

// New returns 12 hexadecimal digits of randomness.
func New() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(b[:])
}
